"""The fine-tuning pages with a scripted training in the child's place: what they show, ask for, and survive."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PySide6.QtCore import QEvent, QPointF, Qt
from PySide6.QtGui import QKeyEvent, QMouseEvent
from PySide6.QtWidgets import QApplication, QScrollArea, QStyleOptionViewItem
from pytestqt.qtbot import QtBot

from assistant.events import EMOTIONS
from assistant.finetune import MODEL, OPTIONS, SUMMARY, TuningRun
from assistant.tuning_data import Problem, Recording
from ui import theme
from ui.app import App, Services
from ui.finetune_plan import minutes
from ui.finetune_table import EMOTION, PLAY, PROBLEM, TEXT, USE
from ui.finetune_wizard import FineTunePage
from ui.plots import Balance, Confusion, Curves, Series, ticks

TRAINING = """
import json, os, pathlib, sys, time
words = sys.argv[1:]
assert words[:2] == ["-m", "training"], words
command, script = words[2], json.loads(pathlib.Path(os.environ["SCRIPT"]).read_text())
with open(script["log"], "a") as log:
    log.write(json.dumps(words[2:]) + "\\n")
def say(value):
    print(json.dumps(value), flush=True)
if command == "check":
    for row in script["rows"]:
        say({"recording": row})
    say({"recordings": len(script["rows"])})
elif command == "transcribe":
    for file in words[4:]:
        say({"audio": file, "text": "heard words", "error": None})
elif "--plan" in words:
    say(script["plan"])
    sys.exit(script.get("plan_code", 0))
else:
    run = pathlib.Path(words[3])
    (run / "run.toml").write_text('model = "mini"\\nwhat = "head"\\n')
    (run / "stop").unlink(missing_ok=True)
    progress = run / "progress.jsonl"
    for number, line in enumerate(script["lines"]):
        if progress.exists() and len(progress.read_text().splitlines()) > number:
            continue
        with progress.open("a") as file:
            file.write(json.dumps(line) + "\\n")
        while line.get("wait") and not (run / "stop").exists() and not (run / "go").exists():
            time.sleep(0.01)
        if (run / "stop").exists():
            say({"stopped": True})
            sys.exit(0)
    if script.get("say"):
        sys.stderr.write(script["say"] + "\\n")
        sys.exit(script["code"])
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "config.json").write_text("{}")
    (run / "summary.json").write_text(json.dumps(script["summary"]))
    say(script["summary"])
