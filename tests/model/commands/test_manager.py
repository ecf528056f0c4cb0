"""What the window asks about checkpoints: what they are, whether they are whole, converting with progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.commands.manager import main
from tests.support.converted import GOLDENS

ORIGINAL = GOLDENS / "checkpoints" / "a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("manager") / "converted"
    assert main(["convert", str(ORIGINAL), str(target)]) == 0
    return target


def answers(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> list[dict[str, Any]]:
    assert main([str(word) for word in words]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_folders_are_described(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    made, original, absent, strange, empty = answers(capsys, "list", folder, ORIGINAL, "/nope", other, tmp_path)
    assert (made["kind"], made["state"], made["error"]) == ("checkpoint", "ready", None)
    assert made["plan"]["recommended"]
    assert made["bytes"] > 10**6
    assert made["reads_emotion"]
    assert (original["kind"], original["state"]) == ("original", "ready")
    assert (absent["state"], strange["state"], empty["state"]) == ("absent", "broken", "broken")
    assert "bert" in strange["error"]
    assert "config.json" in empty["error"]


def test_presets_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path))
    (mini,) = answers(capsys, "list", "mini")
    assert (mini["kind"], mini["state"], mini["plan"]) == ("preset", "absent", None)
    assert mini["download_bytes"] > 10**8
    assert "download it first" in answers(capsys, "verify", "mini", code=3)[-1]["error"]


def test_what_is_whole_is_told_by_name_and_hash(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *steps, answer = answers(capsys, "verify", folder)
    assert steps[0]["what"] == "Reading model.safetensors"
    assert len(answer["sha256"]["model.safetensors"]) == 64
    assert "names and shapes" in answer["checked"][0]


def test_damage_is_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = damaged / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-400:] = b"\xff" * 400  # NaN in every floating-point type
    weights.write_bytes(whole)
    assert "NaN or infinite" in answers(capsys, "verify", damaged, code=3)[-1]["error"]
    weights.write_bytes(whole[:-100])
    assert "error" in answers(capsys, "verify", damaged, code=3)[-1]


def test_quantised_folders_are_described_as_such(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small"
    assert answers(capsys, "quantize", folder, target)[-1] == {"folder": str(target), "error": None}
    (small,) = answers(capsys, "list", target)
    assert (small["stored"], small["state"]) == ("nf4", "ready")
    assert "already exists" in answers(capsys, "quantize", folder, target, code=2)[-1]["error"]


def test_a_repository_needs_a_commit(capsys: pytest.CaptureFixture[str]) -> None:
    assert "40 hexadecimal digits" in answers(capsys, "hub", "owner/name", "main", code=2)[-1]["error"]
