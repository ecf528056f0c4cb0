"""A converted checkpoint is to every command what mini is; mini's Whisper writes what was said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import main
from model.checkpoints import loader
from model.commands import bench, convert, quantize
from tests import GOLDENS

pytestmark = pytest.mark.real
GOLDEN = GOLDENS / "checkpoints" / "a"
SPOKEN = loader.RESOURCES / "samples" / "who-sent-this.flac"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An original's checkpoint converted, the same in 4 bits, and one that was trained without an emotion head."""
    root = tmp_path_factory.mktemp("converted")
    shutil.copytree(GOLDEN, root / "original")
    weights = torch.load(root / "original" / "pytorch_model.bin", weights_only=True)
    del weights["hidden2emotion.weight"]
    torch.save(weights, root / "original" / "pytorch_model.bin")
    assert convert.main([str(GOLDEN), str(root / "whole")]) == 0
    assert convert.main([str(root / "original"), str(root / "headless")]) == 0
    assert quantize.main([str(root / "whole"), str(root / "small"), "--device", "cpu"]) == 0
    return {name: root / name for name in ("whole", "small", "headless")}


@pytest.mark.parametrize(
    ("which", "mode"), [("whole", "int8"), ("whole", "nf4-all"), ("small", "nf4"), ("headless", "int8")]
)
def test_ask_reads_writes_and_answers(folders: dict[str, Path], which: str, mode: str, capsys) -> None:
    asked = ["ask", str(SPOKEN), "--model", str(folders[which]), "--device", "cpu", "--json"]
    assert main.main([*asked, "--quantize", "auto" if which == "small" else mode]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "sent this" in result["transcript"].lower()
    assert (result["path"], result["quantize"]) == ("speech", mode)
    assert (result["reading"] is None) == (which == "headless")
    assert result["reply"] is not None


def test_a_checkpoint_without_an_emotion_head_says_so(folders: dict[str, Path], capsys) -> None:
    assert main.main(["ask", str(SPOKEN), "--model", str(folders["headless"]), "--device", "cpu"]) == 0
    assert "no reading: this checkpoint has no emotion head" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["whole", "small"])
def test_bench_measures_it(folders: dict[str, Path], which: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("REPEATS", 1), ("TOKENS", 8), ("TURNS", 2)):
        monkeypatch.setattr(bench, name, few)
    assert bench.main(["--model", str(folders[which]), "--device", "cpu", "--threads", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["quantize"] == ("nf4" if which == "small" else "none")
    assert min(figures[name] for name in ("decode_tokens_per_second", "decode_ratio_to_generate", "load_seconds")) > 0
    assert ("int8_cost_percent" in figures) == (which == "whole")


def test_plan_takes_it(folders: dict[str, Path], capsys) -> None:
    assert main.main(["plan", "--model", str(folders["small"]), "--device", "cpu", "--json"]) == 0
    assert [one["quantize"] for one in json.loads(capsys.readouterr().out)["estimates"]] == ["nf4"]
