"""Files that an earlier version wrote (tests/compat) open and work with today's code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import main
from assistant.events import Spoken
from assistant.finetune.run_watcher import Stage, TuningRun, command_of, in_use, roll_back, runs
from assistant.sessions.corrections import corrections
from assistant.sessions.export import FORMATS, export, import_archive
from assistant.sessions.maintenance import tidy
from assistant.sessions.reader import as_json, read_session, sessions
from assistant.settings import load, save
from model.audio.files import read_audio
from model.checkpoints import loader, tuned
from model.inference.engine import Engine
from model.weights import store
from tests import ROOT
from training.__main__ import main as training_main
from training.finetune.recordings import check
from training.runs.run_folder import read_progress

KEPT = ROOT / "tests" / "compat" / "v1" / "home"
WRITTEN_AT = "/tmp/undertone-v1"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A copy of what that version kept, at the place that its files name."""
    folder = tmp_path / "home"
    shutil.copytree(KEPT, folder)
    for name in ("settings.toml", "expected.json", "runs/*/run.toml", "runs/*/*.json*"):
        for path in folder.glob(name):
            path.write_text(path.read_text("utf-8").replace(WRITTEN_AT, str(folder)), "utf-8")
    return folder


def as_then(session: dict[str, Any]) -> dict[str, Any]:
    """A session without what that version did not know: the candidates of a reading."""
    for turn in session["turns"]:
        if turn["reading"]:
            turn["reading"].pop("candidates")
    return session


def expected(home: Path, what: str) -> Any:
    return json.loads((home / "expected.json").read_text("utf-8"))[what]


def whole_session(home: Path) -> Path:
    return home / "sessions" / expected(home, "session")["name"]


def test_a_session_is_read_back_whole(home: Path) -> None:
    read = read_session(whole_session(home))
    assert as_then(as_json(read)) == expected(home, "session")
    assert [one.corrected for one in read.turns] == ["angry", None, None]
    spoken = read.turns[0].turn.message
    assert isinstance(spoken, Spoken)
    assert np.abs(spoken.samples).max() > 0.1


@pytest.mark.parametrize("form", FORMATS)
def test_a_session_is_exported(home: Path, tmp_path: Path, form: str) -> None:
    path = export(read_session(whole_session(home)), form, tmp_path)
    if form in ("json", "srt", "markdown"):
        assert "The bakery opens at eight." in path.read_text("utf-8")
    else:
        assert path.stat().st_size > 10_000


def test_an_archive_is_imported(home: Path, tmp_path: Path) -> None:
    (archive,) = home.glob("*.undertone")
    imported = as_then(as_json(read_session(import_archive(archive, tmp_path / "sessions"))))
    assert imported | {"name": ""} == expected(home, "session") | {"name": ""}


def test_what_was_being_said_at_a_kill_is_recovered(home: Path) -> None:
    (cut_off,) = (folder for folder in sessions(home / "sessions") if folder != whole_session(home))
    assert [told for told in tidy(home / "sessions") if "recovered" in told]
    first, second = read_session(cut_off).turns
    assert (first.turn.transcript, first.turn.reply) == ("Are you there?", "Yes, I am.")
    assert isinstance(second.turn.message, Spoken)
    assert len(second.turn.message.samples) == 8000
    assert tidy(home / "sessions") == []


def test_every_setting_is_kept(home: Path) -> None:
    settings, told = load(home / "settings.toml")
    assert told == ""
    read = settings.model_dump(mode="json")
    for section, values in expected(home, "settings").items():
        kept = read[section] if isinstance(values, bool) else {name: read[section][name] for name in values}
        assert kept == values
    save(home / "settings.toml", settings)
    assert load(home / "settings.toml") == (settings, "")


def test_corrections_can_be_learnt_from(home: Path) -> None:
    kept = corrections(home / "corrections.jsonl")
    assert [(one.emotion, one.read_as, one.turn) for one in kept] == [("angry", "sad", 1), ("neutral", None, 2)]
    rows = check(home / "corrections.jsonl", {})
    assert [(row.emotion, row.text) for row in rows] == [
        ("angry", "The café is closed today."),
        ("neutral", "Never mind."),
    ]
    assert not [problem.kind for row in rows for problem in row.heard if problem.kind == "unreadable"]


def test_runs_are_shown(home: Path) -> None:
    stopped, finished = runs(home / "runs")
    assert [run.name for run in (stopped, finished)] == ["stopped · 2026-11-29 11:15", "finished · 2026-11-29 10:15"]
    assert [run.stage for run in (stopped, finished)] == [Stage.STOPPED, Stage.FINISHED]
    assert (finished.summary or {})["learnt_from"] == 10
    assert {line["stage"] for line in finished.progress} >= {"prepare", "listen", "fit", "judge", "done"}
    assert read_progress(finished.folder) == finished.progress
    assert finished.options["steps"] == 12
    assert command_of(stopped)[:3] == [str(stopped.folder), "--manifest", str(stopped.folder / "manifest.jsonl")]


def test_an_adopted_checkpoint_is_in_use_and_can_be_given_up(home: Path) -> None:
    settings, _ = load(home / "settings.toml")
    run = TuningRun.open(home / "runs" / "2026-11-29-101500-finished")
    assert in_use(run, settings)
    found = tuned.preset_of(run.checkpoint, loader.presets())
    assert found is not None
    assert found["preset"] == "mini"
    assert roll_back(run, settings)["source"] == "mini-0.5b"


@pytest.mark.parametrize("name", ["BLSP_HOME", "UNDERTONE_HOME"])
def test_the_variable_that_names_the_users_folder(
    home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("UNDERTONE_HOME", raising=False)
    monkeypatch.setenv("BLSP_HOME", str(tmp_path / "another"))
    monkeypatch.setenv(name, str(home))
    assert main.main(["sessions", "list", "--json"]) == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert whole_session(home).name in names
    assert store.home() == home


@pytest.fixture
def with_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy with the weights that tests share."""
    (home / "models").symlink_to(store.home() / "models")
    monkeypatch.setenv("UNDERTONE_HOME", str(home))
    return home


@pytest.mark.real
def test_a_tuned_checkpoint_reads_as_it_did(with_weights: Path) -> None:
    settings, _ = load(with_weights / "settings.toml")
    engine = Engine(loader.load(settings.model.source, device="cpu"))
    for name, before in expected(with_weights, "readings").items():
        reading = engine.hear(Spoken(read_audio(with_weights / "recordings" / name))).reading
        assert reading is not None
        assert reading.label == before["label"]
        logits = reading.contributions.sum(0) + reading.offset
        assert logits == pytest.approx(np.add(before["contributions"], before["offset"]), abs=0.05)


@pytest.mark.real
def test_a_stopped_run_goes_on(with_weights: Path) -> None:
    stopped, finished = runs(with_weights / "runs")
    assert training_main(["tune", *command_of(stopped), "--json"]) == 0
    stopped.refresh()
    assert stopped.stage is Stage.FINISHED
    summary, whole = stopped.summary or {}, finished.summary or {}
    assert summary["reading"] == whole["reading"]
    assert (stopped.checkpoint / "head.safetensors").is_file()
