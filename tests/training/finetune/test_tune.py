"""`tune`, `--plan`, `adopt` on a tiny checkpoint: whole, stopped, killed, moved, with a full disk, head and stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from assistant.events import EMOTIONS
from assistant.settings import load
from model.checkpoints import loader
from model.errors import BadInput, WeightsMissing
from tests.training.support.tiny_run import make_checkpoint
from training.__main__ import main
from training.finetune import tune as tuning
from training.finetune.options import TuneOptions
from training.finetune.plan import plan_tuning
from training.finetune.tune import tune
from training.runs.run_folder import checkpoints, read_progress

RATE = 16_000


@pytest.fixture(autouse=True)
def no_recogniser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.Transcriber, "load", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(loader.fetch, "ensure", lambda *_args, **_kwargs: Path())


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return make_checkpoint(folder)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty recordings; the pitch tells the emotion."""
    folder = tmp_path_factory.mktemp("sound")
    random, lines = np.random.default_rng(0), []
    for number in range(20):
        time = np.arange(int(RATE * random.uniform(0.6, 1.0))) / RATE
        samples = 0.3 * np.sin(2 * np.pi * (100 + 300 * (number % 5)) * time) + random.normal(0, 0.01, len(time))
        soundfile.write(folder / f"{number}.wav", samples, RATE)
        text = f"{('one', 'two', 'three', 'four')[number // 5]} small thing"
        lines.append({"audio": f"{number}.wav", "text": text, "emotion": EMOTIONS[number % 5]})
    lines += [{"audio": "gone.wav", "text": "x", "emotion": "sad"}, {"audio": "0.wav", "text": "x", "emotion": "glad"}]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "manifest.jsonl"


def options(run: Path, manifest: Path, start: Path, **changes: Any) -> TuneOptions:
    return TuneOptions.of({"run": run, "manifest": manifest, "model": str(start), "folds": 4, "steps": 8} | changes)


def head_of(run: Path) -> torch.Tensor:
    loaded = loader.load(str(run / "model"), quantize="none")
    assert loaded.model.emotion_head is not None
    return torch.cat([value.flatten() for value in loaded.model.emotion_head.state_dict().values()])


def test_a_head_is_tuned_and_judged(tmp_path: Path, manifest: Path, start: Path) -> None:
    summary = tune(options(tmp_path / "run", manifest, start))
    assert (summary["learnt_from"], summary["held_out_by"]) == (20, "recording")
    assert summary["dropped"] == {str(manifest): {"missing audio": 1, "unknown emotion": 1}}
    assert summary["reading"]["after"]["n"] == 20
    assert summary["verdict"] in ("better", "worse", "unclear")
    assert not summary["replies_depend_on_reading"]
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    stages = [line["stage"] for line in read_progress(tmp_path / "run")]
    assert [stage for at, stage in enumerate(stages) if stage not in stages[:at]] == [
        "prepare", "listen", "choose", "fit", "judge", "done",
    ]  # fmt: skip
    fitted = [line for line in read_progress(tmp_path / "run") if line["stage"] == "fit" and line["loss"]]
    assert all(line["validation"] and "validation_accuracy" in line for line in fitted)
    assert summary["why"] in (tmp_path / "run" / "model" / "card.md").read_text()
    before, after = (loader.load(str(one), quantize="none") for one in (start, tmp_path / "run" / "model"))
    assert after.model.config.emotion_threshold == pytest.approx(summary["thresholds"][1])
    names = {
        name
        for name, value in after.model.state_dict().items()
        if not torch.equal(value, before.model.state_dict()[name])
    }
    assert names <= {f"emotion_head.{name}" for name in ("weight", "offset", "centre", "temperature")}
    assert tune(options(tmp_path / "run", manifest, start)) == summary  # a finished run is not done again


def test_hidden_units_keep_their_bytes(tmp_path: Path, manifest: Path, start: Path) -> None:
    shutil.copytree(start, tmp_path / "start")
    (file,) = (tmp_path / "start").glob("*.safetensors")
    torch.manual_seed(0)
    tensors = load_file(file)
    size = tensors["emotion_head.weight"].shape[1]
    units = {"inner.weight": torch.randn(4, size), "inner.bias": torch.randn(4), "outer.weight": torch.randn(5, 4)}
    units = {f"emotion_head.{name}": value.half() for name, value in units.items()}
    save_file(tensors | units, file, {"format": "pt"})
    with pytest.raises(WeightsMissing, match=r"emotion_hidden that leaves emotion_head\.inner\.bias unread"):
        loader.load(str(tmp_path / "start"))
    settings = json.loads((tmp_path / "start" / "config.json").read_text())
    (tmp_path / "start" / "config.json").write_text(json.dumps(settings | {"emotion_hidden": 4}))
    tune(options(tmp_path / "run", manifest, tmp_path / "start"))
    written = load_file(tmp_path / "run" / "model" / file.name)
    assert written.keys() == (tensors | units).keys()
    assert all(written[name].dtype == torch.float16 and torch.equal(written[name], units[name]) for name in units)
    assert len(head_of(tmp_path / "run")) == 5 * size + size + 5 + 1 + 4 * size + 4 + 5 * 4


