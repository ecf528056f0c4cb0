"""The fine-tuning wizard with a scripted training process: display, questions, recovery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pytestqt.qtbot import QtBot

from assistant.finetune.run_watcher import MODEL, OPTIONS, SUMMARY, TuningRun
from tests.ui.support.tuning_child import LINES, PLAN, Child, child, page, plan, run_of, shown, summary, tuning
from ui.core.app import App
from ui.finetune.plan_page import format_estimate
from ui.finetune.wizard import FineTunePage

__all__ = ["child", "page", "tuning"]  # fixtures


# ---- plan


def test_the_plan_is_measured_and_said_in_words(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App) -> None:
    plan(page, qtbot)
    assert page.plan.forecast.text() == "About 40 seconds and 1.5 GB of memory, on this CPU."
    assert page.plan.start.isEnabled()
    words = child.emitted[-1]
    assert words[0] == "tune"
    assert words[-2:] == ["--plan", "--json"]
    assert (words[words.index("--model") + 1], words[words.index("--what") + 1]) == ("mini", "head")
    assert not page.plan.what.buttons["stage2"].isEnabled()  # mini has no adapter
    assert "labels alone" in page.plan.why.text()
    page.plan.values.fields["folds"].setText("7")
    assert not page.plan.start.isEnabled()  # what was measured is no longer what is asked for
    qtbot.waitUntil(lambda: page.plan.start.isEnabled())
    assert child.emitted[-1][child.emitted[-1].index("--folds") + 1] == "7"
    page.plan.values.fields["folds"].setText("")
    assert page.plan.values.arguments("head")[:2] == ["--folds", "5"]


def test_a_checkpoint_with_an_adapter_can_learn_more(
    page: FineTunePage, child: Child, qtbot: QtBot, tuning: App, tmp_path: Path
) -> None:
    tuning.change("model", folders=(str(tmp_path / "blsp"),))
    plan(page, qtbot)
    page.plan.source.setCurrentIndex(page.plan.source.findData(str(tmp_path / "blsp")))
    page.plan.source.picked.emit(str(tmp_path / "blsp"))
    page.plan.what.buttons["both"].click()
    qtbot.waitUntil(lambda: page.plan.start.isEnabled())
    words = child.emitted[-1]
    assert words[words.index("--what") + 1] == "both"
    assert {"--learning-rate", "--rows-at-once", "--validation"} <= set(words)
    assert "--folds" not in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"plan": PLAN | {"fits": False, "remedies": ["close other programs", "choose a smaller checkpoint"]}},
            "close other programs, or choose",
        ),
        ({"plan": {}, "plan_code": 3}, "measurement failed"),
    ],
)
def test_a_refusal_names_the_remedy(
    page: FineTunePage, child: Child, qtbot: QtBot, changes: dict[str, Any], words: str
) -> None:
    child.write(**changes)
    plan(page, qtbot)
    assert words in page.plan.message.text.text()
    assert not page.plan.start.isEnabled()


def test_times_in_words() -> None:
    assert [format_estimate(seconds) for seconds in (3, 42, 600, 9000)] == [
        "About 5 seconds", "About 40 seconds", "About 10 minutes", "About 2.5 hours",
    ]  # fmt: skip


# ---- training


def begin(page: FineTunePage, qtbot: QtBot) -> None:
    plan(page, qtbot)
    page.plan.start.click()
    qtbot.waitUntil(lambda: len(run_of(page).progress) >= 2)


def test_paused_gone_on_and_finished(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App) -> None:
    begin(page, qtbot)
    talk: Any = tuning.talk
    assert [call[0] for call in talk.calls if "model" in call[0]] == ["release_model"]
    qtbot.waitUntil(lambda: page.training.phase.text() == "Processing the recordings · 3 / 9")
    assert page.training.facts["left"].text() == "0:36"  # two seconds by its own pace, then fit and judge by the plan
    assert page.training.facts["memory"].text() == "— / 1.5 GB"
    page.training.pause.click()
    assert not page.training.pause.isEnabled()
    qtbot.waitUntil(lambda: not page.training.busy)
    assert page.training.phase.text().startswith("Paused")
    assert [call[0] for call in talk.calls if "model" in call[0]][-1] == "replace_model"  # the assistant is back
    (run_of(page).folder / "go").touch()
    page.training.resume.click()
    qtbot.waitUntil(lambda: page.page is page.result)
    assert "60% before, 80% after" in page.result.verdict.text()
    assert [line[:1] for line in child.emitted if "--plan" not in line and line[0] == "tune"] == [["tune"], ["tune"]]
    assert len(page.training.loss.series) == 2


def test_a_run_left_unfinished_is_offered_again(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App) -> None:
    begin(page, qtbot)
    folder = run_of(page).folder
    assert page.training.job is not None
    page.training.job.stop()  # killed from outside
    qtbot.waitUntil(lambda: not page.training.busy)
    assert "go on where it was" in page.training.message.text.text()
    page.show_start()
    again = shown(tuning, qtbot)
    assert again.start._list.count() == 1
    (folder / "go").touch()
    again.open_run(folder)
    assert again.page is again.training
    again.training.resume.click()
    qtbot.waitUntil(lambda: again.page is again.result)
    assert not (folder / "failed.txt").exists()


def test_a_failure_is_told_where_it_happened(page: FineTunePage, child: Child, qtbot: QtBot) -> None:
    child.write(lines=LINES[:1], report="The disk is full: make room and start again.", code=3)
    plan(page, qtbot)
    page.plan.start.click()
    qtbot.waitUntil(lambda: page.training.message.isVisible())
    assert page.training.message.text.text() == "The disk is full: make room and start again."
    child.write(lines=LINES, report="")
    (run_of(page).folder / "go").touch()
    page.training.resume.click()
    qtbot.waitUntil(lambda: page.page is page.result)


def test_a_disk_that_fills_up_pauses_the_run(
    page: FineTunePage, child: Child, qtbot: QtBot, tuning: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tuning.notified.connect(lambda message: said.append(message.text))
    begin(page, qtbot)
    monkeypatch.setattr(TuningRun, "free_bytes", lambda _run: 10_000)
    qtbot.waitUntil(lambda: not page.training.busy)
    assert "disk is almost full" in said[-1]


def test_closing_the_window_leaves_a_run_that_goes_on(
    page: FineTunePage, child: Child, qtbot: QtBot, tuning: App
) -> None:
    begin(page, qtbot)
    folder = run_of(page).folder
    tuning.close()
    assert TuningRun.open(folder).stage.value == "stopped"


# ---- result


def a_result(tuning: App, **changes: Any) -> TuningRun:
    folder = tuning.runs / "2026-01-02-030405-voice"
    (folder / MODEL).mkdir(parents=True)
    (folder / MODEL / "config.json").write_text("{}")
    (folder / OPTIONS).write_text('model = "mini"\n')
    (folder / SUMMARY).write_text(json.dumps(summary(**changes)))
    return TuningRun.open(folder)


def test_into_use_with_one_click_and_back_with_one(page: FineTunePage, tuning: App, qtbot: QtBot) -> None:
    run = a_result(tuning)
    before = tuning.settings
    page.open_run(run.folder)
    result = page.result
    assert result.use.isVisible()
    assert not result.back.isVisible()
    result.use.click()
    assert tuning.settings.model.source == str(run.checkpoint)
    talk: Any = tuning.talk
    assert talk.calls[-1] == ("replace_model", tuning.settings.model.choice)
    assert result.back.isVisible()
    assert not result.discard.isEnabled()
    result.back.click()
    assert tuning.settings == before
    assert talk.calls[-1] == ("replace_model", before.model.choice)


def test_what_got_worse_is_never_used_without_saying_so(page: FineTunePage, tuning: App) -> None:
    page.show_result(a_result(tuning, verdict="worse", why="It reads fewer recordings rightly."))
    assert page.result.use.text() == "Use it anyway"
    assert page.result.verdict.text() == "It reads fewer recordings rightly."


def test_export_and_discard(page: FineTunePage, tuning: App, qtbot: QtBot, tmp_path: Path) -> None:
    run = a_result(tuning)
    page.show_result(run)
    said: list[Any] = []
    tuning.notified.connect(said.append)
    page.result.export_to(str(tmp_path))
    qtbot.waitUntil(lambda: "Exported" in page.result.message.text.text())
    assert (tmp_path / run.folder.name / "config.json").is_file()
    page.result.export_to(str(tmp_path))
    qtbot.waitUntil(lambda: "already exists" in page.result.message.text.text())
    page.result.discard.click()
    assert not run.folder.exists()
    assert page.page is page.start
    said[-1].act()
    assert run.folder.exists()


def test_a_folder_from_another_machine_shows_its_figures(page: FineTunePage, tuning: App, tmp_path: Path) -> None:
    run = a_result(tuning)
    (run.checkpoint / "config.json").unlink()
    run.folder.rename(tmp_path / "elsewhere")
    page.choose(tmp_path / "elsewhere")
    assert page.page is page.result
    assert not page.result.use.isVisible()
    assert "not in this folder" in page.result.use_note.text()
    page.result.play(Path("/r/0.wav"))  # nor are the recordings
    assert "cannot be played" in page.result.message.text.text()


def test_a_folder_that_is_no_run(page: FineTunePage, tuning: App, tmp_path: Path) -> None:
    said: list[str] = []
    tuning.notified.connect(lambda message: said.append(message.text))
    page.open_run(tmp_path)
    assert "no tuning run" in said[-1]


def test_corrections_are_offered_once_there_are_some(
    page: FineTunePage, tuning: App, child: Child, qtbot: QtBot
) -> None:
    assert not page.start.corrected.isEnabled()
    soundfile.write(tuning.services.home / "a.wav", np.zeros(800), 8000)
    line = {
        "audio": "a.wav",
        "text": "words",
        "emotion": "sad",
        "read_as": "happy",
        "session": "s",
        "turn": 1,
        "consent": True,
    }
    tuning.corrections.write_text(json.dumps(line) + "\n")
    page.start.refresh()
    assert page.start.corrected.text() == "My corrections (1)"
    page.start.corrected.click()
    qtbot.waitUntil(lambda: not page.recordings.progress.running)
    assert child.emitted[-1] == ["check", str(tuning.corrections), "--json"]
