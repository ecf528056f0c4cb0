"""Tuned checkpoints: written whole, read without trust, loaded beside the preset's parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from assistant.events import Spoken
from model.audio.files import read_audio
from model.audio.prosody import PROSODY_FEATURES
from model.checkpoints import loader, tuned
from model.commands import manager
from model.errors import WeightsMissing
from model.inference.engine import Engine
from model.nn.emotion import EmotionHead
from model.weights import fetch
from model.weights.store import STAMP

PRESET = {"speech": "whisper-x", "text": "text-x", "head": "mini", "config": {}, "generation": {}}
READING = {"layers": [2], "features": [], "temperature": 1.0, "threshold": 0.6, "frame_group": 4}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the two parts' stamps."""
    monkeypatch.setattr(fetch, "home", lambda: tmp_path / "home")
    for name in ("whisper-x", "text-x"):
        folder = tmp_path / "home" / "models" / name
        folder.mkdir(parents=True)
        files = {"model.safetensors": {"size": 1, "sha256": name}, "config.json": {"size": 2, "sha256": "c"}}
        (folder / STAMP).write_text(json.dumps({"files": files}))
        (folder / "config.json").write_text(json.dumps({"encoder_layers": 6}))
    return tmp_path / "home" / "models"


@pytest.fixture
def folder(tmp_path: Path, parts: Path) -> Path:
    head = EmotionHead(8)
    tuned.save(tmp_path / "tuned", "x", PRESET, head.state_dict(), READING)
    return tmp_path / "tuned"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_it_is_small_and_names_its_parts(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000
    found = tuned.preset_of(folder, {"x": PRESET})
    assert found is not None
    assert (found["preset"], found["head"], found["speech"]) == ("x", str(folder), "whisper-x")
    tuned.check(found)
    assert tuned.preset_of(folder.parent, {"x": PRESET}) is None
    tuned.save(folder, "x", PRESET, EmotionHead(4).state_dict(), READING)  # replaced whole
    assert sorted(path.name for path in folder.parent.iterdir()) == ["home", "tuned"]


def test_a_preset_of_this_project_has_nothing_to_compare() -> None:
    tuned.check(PRESET)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"preset": "unheard-of"}, "not a preset"),
        ("config.json", {"preset": ["x"]}, "not a preset"),
        ("reading.json", {"layers": []}, "invalid settings"),
        ("reading.json", {"layers": ["2"]}, "invalid settings"),
        ("reading.json", {"threshold": 2.0}, "invalid settings"),
        ("reading.json", {"threshold": "high"}, "invalid settings"),
        ("reading.json", {"frame_group": None}, "invalid settings"),
        ("reading.json", {"frame_group": 0}, "invalid settings"),
        *(
            ("reading.json", {"hidden": hidden}, "invalid settings")
            for hidden in (-1, True, 8.0, None, "8", [], 1 << 20)
        ),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, file: str, values: dict[str, Any], words: str) -> None:
    change(folder / file, **values)
    with pytest.raises(WeightsMissing, match=words):
        tuned.preset_of(folder, {"x": PRESET})


def test_other_parts_than_it_was_tuned_on_are_refused(folder: Path, parts: Path) -> None:
    found = tuned.preset_of(folder, {"x": PRESET})
    assert found is not None
    files = {"model.safetensors": {"size": 1, "sha256": "another"}}
    (parts / "whisper-x" / STAMP).write_text(json.dumps({"files": files}))
    with pytest.raises(WeightsMissing, match="other weights"):
        tuned.check(found)
    (parts / "whisper-x" / STAMP).unlink()
    with pytest.raises(WeightsMissing, match="fetch whisper-x again"):
        tuned.check(found)


def test_a_head_of_no_numbers_or_layers_that_are_not_there(tmp_path: Path, parts: Path) -> None:
    head = EmotionHead(8)
    with torch.no_grad():
        head.weight[0, 0] = float("nan")
    tuned.save(tmp_path / "nan", "x", PRESET, head.state_dict(), READING)
    with pytest.raises(WeightsMissing, match="NaN or infinite"):
        tuned.check(tuned.preset_of(tmp_path / "nan", {"x": PRESET}) or {})
    tuned.save(tmp_path / "deep", "x", PRESET, EmotionHead(8).state_dict(), READING | {"layers": [7]})
    with pytest.raises(WeightsMissing, match="layers"):
        tuned.check(tuned.preset_of(tmp_path / "deep", {"x": PRESET}) or {})


def test_a_damaged_head_is_named(folder: Path) -> None:
    found = tuned.preset_of(folder, {"x": PRESET})
    (folder / "head.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(WeightsMissing, match=r"head.safetensors is damaged: tune it again"):
        tuned.check(found or {})


def test_a_head_that_is_missing(folder: Path) -> None:
    (folder / "head.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="not an emotion head"):
        tuned.preset_of(folder, {"x": PRESET})


@pytest.mark.real
def test_mini_with_its_own_head_is_mini(tmp_path: Path) -> None:
    recording = Spoken(read_audio(loader.RESOURCES / "samples" / "weasels.flac"))
    mini = loader.load("mini")
    head = mini.model.emotion_head
    assert head is not None
    reading = json.loads((loader.RESOURCES / "mini" / "people" / "reading.json").read_text())
    tuned.save(tmp_path / "same", "mini", loader.presets()["mini"], head.state_dict(), reading)
    same = loader.load(str(tmp_path / "same"))
    one, other = (Engine(each) for each in (mini, same))
    assert one.hear(recording).reading.as_dict() == other.hear(recording).reading.as_dict()  # type: ignore[union-attr]
    assert "".join(one.reply([], recording)) == "".join(other.reply([], recording))
    assert loader.inspect(str(tmp_path / "same")).preset
    about = manager.describe(str(tmp_path / "same"))
    assert (about["kind"], about["state"], about["reads_emotion"]) == ("checkpoint", "ready", True)
    assert "fitted on these parts" in manager.verify(str(tmp_path / "same"), lambda _: None)["checked"][-1]
    linear = EmotionHead(512 + len(PROSODY_FEATURES))  # as those that were tuned before heads had hidden units
    before = {"layers": [2], "threshold": 0.5, "frame_group": 4}
    tuned.save(tmp_path / "before", "mini", loader.presets()["mini"], linear.state_dict(), before)
    old = Engine(loader.load(str(tmp_path / "before"))).hear(recording).reading
    assert old is not None
    assert old.probabilities.tolist() == pytest.approx([0.2] * 5)
    shutil.copyfile(tmp_path / "same" / "config.json", tmp_path / "same" / "head.safetensors")
    with pytest.raises(WeightsMissing, match=r"same.*tune it again"):
        loader.load(str(tmp_path / "same"))
