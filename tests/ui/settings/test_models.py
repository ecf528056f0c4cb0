"""The model list and the diagnostics, with scripted child processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtGui import QGuiApplication
from pytestqt.qtbot import QtBot

from assistant.events import ModelStatus
from assistant.settings import Settings
from tests.ui.settings.test_page import answer, calls, page, section, services
from ui.core.app import App, Notification
from ui.settings.diagnostics import redacted, report
from ui.widgets.model_text import facts, plan_text

__all__ = ["page", "section", "services"]  # fixtures

GB = 10**9


def estimate(quantize: str, needed: float, free: float, verdict: str) -> dict[str, Any]:
    return {"device": "cpu", "quantize": quantize, "needed_bytes": needed, "free_bytes": free, "verdict": verdict}


def plan(*loading_modes: dict[str, Any]) -> dict[str, Any]:
    best = next((one for one in loading_modes if one["verdict"] != "does not fit"), None)
    return {
        "estimates": loading_modes,
        "recommended": best and {"device": best["device"], "quantize": best["quantize"]},
    }


SMALL = plan(estimate("int8", GB, 6 * GB, "fits"), estimate("none", 7 * GB, 6 * GB, "does not fit"))
LARGE = plan(estimate("int8", 20 * GB, 6 * GB, "does not fit"), estimate("nf4", 8.4 * GB, 6 * GB, "does not fit"))


def about(source: str | Path, **values: Any) -> dict[str, Any]:
    plain = {"source": str(source), "kind": "checkpoint", "state": "ready", "bytes": 2 * GB, "download_bytes": 0}
    return plain | {"stored": None, "reads_emotion": True, "plan": SMALL, "error": None} | values


MINI = about("mini", kind="preset")
LARGER = about("mini-0.5b", kind="preset", state="absent", bytes=0, download_bytes=531 * 10**6, plan=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mine"
    made.mkdir()
    return made


def words(tmp_path: Path) -> list[list[str]]:
    """The arguments our program was called with."""
    return [json.loads(line) for line in (tmp_path / "answers.json.calls").read_text().splitlines()]


def test_presets_are_shown_fetched_and_used(
    app: App, section: Callable[[str], Any], tmp_path: Path, qtbot: QtBot
) -> None:
    answer(tmp_path, [(["list"], [MINI, LARGER], 0, ""), (["fetch"], [{"folders": ["a"]}], 0, "")])
    cards = section("model").cards
    mini, larger = cards["mini"], cards["mini-0.5b"]
    qtbot.waitUntil(lambda: larger.fetch.isVisible())
    assert mini.in_use
    assert mini.mode.itemText(2) == "On the CPU, full precision: 7.0 GB, does not fit"
    assert mini.plan.text() == "Fits on the CPU, 8-bit: needs 1.0 GB of 6.0 GB free memory."
    assert larger.fetch.text() == "Download 531 MB"
    ready = about("mini-0.5b", kind="preset")
    answer(tmp_path, [(["list", "mini-0.5b"], [ready], 0, ""), (["fetch"], [{"folders": ["a"]}], 0, "")])
    larger.fetch.click()
    qtbot.waitUntil(lambda: larger.use.isVisible())
    assert ["fetch", "mini-0.5b", "--json"] in words(tmp_path)
    larger.use.click()
    assert app.settings.model.source == "mini-0.5b"
    assert calls(app, "replace_model")[-1][0].source == "mini-0.5b"
    assert larger.in_use
    assert not mini.in_use


def test_what_does_not_fit_is_refused_with_remedies(
    app: App, section: Callable[[str], Any], tmp_path: Path, qtbot: QtBot
) -> None:
    answer(tmp_path, [(["list"], [MINI, about("mini-0.5b", kind="preset", plan=LARGE)], 0, "")])
    cards = section("model").cards
    larger = cards["mini-0.5b"]
    qtbot.waitUntil(lambda: larger.use.isVisible())
    larger.use.click()
    assert app.settings.model.source == "mini"
    assert larger.message.text.text() == "Does not fit into memory in this mode."
    assert "even on the CPU, 4-bit needs 8.4 GB, but only 6.0 GB of memory is free" in larger.plan.text()
    larger.message.action.click()  # all the same
    assert app.settings.model.source == "mini-0.5b"
    talk: Any = app.talk
    talk.happen(ModelStatus("failed", "mini-0.5b needs more memory: close other programs."))
    qtbot.waitUntil(lambda: larger.message.text.text().startswith("mini-0.5b needs more"))
    larger.message.action.click()
    assert app.settings.model.source == "mini"
    cards["mini"].mode.picked.emit(("cpu", "none"))
    assert app.settings.model.quantize == "auto"
    assert cards["mini"].message.text.text() == "Does not fit into memory in this mode."


def test_folders_come_and_go(
    app: App, section: Callable[[str], Any], folder: Path, tmp_path: Path, qtbot: QtBot
) -> None:
    emitted: list[Notification] = []
    app.notified.connect(emitted.append)
    answer(tmp_path, [(["list", str(folder)], [about(folder)], 0, "")])
    model = section("model")
    model.path.setText(str(tmp_path / "nowhere"))
    model.path.returnPressed.emit()
    assert "Folder not found" in model.added.text.text()
    model.path.setText(str(folder))
    model.path.returnPressed.emit()
    card = model.cards[str(folder)]
    qtbot.waitUntil(lambda: card.use.isVisible())
    assert app.settings.model.folders == (str(folder),)
    model.add_folder(str(folder))
    assert "already in the list" in model.added.text.text()
    card.remove.click()
    assert str(folder) not in model.cards
    assert folder.is_dir()
    assert emitted[-1].act is not None
    emitted[-1].act()
    assert str(folder) in model.cards


def test_an_original_is_converted_stopped_and_gone_on_with(
    app: App, section: Callable[[str], Any], folder: Path, tmp_path: Path, qtbot: QtBot
) -> None:
    target = tmp_path / "mine-undertone"
    step = {"what": "Converting", "done": GB, "total": 2 * GB}
    original = about(folder, kind="original", plan=LARGE)
    listing = (["list", str(folder)], [original], 0, "")
    answer(tmp_path, [listing, (["convert"], [step], None, "")])
    app.change("model", folders=(str(folder),))
    model = section("model")
    card = model.cards[str(folder)]
    qtbot.waitUntil(lambda: card.convert.isVisible())
    assert not card.use.isVisible()
    card.convert.click()
    assert card.form.path.text() == str(target)
    card.form.start.click()
    qtbot.waitUntil(lambda: card.progress.text.text() == "Converting · 1.0 GB / 2.0 GB")
    assert not card.buttons.isEnabled()
    card.progress.stop.click()
    qtbot.waitUntil(lambda: card.message.text.text() == "Stopped.")
    (tmp_path / "mine-undertone.part").mkdir()
    target.mkdir()
    answer(tmp_path, [(["convert"], [{"folder": str(target), "error": None}], 0, "")])
    card.message.action.click()
    assert card.form.start.text() == "Continue"
    card.form.start.click()
    qtbot.waitUntil(lambda: str(target) in app.settings.model.folders)
    assert ["-m", "model.manager", "convert", str(folder), str(target)] in words(tmp_path)
    assert str(target) in model.cards


def test_verifying_says_what_was_compared(
    app: App, section: Callable[[str], Any], folder: Path, tmp_path: Path, qtbot: QtBot
) -> None:
    whole = {"source": str(folder), "checked": ["78 tensors", "hashes"], "sha256": {"a": "ff"}, "error": None}
    answer(tmp_path, [(["list"], [about(folder)], 0, ""), (["verify"], [whole], 0, "")])
    app.change("model", folders=(str(folder),))
    card = section("model").cards[str(folder)]
    qtbot.waitUntil(lambda: card.verify.isVisible())
    card.verify.click()
    qtbot.waitUntil(lambda: card.message.text.text() == "Intact: 78 tensors; hashes.")
    card.message.action.click()
    assert QGuiApplication.clipboard().text() == "ff  a"
    answer(tmp_path, [(["verify"], [{"error": "model.safetensors is damaged: get it again."}], 3, "")])
    card.verify.click()
    qtbot.waitUntil(lambda: "is damaged" in card.message.text.text())


def test_nothing_is_downloaded_unless_it_is_typed_and_pressed(
    app: App, section: Callable[[str], Any], folder: Path, tmp_path: Path, qtbot: QtBot
) -> None:
    answer(tmp_path, [(["hub"], [{"folder": str(folder), "error": None}], 0, "")])
    model = section("model")
    assert not model.download.isEnabled()
    model.repository.setText("owner/name")
    model.revision.setText("main")
    assert not model.download.isEnabled()
    model.revision.setText("a" * 40)
    model.download.click()
    qtbot.waitUntil(lambda: str(folder) in app.settings.model.folders)
    assert ["-m", "model.manager", "hub", "owner/name", "a" * 40] in words(tmp_path)


def test_a_program_that_fails_is_told_with_another_try(
    section: Callable[[str], Any], tmp_path: Path, qtbot: QtBot
) -> None:
    answer(tmp_path, [(["list"], [], 1, "This is a bug in Undertone, sorry.")])
    model = section("model")
    qtbot.waitUntil(lambda: "This is a bug" in model.error.text.text())
    answer(tmp_path, [(["list"], [MINI], 0, "")])
    model.error.action.click()
    qtbot.waitUntil(lambda: model.cards["mini"].plan.isVisible())


def test_plans_and_facts_in_words() -> None:
    tight = plan(estimate("int8", 6 * GB, 5.9 * GB, "tight"))
    assert plan_text(tight).startswith("May just fit on the CPU, 8-bit: needs 6.0 GB, 5.9 GB of memory is free")
    card = plan({"device": "cuda", "quantize": "nf4", "needed_bytes": GB, "free_bytes": 9 * GB, "verdict": "fits"})
    assert "on the graphics card, 4-bit" in plan_text(card)
    assert facts(about("x", stored="nf4", reads_emotion=False)) == "2.0 GB · no emotion head · stored as 4-bit"


DOCTOR = {
    "python": {"value": "3.11.2", "remedy": None},
    "disk": {"value": "3 GiB free at /home/anna/my models/x", "remedy": "Free 1 GiB there."},
}


def test_the_doctor_is_shown_and_the_report_can_be_taken(
    app: App, section: Callable[[str], Any], tmp_path: Path, qtbot: QtBot
) -> None:
    answer(tmp_path, [(["doctor"], [DOCTOR], 0, "")])
    shown = section("diagnostics")
    qtbot.waitUntil(lambda: "disk" in shown.report.toPlainText())
    assert "Issues: 1" in shown.state.text.text()
    shown.copy.click()
    assert QGuiApplication.clipboard().text() == shown.report.toPlainText()
    shown.write(str(tmp_path / "report.txt"))
    assert (tmp_path / "report.txt").read_text() == shown.report.toPlainText() + "\n"
    shown.write(str(tmp_path))
    assert "Choose another folder" in shown.done.text.text()


def test_the_report_names_nobody() -> None:
    settings = Settings().changed("model", source="/home/anna/my models/x", folders=("/home/anna/my models/x",))
    settings = settings.changed("sound", microphone="Anna's headset").changed("voice", rate=1.5)
    log = """2026-01-02 03:04:05
Traceback (most recent call last):
  File "/home/anna/undertone/main.py", line 12, in main
  File "/home/anna/undertone/ui/app.py", line 34, in start
ValueError: Anna said hello
Anna: a second line
"""
    text = report(DOCTOR, settings, "/home/anna/.cache/undertone", log)
    assert "anna" not in text.lower()
    assert "hello" not in text
    assert "my models" not in text
    assert "ValueError at main.py:12 main > app.py:34 start" in text
    assert "rate" in text
    assert redacted("see C:\\Users\\Anna\\x, /Users/anna/y: 3 of 4 GB/s") == "see (a path), (a path): 3 of 4 GB/s"
