"""Fine-tuning without a window and without torch: recordings, run folders, taking a checkpoint into use and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from filelock import FileLock

from assistant.errors import AssistantError
from assistant.events import EMOTIONS
from assistant.finetune.run_watcher import (
    ADOPTED,
    FAILED,
    LOCK,
    MANIFEST,
    MODEL,
    OPTIONS,
    PROGRESS,
    STOP,
    SUMMARY,
    Stage,
    TuningRun,
    adopt,
    command_of,
    discard,
    in_use,
    restore,
    roll_back,
    runs,
    sweep,
)
from assistant.finetune.tuning_data import Problem, Recording, overview, read_sound, write_manifest
from assistant.settings import Settings

CLIPPED = Problem("clipped", "cut off", fatal=False)
SILENT = Problem("silent", "nothing in it")


def recording(emotion: str = "sad", text: str = "words", **values: object) -> Recording:
    return Recording(f"/r/{emotion}.wav", text, emotion, **{"seconds": 3.0, **values})  # type: ignore[arg-type]


def test_a_recording_survives_the_pipe() -> None:
    one = recording(heard=(CLIPPED, SILENT), speaker="anna", suggestion="happy")
    assert Recording.of(json.loads(json.dumps(one.as_dict()))) == one


def test_what_keeps_a_recording_out() -> None:
    assert recording().usable({})
    assert recording("Sad ").usable({})
    assert recording(heard=(CLIPPED,)).usable({})
    assert not recording(heard=(CLIPPED, SILENT)).usable({})
    assert not recording(excluded=True).usable({})
    assert not recording("").usable({})
    assert not recording("joy").usable({})
    assert recording("joy").usable({"joy": "happy"})
    assert not recording("joy").usable({"joy": "ignore"})
    assert recording(text=" ").usable({})
    assert not recording(text=" ").usable({}, words=True)


def test_problems_name_the_remedy_worst_first() -> None:
    found = recording("joy", "", heard=(CLIPPED,), suggestion="happy").problems({})
    assert [one.kind for one in found] == ["unknown emotion", "clipped", "no transcript"]
    assert "maybe happy" in found[0].message
    assert [one.kind for one in recording("joy").problems({"joy": "ignore"})] == ["no emotion"]


def test_an_overview_counts_and_weighs() -> None:
    rows = [recording(emotion, speaker="anna") for emotion in ("sad", "sad", "happy", "happy")]
    found = overview([*rows, recording(heard=(SILENT,))], {})
    assert (found.recordings, found.usable, found.speakers, found.refusal) == (5, 4, 1, "")
    assert found.minutes == pytest.approx(0.2)
    assert found.emotions == {**dict.fromkeys(EMOTIONS, 0), "sad": 2, "happy": 2}
    assert found.problems == {"silent": 1}
    assert "neutral, angry or surprise" in found.remarks[0]
    assert any("few" in remark for remark in found.remarks)
    assert "two emotions" in overview(rows[:2], {}).refusal
    assert "two recordings" in overview(rows[1:3], {}).refusal
    crowded = overview([recording()] * 20 + [recording("happy")] * 4, {})
    assert any("balance" in remark for remark in crowded.remarks)
    assert "two emotions" in overview([], {}).refusal


def test_a_manifest_holds_what_can_be_used(tmp_path: Path) -> None:
    rows = [recording("joy", " words "), recording("sad", ""), recording("angry", excluded=True)]
    assert write_manifest(tmp_path / "deep" / MANIFEST, rows, {"joy": "happy"}) == 2
    lines = [json.loads(line) for line in (tmp_path / "deep" / MANIFEST).read_text().splitlines()]
    assert lines[0] == {"audio": "/r/joy.wav", "text": "words", "emotion": "happy"}
    assert lines[1]["emotion"] == "sad"
    assert write_manifest(tmp_path / MANIFEST, rows, {"joy": "happy"}, words=True) == 1


def test_sound_to_be_played(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full((100, 2), 0.25), 8000)
    samples, rate = read_sound(tmp_path / "a.wav")
    assert (samples.shape, rate, float(samples[0])) == ((100,), 8000, 0.25)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    with pytest.raises(AssistantError, match=r"b\.wav"):
        read_sound(tmp_path / "b.wav")


# ---- runs


def a_run(folder: Path, **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OPTIONS).write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items()))
    return folder


def finished(folder: Path, verdict: str = "better") -> TuningRun:
    a_run(folder, model="mini")
    (folder / MODEL).mkdir()
    (folder / MODEL / "config.json").write_text("{}")
    (folder / SUMMARY).write_text(json.dumps({"verdict": verdict, "why": "It reads more."}))
    return TuningRun.open(folder)


def test_a_run_is_followed_line_by_line(tmp_path: Path) -> None:
    run = TuningRun.open(a_run(tmp_path / "run", model="mini", steps=60))
    assert (run.options, run.progress, run.stage) == ({"model": "mini", "steps": 60}, [], Stage.STOPPED)
    with (run.folder / PROGRESS).open("a") as file:
        file.write('{"stage": "listen", "step": 1}\nnoise\n[1]\n{"stage": "li')
    assert run.refresh() == [{"stage": "listen", "step": 1}]
    assert run.refresh() == []
    with (run.folder / PROGRESS).open("a") as file:
        file.write('sten", "step": 2}\n')
    assert [line["step"] for line in run.refresh()] == [2]
    (run.folder / PROGRESS).write_text('{"step": 7}\n')  # begun anew
    assert (run.refresh(), len(run.progress)) == ([{"step": 7}], 1)


def test_where_a_run_stands(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ValueError, match="no tuning run"):
        TuningRun.open(folder)
    (folder / MANIFEST).write_text("")
    assert TuningRun.open(folder).stage is Stage.PLANNED
    run = TuningRun.open(a_run(folder, model="mini"))
    with FileLock(folder / LOCK):
        assert run.stage is Stage.RUNNING
    assert run.stage is Stage.STOPPED
    run.ask_to_stop()
    assert (folder / STOP).exists()
    run.note_end(-1, "")
    assert run.stage is Stage.FAILED
    assert "memory" in TuningRun.open(folder).why
    run.note_end(3, "The disk is full.")
    assert (folder / FAILED).read_text() == "The disk is full.\n"
    run.note_end(0, "")
    assert (run.stage, TuningRun.open(folder).why) == (Stage.STOPPED, "")
    (folder / SUMMARY).write_text("{}")
    run.refresh()
    assert run.stage is Stage.FINISHED
    assert run.free_bytes() > 0


def test_runs_are_listed_the_latest_first(tmp_path: Path) -> None:
    assert runs(tmp_path / "none") == []
    for name in ("2026-01-02-030405-anna", "2026-01-03-101112-my-voice", "other"):
        a_run(tmp_path / name, model="mini")
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").write_text("")
    assert [run.name for run in runs(tmp_path)] == ["other", "my-voice · 2026-01-03 10:11", "anna · 2026-01-02 03:04"]


def test_the_words_that_go_on_with_a_run_follow_its_folder(tmp_path: Path) -> None:
    run = TuningRun.open(
        a_run(tmp_path / "moved", run="/old/place", manifest="/old/place/manifest.jsonl", rows_at_once=2)
    )
    assert command_of(run) == [str(run.folder), "--manifest", "/old/place/manifest.jsonl", "--rows-at-once", "2"]
    (run.folder / MANIFEST).write_text("")
    assert str(run.folder / MANIFEST) in command_of(run)
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned" / MANIFEST).write_text("")
    with pytest.raises(ValueError, match="never begun"):
        command_of(TuningRun.open(tmp_path / "planned"))


def test_a_discarded_run_can_come_back_until_it_is_swept(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    kept = discard(run)
    assert runs(tmp_path) == []
    restore(kept)
    assert [one.stage for one in runs(tmp_path)] == [Stage.FINISHED]
    (tmp_path / ".new.probe").mkdir()
    kept = discard(run)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- into use, and back


def test_into_use_and_back_restores_the_settings(tmp_path: Path) -> None:
    before = Settings().changed("model", source="mini-0.5b", quantize="none", folders=("/a",))
    run = finished(tmp_path / "run")
    now = before.changed("model", **adopt(run, before))
    assert in_use(run, now)
    assert not in_use(run, before)
    assert now.model.source == str(run.checkpoint)
    assert now.model.folders == ("/a", str(run.checkpoint))
    again = now.changed("model", **adopt(run, now))  # a second click does not forget what was before
    assert again == now
    assert again.changed("model", **roll_back(run, again)) == before
    assert not (run.folder / ADOPTED).exists()
    with pytest.raises(ValueError, match="before"):
        roll_back(run, before)


def test_one_tuned_from_another_goes_back_to_it(tmp_path: Path) -> None:
    first, second, settings = finished(tmp_path / "a"), finished(tmp_path / "b"), Settings()
    one = settings.changed("model", **adopt(first, settings))
    two = one.changed("model", **adopt(second, one))
    assert two.changed("model", **roll_back(second, two)) == one
    assert one.changed("model", **roll_back(first, one)) == settings


def test_an_unfinished_run_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finish"):
        adopt(TuningRun.open(a_run(tmp_path / "run", model="mini")), Settings())
