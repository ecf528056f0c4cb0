"""The demonstration on a tiny checkpoint: every step of the pipeline, and a second run that repeats none of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.support.tiny_run import make_checkpoint
from training.commands.demo import demo

STEPS = ["corpus", "init", *(f"{step} {stage}" for stage in (1, 2) for step in ("label", "clean", "prepare", "train"))]


@pytest.mark.real
def test_the_whole_pipeline_and_again(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    parts = {"speech": str(tmp_path / "speech"), "text": str(tmp_path / "text")}
    found = demo(tmp_path / "demo", sentences=10, steps=1, **parts)
    assert list(found["seconds"]) == [*STEPS, "evaluate"]
    assert (Path(found["checkpoint"]) / "model.safetensors").is_file()
    assert {"before", "after"} <= found.keys()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo" / "corpus").rglob("*.flac")}
    again = demo(tmp_path / "demo", sentences=10, steps=1, **parts)
    assert again["after"] == found["after"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "demo" / "corpus").rglob("*.flac")} == written
