"""Hostile texts in every place that shows what the model, a file or a folder's name says.

None opens a file or a socket, none gives Qt more than a page of text or keeps the main thread busy. The conversation
itself is tested in `test_conversation_view`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel, QWidget
from pytestqt.qtbot import QtBot

from assistant.backend.protocol import Ready
from assistant.events import Failed, ModelStatus, ReplyFinished, ReplyText
from assistant.finetune.tuning_data import Problem, Recording
from assistant.sessions.journal import JsonLines, read_lines
from assistant.sessions.recorder import EVENTS
from tests.ui.support.hostile import counted_work, hostile, traps
from tests.ui.support.sessions import STORY, record
from tests.ui.support.turns import happen, open_page
from ui.core.app import App
from ui.finetune.recording_table import RecordingTable
from ui.finetune.recordings_page import RecordingsPage
from ui.sessions.browser import SessionsPage
from ui.sessions.model_comparison import ModelComparison
from ui.settings.model_card import ModelCard
from ui.widgets.common import Picker

COUNT = 60  # of twenty kinds, so that what one leaves behind is met by the next
TURNS = 6  # of a recorded session
BROKEN = {
    "kind": "other", "state": "broken", "plan": None, "bytes": 1, "download_bytes": 0, "stored": None,
    "reads_emotion": False,
}  # fmt: skip
Show = Callable[[str], object]


def see(text: str, form: Qt.TextFormat = Qt.TextFormat.AutoText) -> None:
    """As Qt shows tool tips, a label that takes for markup what looks like it; or, plain, a cell of a table."""
    tip = QLabel()
    tip.setTextFormat(form)
    tip.setText(text)
    tip.setWordWrap(True)
    tip.grab()


def compact(app: App, qtbot: QtBot) -> Show:
    page = open_page(app, qtbot)
    page.compact.show()

    def show(text: str) -> None:
        happen(app, ReplyText(1, text), ReplyFinished(1, text))
        page.compact.grab()

    return show


def notices(app: App, qtbot: QtBot) -> Show:
    page = open_page(app, qtbot)

    def show(text: str) -> None:
        app.notify(text, "Undo", lambda: None)
        happen(app, Failed(None, text + "!"))
        page.window().grab()

    return show


def status(app: App, qtbot: QtBot) -> Show:
    page = open_page(app, qtbot)

    def show(text: str) -> None:
        happen(app, ModelStatus("loading", text))
        happen(app, Ready({"name": text, "device": text, "quantize": text, "why": text}))
        see(page.window().status.toolTip())  # type: ignore[attr-defined]
        happen(app, ModelStatus("failed", text))
        page.window().grab()

    return show


def asked_again(app: App, qtbot: QtBot) -> Show:
    page = shown(ModelComparison(app), qtbot)

    def show(text: str) -> None:
        before = {"reply": text, "reading": text[:60], "first_token_ms": 1.0}
        page.take({"turn": 1, "words": text, "before": before, "after": before | {"reply": text[::-1]}})
        page.end(2, text)
        page.grab()
        page.clear()

    return show


def models(app: App, qtbot: QtBot) -> Show:
    page = shown(QWidget(), qtbot)

    def show(text: str) -> None:
        card = ModelCard(app, text, preset=False)
        card.show_about(BROKEN | {"source": text, "error": text})
        card.message.report(text, error=True, action="Try again", act=lambda: None)
        picker = Picker()
        card.setParent(page)
        picker.setParent(page)
        picker.show_options([(text, text)], text)
        for widget in (card, picker):
            widget.resize(600, 400)
            widget.grab()
            widget.deleteLater()

    return show


def recordings(app: App, qtbot: QtBot) -> Show:
    page = shown(RecordingsPage(app, lambda: None), qtbot)
    table: RecordingTable = page.table

    def show(text: str) -> None:
        table.clear()
        problem = Problem("unreadable", text)
        table.add(Recording(text, text, text, seconds=1.0, heard=(problem,)))
        for column in range(table.columnCount()):
            see(table.data(table.index(0, column), Qt.ItemDataRole.ToolTipRole))
            see(table.data(table.index(0, column)) or "", Qt.TextFormat.PlainText)
        page.grab()

    return show


def shown(widget: Any, qtbot: QtBot) -> Any:
    qtbot.addWidget(widget)
    widget.setMinimumSize(480, 420)  # as the window's: its pages do not make it larger
    widget.resize(900, 600)
    widget.show()
    return widget


@pytest.mark.parametrize("place", [compact, notices, status, asked_again, models, recordings])
def test_hostile_texts_stay_texts(place: Callable[[App, QtBot], Show], app: App, qtbot: QtBot, tmp_path: Path) -> None:
    show = place(app, qtbot)
    with traps(tmp_path / "traps") as trap, counted_work() as work:
        for text in hostile(trap, COUNT):
            work.do(text, partial(show, text))


def test_hostile_texts_in_recorded_sessions(app: App, qtbot: QtBot, tmp_path: Path) -> None:
    """Six turns in each of ten sessions: the list, the player and what a search finds."""
    now = datetime(2026, 11, 20, 12)
    template, _ = read_lines(record(tmp_path / "template", now, STORY[:1]) / EVENTS)
    ended = next(line for line in template if line["type"] == "turn_ended")
    with traps(tmp_path / "traps") as trap, counted_work() as work:
        texts = hostile(trap, COUNT)
        for number in range(COUNT // TURNS):
            folder = app.sessions / f"{now - timedelta(hours=number):%Y-%m-%d_%H-%M-%S}-aaaa"
            folder.mkdir(parents=True)
            lines = JsonLines(folder / EVENTS)
            lines.append(template[0] | {"model": texts[number]})
            for turn, text in enumerate(texts[number :: COUNT // TURNS], 1):
                reading = ended["reading"] | {"label": text[:40]}
                lines.append({"v": 1, "t": 1.0, "type": "typed", "turn": turn, "text": text})
                lines.append(
                    ended | {"turn": turn, "reply": text, "heard": text[:9], "reading": reading, "audio": None}
                )
            lines.close()
        page: SessionsPage = shown(SessionsPage(app), qtbot)
        qtbot.waitUntil(lambda: len(page.list.shown) == COUNT // TURNS and page.list.complete)
        for row, session in enumerate(page.list.shown):
            work.do(str(row), partial(page.list.view.setCurrentIndex, page.list.view.model().index(row, 0)))
            while page.player.session_audio is None or page.player.session_audio.session.folder != session.folder:
                work.do(str(row), lambda: None)
            work.do(str(row), page.grab)
        for text in texts[:40]:
            work.do(text, partial(page.list.field.setText, text))
        page.list.field.clear()


def test_what_is_too_much_is_seen(qtbot: QtBot) -> None:
    """Each limit can be passed: the counts see a megabyte, an endless paragraph and a loop over every character."""

    def fails(act: Callable[[], object]) -> None:
        with pytest.raises(AssertionError), counted_work() as work:
            work.do("too much", act)

    label = QLabel()
    qtbot.addWidget(label)
    fails(lambda: label.setText("words \n" * 100_000))
    fails(lambda: label.setText("x" * 5_000))
    fails(lambda: [ord(character) for character in "x" * 1_000_000])