def test_stopped_and_resumed_it_is_as_if_it_had_not_been(
    tmp_path: Path, manifest: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(options(tmp_path / "whole", manifest, start))
    usual, heard = tuning.mean_frame, list[int]()

    def hear(*given: Any) -> torch.Tensor:
        heard.append(1)
        if len(heard) in (3, 7):
            (tmp_path / "run" / "stop").touch()
        if len(heard) == 12:
            raise KeyboardInterrupt
        return usual(*given)

    monkeypatch.setattr(tuning, "mean_frame", hear)
    for done in (3, 7):
        assert tune(options(tmp_path / "run", manifest, start))["stopped"]
        assert len(list((tmp_path / "run" / "features").iterdir())) == done
    with pytest.raises(KeyboardInterrupt):
        tune(options(tmp_path / "run", manifest, start))
    summary = tune(options(tmp_path / "run", manifest, start))
    assert len(heard) == 21  # nothing was heard twice but what the interrupt cut off
    assert torch.equal(head_of(tmp_path / "run"), head_of(tmp_path / "whole"))
    assert summary["reading"] == whole["reading"]
    seconds = [line["seconds"] for line in read_progress(tmp_path / "run") if "seconds" in line]
    assert seconds == sorted(seconds)


def test_a_run_goes_on_in_another_place(tmp_path: Path, manifest: Path, start: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copyfile(manifest, manifest.with_name("copy.jsonl"))
    assert tune(options(tmp_path / "run", manifest, start))["learnt_from"] == 20
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    assert tune(options(tmp_path / "moved", manifest.with_name("copy.jsonl"), start))["learnt_from"] == 20
    (tmp_path / "moved" / "summary.json").unlink()
    with pytest.raises(BadInput, match="folds"):
        tune(options(tmp_path / "moved", manifest, start, folds=3))


def test_a_full_disk_is_told_and_the_run_goes_on_later(
    tmp_path: Path, manifest: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "run"))

    with monkeypatch.context() as patch:
        patch.setattr(tuning.np, "save", full)
        with pytest.raises(WeightsMissing, match=r"No space left.*resumed"):
            tune(options(tmp_path / "run", manifest, start))
    assert tune(options(tmp_path / "run", manifest, start))["learnt_from"] == 20


def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path, manifest: Path, start: Path) -> None:
    one = manifest.with_name("one.jsonl")
    one.write_text(json.dumps({"audio": "0.wav", "text": "x", "emotion": "sad"}) + "\n")
    with pytest.raises(BadInput, match="two emotions"):
        tune(options(tmp_path / "run", one, start))
    with pytest.raises(BadInput, match="only its emotion head"):
        tune(options(tmp_path / "other", manifest, start, model="mini", what="stage2"))


def test_the_plan_measures_the_same_work(tmp_path: Path, manifest: Path, start: Path) -> None:
    plan = plan_tuning(options(tmp_path / "run", manifest, start))
    assert plan["fits"]
    assert plan["remedies"] == []
    assert plan["seconds"] == pytest.approx(sum(plan["parts"].values()), abs=0.1)
    assert plan["peak_bytes"] > 1e8
    assert not (tmp_path / "run").exists()  # a plan leaves nothing behind


def test_a_plan_that_does_not_fit_names_remedies(
    tmp_path: Path, manifest: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.finetune import plan as tune_plan

    monkeypatch.setattr(tune_plan, "peak_bytes", lambda: 1 << 60)
    plan = plan_tuning(options(tmp_path / "run", manifest, start))
    assert not plan["fits"]
    assert "close other programs" in plan["remedies"]


@pytest.mark.parametrize("what", ["stage2", "both"])
def test_stages_are_tuned_in_one_folder_and_can_be_stopped(
    tmp_path: Path, manifest: Path, start: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    given = options(run, manifest, start, what=what, steps=4, batch_size=4, validation=0.3, replies=1)
    from training.finetune import stages as tune_stages

    usual, begun = tune_stages.train, list[int]()

    def train(*words: Any) -> dict[str, Any]:
        begun.append(1)
        if len(begun) == 1:
            (run / "stop").touch()
        return usual(*words)

    monkeypatch.setattr(tune_stages, "train", train)
    assert tune(given)["stopped"]
    summary = tune(given)
    assert summary["checkpoint"] == str(run / "model")
    assert summary["training"]["steps"] == 4
    assert summary["reading"]["after"]["n"] == len(summary["recordings"]) > 0
    assert {"before", "after", "ratio"} <= summary["continuation"].keys() or not any(
        row["emotion"] == "neutral" for row in summary["recordings"]
    )
    assert "reply_after" in summary["recordings"][0]
    stages = {line["stage"] for line in read_progress(run)}
    assert {"stage 2", "judge", "done"} <= stages
    assert ("stage 1" in stages) == (what == "both")
    assert checkpoints(run / "stage-2")
    changed = head_of(run) - torch.cat(
        [v.flatten() for v in loader.load(str(start), quantize="none").model.emotion_head.state_dict().values()]  # type: ignore[union-attr]
    )
    assert changed.abs().max() > 0


def test_the_stages_plan_is_measured_too(tmp_path: Path, manifest: Path, start: Path) -> None:
    plan = plan_tuning(options(tmp_path / "run", manifest, start, what="stage2", steps=4, batch_size=4))
    assert {"label 2", "stage 2", "judge"} <= plan["parts"].keys()
    assert plan["fits"]
    assert list(tmp_path.iterdir()) == []


def test_into_use_and_back_from_the_command_line(
    tmp_path: Path, manifest: Path, start: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "home"))
    run = tmp_path / "run"
    assert main(["adopt", str(run)]) == 2
    words = ["tune", str(run), "--manifest", str(manifest), "--model", str(start), "--folds", "4", "--steps", "3"]
    assert main([*words, "--json"]) == 0
    settings = tmp_path / "home" / "settings.toml"
    assert main(["adopt", str(run)]) == 0
    assert load(settings)[0].model.source == str(run / "model")
    assert main(["adopt", str(run), "--undo"]) == 0
    assert load(settings)[0].model.source == "mini"
    capsys.readouterr()
    assert main(["adopt", str(run), "--undo"]) == 2
    assert "before" in capsys.readouterr().err