"""
LINES = [
    {"stage": "prepare", "step": 0, "of": 1, "loss": None, "seconds": 2.0, "memory_bytes": 5e8},
    {
        "stage": "listen",
        "step": 3,
        "of": 9,
        "loss": None,
        "samples_per_second": 4.0,
        "eta_seconds": 2.0,
        "seconds": 3.0,
        "wait": True,
    },
    {"stage": "fit", "step": 1, "of": 60, "loss": 0.9, "validation": 1.1, "validation_accuracy": 0.5, "seconds": 4.0},
    {"stage": "fit", "step": 2, "of": 60, "loss": 0.6, "validation": 0.9, "validation_accuracy": 0.7, "seconds": 5.0},
    {"stage": "judge", "step": 1, "of": 4, "loss": None, "seconds": 6.0},
]
PLAN = {
    "peak_bytes": 1.5e9, "free_bytes": 8e9, "disk_bytes": 4e5, "free_disk_bytes": 5e10, "seconds": 42.0,
    "parts": {"load": 5.0, "listen": 3.0, "fit": 4.0, "judge": 30.0}, "device": "cpu", "fits": True, "remedies": [],
}  # fmt: skip


def measured(accuracy: float) -> dict[str, Any]:
    table = [[4 if row == column else 1 for column in range(5)] for row in range(5)]
    return {"n": 40, "accuracy": accuracy, "interval_95": [0.5, 0.9], "confusion": table}


def summary(
    verdict: str = "better", why: str = "It reads more recordings rightly: 60% before, 80% after."
) -> dict[str, Any]:
    rows = [
        {"audio": f"/r/{at}.wav", "text": "words", "emotion": EMOTIONS[at % 5], "before": [0.2] * 5,
         "after": [0.05 + 0.8 * (place == at % 4) for place in range(5)]}
        for at in range(10)
    ]  # fmt: skip
    rows[0] |= {"heard": "<b>words</b>", "reply_before": "One.", "reply_after": "<i>Two</i>."}
    difference = {"accuracy": 0.2, "interval_95": [0.05, 0.35], "loss": -0.1, "loss_interval_95": [-0.2, -0.01]}
    read = {"before": measured(0.6), "after": measured(0.8), "difference": difference}
    loss = {"recordings": 8, "tokens": 100, "before": 1.5, "after": 1.52, "ratio": 1.013}
    return {
        "verdict": verdict, "why": why, "what": "head", "held_out_by": "sentence", "thresholds": [0.5, 0.5],
        "reading": read, "continuation": loss, "recordings": rows,
    }  # fmt: skip


class Child:
    """What the scripted training does, and what it was told."""

    def __init__(self, folder: Path) -> None:
        self._path, self._log = folder / "script.json", folder / "log.jsonl"
        self.script: dict[str, Any] = {"log": str(self._log), "plan": PLAN, "lines": LINES, "summary": summary()}
        self.script["rows"] = [
            Recording(f"/r/{at}.wav", "words", EMOTIONS[at % 5], seconds=2.0).as_dict() for at in range(20)
        ]
        self.write()

    def write(self, **changes: Any) -> None:
        self.script |= changes
        self._path.write_text(json.dumps(self.script))

    @property
    def told(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    monkeypatch.setenv("SCRIPT", str(tmp_path / "script.json"))
    (tmp_path / "training.py").write_text(textwrap.dedent(TRAINING))
    return Child(tmp_path)


@pytest.fixture
def tuning(qapp: QApplication, services: Services, tmp_path: Path, child: Child) -> Iterator[App]:
    theme.apply(qapp, "light")
    home = tmp_path / "home"
    home.mkdir()
    made = App(replace(services, home=home, python=(sys.executable, str(tmp_path / "training.py"))))
    made.start()
    made.finish_first_start()
    yield made
    made.close()


def shown(app: App, qtbot: QtBot) -> FineTunePage:
    """The page in a window that is as large whatever is in it."""
    frame = QScrollArea()
    qtbot.addWidget(frame)
    made = FineTunePage(app)
    frame.setWidget(made)
    made.resize(1000, 700)
    frame.resize(1010, 710)
    frame.show()
    made.frame = frame  # type: ignore[attr-defined]  # qtbot holds it weakly
    return made


@pytest.fixture
def page(tuning: App, qtbot: QtBot) -> FineTunePage:
    return shown(tuning, qtbot)


def check(page: FineTunePage, qtbot: QtBot) -> None:
    page.choose("/r/folder")
    qtbot.waitUntil(lambda: not page.data.work.running)


def plan(page: FineTunePage, qtbot: QtBot) -> None:
    check(page, qtbot)
    page.data.next.click()
    qtbot.waitUntil(lambda: page.plan.plan is not None or page.plan.outcome.isVisible(), timeout=10_000)


def run_of(page: FineTunePage) -> TuningRun:
    assert page.training.run is not None
    return page.training.run


# ---- recordings


def test_recordings_are_shown_mended_and_left_out(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App) -> None:
    bad = Recording(
        "/r/x.wav", "", "joy", seconds=2.0, suggestion="happy", heard=(Problem("noisy", "noise", fatal=False),)
    )
    dead = Recording("/r/y.wav", "words", "sad", heard=(Problem("unreadable", "no sound"),))
    child.write(rows=[*child.script["rows"], bad.as_dict(), dead.as_dict()])
    check(page, qtbot)
    data, table = page.data, page.data.table
    assert data.facts.text().startswith("20 of 22 can be used")
    assert data.next.isEnabled()
    kinds = [data.kinds.itemData(at) for at in range(data.kinds.count())]
    assert set(kinds) == {"", "noisy", "unknown emotion", "no transcript", "unreadable"}
    data.show_kind("unknown emotion")
    assert data.shown.rowCount() == 1
    assert "maybe happy" in data.shown.index(0, PROBLEM).data(Qt.ItemDataRole.ToolTipRole)
    table.map_emotion("joy", "happy")
    assert data.facts.text().startswith("21 of 22")
    assert data.shown.rowCount() == 22  # the kind is gone, so all are shown
    assert table.setData(table.index(20, EMOTION), "sad")
    assert table.rows[20].meaning({}) == "sad"
    assert table.setData(table.index(20, TEXT), " said ")
    assert table.rows[20].text == "said"
    assert table.index(21, USE).data(Qt.ItemDataRole.CheckStateRole) == Qt.CheckState.Unchecked
    for row in range(15):
        table.setData(table.index(row, USE), Qt.CheckState.Unchecked, Qt.ItemDataRole.CheckStateRole)
    assert data.facts.text().startswith("6 of 22")


def test_the_box_is_ticked_by_mouse_and_by_key(page: FineTunePage, qtbot: QtBot) -> None:
    check(page, qtbot)
    box = page.data.view.itemDelegateForColumn(USE)
    option = QStyleOptionViewItem()
    click = QMouseEvent(
        QEvent.Type.MouseButtonRelease, QPointF(), QPointF(), Qt.MouseButton.LeftButton, Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )  # fmt: skip
    space = QKeyEvent(QEvent.Type.KeyPress, Qt.Key.Key_Space, Qt.KeyboardModifier.NoModifier, " ")
    for event, out in ((click, True), (space, False)):
        assert box is not None
        box.editorEvent(event, page.data.shown, option, page.data.shown.index(0, USE))
        assert page.data.rows[0].excluded == out


def test_too_little_is_refused_in_words(page: FineTunePage, child: Child, qtbot: QtBot) -> None:
    child.write(rows=child.script["rows"][:1])
    check(page, qtbot)
    assert not page.data.next.isEnabled()
    assert "two emotions" in page.data.remark.text()


def test_a_recording_is_heard(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    child.write(rows=[Recording(str(tmp_path / "a.wav"), emotion="sad").as_dict(), Recording("/gone.wav").as_dict()])
    check(page, qtbot)
    page.data.view.clicked.emit(page.data.shown.index(0, PLAY))
    talk: Any = tuning.talk
    assert talk.calls[-1][0] == "clips.play"
    assert (len(talk.calls[-1][1]), talk.calls[-1][2]) == (800, 8000)
    page.data.play(1)
    assert "cannot be played" in page.data.outcome.text.text()


def test_missing_transcripts_are_written_by_the_recogniser(page: FineTunePage, child: Child, qtbot: QtBot) -> None:
    child.write(rows=[Recording(f"/r/{at}.wav", "", EMOTIONS[at % 5], seconds=1.0).as_dict() for at in range(10)])
    check(page, qtbot)
    assert page.data.outcome.action is not None
    page.data.outcome.action.click()
    qtbot.waitUntil(lambda: not page.data.work.running)
    assert [one.text for one in page.data.rows] == ["heard words"] * 10
    assert child.told[-1][:3] == ["transcribe", "--json", "/r/0.wav"]


# ---- plan


def test_the_plan_is_measured_and_said_in_words(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App) -> None:
    plan(page, qtbot)
    assert page.plan.forecast.text() == "About 40 seconds and 1.5 GB of memory, on this CPU."
    assert page.plan.start.isEnabled()
    words = child.told[-1]
    assert words[0] == "tune"
    assert words[-2:] == ["--plan", "--json"]
    assert (words[words.index("--model") + 1], words[words.index("--what") + 1]) == ("mini", "head")
    assert not page.plan.what.buttons["stage2"].isEnabled()  # mini has no adapter
    assert "labels alone" in page.plan.why.text()
    page.plan.values.fields["folds"].setText("7")
    assert not page.plan.start.isEnabled()  # what was measured is no longer what is asked for
    qtbot.waitUntil(lambda: page.plan.start.isEnabled(), timeout=10_000)
    assert child.told[-1][child.told[-1].index("--folds") + 1] == "7"
    page.plan.values.fields["folds"].setText("")
    assert page.plan.values.words("head")[:2] == ["--folds", "5"]


def test_a_checkpoint_with_an_adapter_can_learn_more(
    page: FineTunePage, child: Child, qtbot: QtBot, tuning: App, tmp_path: Path
) -> None:
    tuning.change("model", folders=(str(tmp_path / "blsp"),))
    plan(page, qtbot)
    page.plan.source.setCurrentIndex(page.plan.source.findData(str(tmp_path / "blsp")))
    page.plan.source.picked.emit(str(tmp_path / "blsp"))
    page.plan.what.buttons["both"].click()
    qtbot.waitUntil(lambda: page.plan.start.isEnabled(), timeout=10_000)
    words = child.told[-1]
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
        ({"plan": {}, "plan_code": 3}, "tried out"),
    ],
)
def test_a_refusal_names_the_remedy(
    page: FineTunePage, child: Child, qtbot: QtBot, changes: dict[str, Any], words: str
) -> None:
    child.write(**changes)
    plan(page, qtbot)
    assert words in page.plan.outcome.text.text()
    assert not page.plan.start.isEnabled()


def test_times_in_words() -> None:
    assert [minutes(seconds) for seconds in (3, 42, 600, 9000)] == [
        "About 5 seconds", "About 40 seconds", "About 10 minutes", "About 2.5 hours",
    ]  # fmt: skip


# ---- training


def begin(page: FineTunePage, qtbot: QtBot) -> None:
    plan(page, qtbot)
    page.plan.start.click()
    qtbot.waitUntil(lambda: len(run_of(page).progress) >= 2, timeout=10_000)


def test_paused_gone_on_and_finished(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App) -> None:
    begin(page, qtbot)
    talk: Any = tuning.talk
    assert [call[0] for call in talk.calls if "model" in call[0]] == ["release_model"]
    qtbot.waitUntil(lambda: page.training.phase.text() == "Listening to the recordings · 3 / 9")
    assert page.training.facts["left"].text() == "0:36"  # two seconds by its own pace, then fit and judge by the plan
    assert page.training.facts["memory"].text() == "— / 1.5 GB"
    page.training.pause.click()
    assert not page.training.pause.isEnabled()
    qtbot.waitUntil(lambda: not page.training.at_work, timeout=10_000)
    assert page.training.phase.text().startswith("Paused")
    assert [call[0] for call in talk.calls if "model" in call[0]][-1] == "replace_model"  # the assistant is back
    (run_of(page).folder / "go").touch()
    page.training.resume.click()
    qtbot.waitUntil(lambda: page.page is page.result, timeout=10_000)
    assert "60% before, 80% after" in page.result.verdict.text()
    assert [line[:1] for line in child.told if "--plan" not in line and line[0] == "tune"] == [["tune"], ["tune"]]
    assert len(page.training.loss._series) == 2


def test_a_run_left_unfinished_is_offered_again(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App) -> None:
    begin(page, qtbot)
    folder = run_of(page).folder
    assert page.training.job is not None
    page.training.job.stop()  # killed from outside
    qtbot.waitUntil(lambda: not page.training.at_work, timeout=10_000)
    assert "go on where it was" in page.training.outcome.text.text()
    page.show_start()
    again = shown(tuning, qtbot)
    assert again.start._list.count() == 1
    (folder / "go").touch()
    again.open_run(folder)
    assert again.page is again.training
    again.training.resume.click()
    qtbot.waitUntil(lambda: again.page is again.result, timeout=10_000)
    assert not (folder / "failed.txt").exists()


def test_a_failure_is_told_where_it_happened(page: FineTunePage, child: Child, qtbot: QtBot) -> None:
    child.write(lines=LINES[:1], say="The disk is full: make room and start again.", code=3)
    plan(page, qtbot)
    page.plan.start.click()
    qtbot.waitUntil(lambda: page.training.outcome.isVisible(), timeout=10_000)
    assert page.training.outcome.text.text() == "The disk is full: make room and start again."
    child.write(lines=LINES, say="")
    (run_of(page).folder / "go").touch()
    page.training.resume.click()
    qtbot.waitUntil(lambda: page.page is page.result, timeout=10_000)


def test_a_disk_that_fills_up_pauses_the_run(
    page: FineTunePage, child: Child, qtbot: QtBot, tuning: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tuning.told.connect(lambda message: said.append(message.text))
    begin(page, qtbot)
    monkeypatch.setattr(TuningRun, "free_bytes", lambda _run: 10_000)
    qtbot.waitUntil(lambda: not page.training.at_work, timeout=10_000)
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
    assert page.result.use.text() == "Use it although it got worse"
    assert page.result.verdict.text() == "It reads fewer recordings rightly."


def test_export_and_discard(page: FineTunePage, tuning: App, qtbot: QtBot, tmp_path: Path) -> None:
    run = a_result(tuning)
    page.show_result(run)
    said: list[Any] = []
    tuning.told.connect(said.append)
    page.result.export_to(str(tmp_path))
    qtbot.waitUntil(lambda: "Exported" in page.result.outcome.text.text())
    assert (tmp_path / run.folder.name / "config.json").is_file()
    page.result.export_to(str(tmp_path))
    qtbot.waitUntil(lambda: "there already" in page.result.outcome.text.text())
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
    assert "cannot be played" in page.result.outcome.text.text()


def test_a_folder_that_is_no_run(page: FineTunePage, tuning: App, tmp_path: Path) -> None:
    said: list[str] = []
    tuning.told.connect(lambda message: said.append(message.text))
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
    qtbot.waitUntil(lambda: not page.data.work.running)
    assert child.told[-1] == ["check", str(tuning.corrections), "--json"]


# ---- pictures


def test_round_numbers_on_an_axis() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    for low, high in ((0.37, 0.81), (3, 3), (0, 1e-6), (-5, 120)):
        marks = ticks(low, high)
        assert marks[0] <= low
        assert marks[-1] >= high
        assert 2 <= len(marks) <= 8


@pytest.mark.parametrize("name", theme.THEMES)
def test_pictures_change_with_what_they_show(qapp: QApplication, qtbot: QtBot, name: str) -> None:
    theme.apply(qapp, name)
    curves, confusion, balance = Curves("Loss"), Confusion("Before"), Balance()
    for widget in (curves, confusion, balance):
        qtbot.addWidget(widget)
        widget.resize(400, 260)
    blank = [widget.grab().toImage() for widget in (curves, confusion, balance)]
    curves.show_series([Series("learning", ((1, 0.9), (2, 0.5))), Series("none", ())], 60)
    confusion.show_table([[4, 0, 0, 0, 1]] * 5)
    balance.show_counts({"sad": 3, "happy": 1})
    for before, widget in zip(blank, (curves, confusion, balance), strict=True):
        assert widget.grab().toImage() != before
    assert curves.accessibleDescription() == "learning 0.5"
    assert confusion.accessibleDescription() == "5 of 25 read rightly"
    theme.apply(qapp, "light")
