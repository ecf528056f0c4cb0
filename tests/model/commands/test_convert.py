"""The convert command: dry run, exit codes, download from the hub at a revision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from model.commands import convert as module
from model.commands.convert import main
from model.weights import fetch
from tests.model.support.conversions import CHECKPOINTS, GOLDENS, equal, expected, interrupted_after, state_of


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CHECKPOINTS / "b"), str(tmp_path / "target"), "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["adapter"], report["lora_rank"], report["lora_scope"]) == (
        "blsp_emo",
        "conv",
        16,
        "audio",
    )
    assert (report["source_tensors"], report["target_tensors"], report["ignored"]) == (87, 106, [])
    assert len(report["source_files"]) == 4
    assert report["target_bytes"] < report["disk_bytes"] < report["disk_free_bytes"]
    assert report["emotion_head"] is report["dry_run"] is True
    assert main([str(CHECKPOINTS / "b"), str(tmp_path / "target"), "--dry-run"]) == 0
    assert "1.7 MB" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    target, source = str(tmp_path / "target"), str(CHECKPOINTS / "a")
    wrong = [
        ([source, str(tmp_path)], 0),
        ([source, str(tmp_path)], 2),
        ([str(tmp_path / "nowhere"), target], 2),
        ([source, target, "--revision", "0" * 40], 2),
        (["owner/name", target], 2),
        (["owner/name", target, "--revision", "main"], 2),
        ([str(GOLDENS), target], 3),
    ]
    for arguments, code in wrong:
        assert main([*arguments, "--json"]) == code
        output = capsys.readouterr()
        assert (output.out.count("\n"), output.err.count("\n")) == ((1, 0) if code == 0 else (0, 1))
    monkeypatch.setattr(module, "convert", lambda *_: interrupted_after(0)(fetch.Progress("", 0, 0)))
    assert main([source, target]) == 130
    assert "same command again to resume" in capsys.readouterr().err


def test_a_hub_id_is_fetched_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [path.name for path in (CHECKPOINTS / "b").iterdir()]
    asked: list[dict[str, Any]] = []

    def snapshot(*, dry_run: bool = False, **request: Any) -> list[SimpleNamespace] | None:
        asked.append(request)
        if dry_run:
            return [SimpleNamespace(filename=name, file_size=1) for name in files]
        shutil.copytree(CHECKPOINTS / "b", request["local_dir"])
        return None

    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    arguments = ["owner/name", str(tmp_path / "target"), "--revision", "ab" * 20]
    assert main([*arguments, "--dry-run"]) == 3
    assert "is not downloaded" in capsys.readouterr().err
    assert not asked
    assert main(arguments) == 0
    assert (asked[0]["repo_id"], asked[0]["revision"]) == ("owner/name", "ab" * 20)
    assert "*.bin" in asked[0]["allow_patterns"]
    assert equal(load_file(tmp_path / "target" / "model.safetensors"), expected(state_of(CHECKPOINTS / "b")))
    assert main([*arguments[:1], str(tmp_path / "again"), *arguments[2:], "--dry-run", "--json"]) == 0
