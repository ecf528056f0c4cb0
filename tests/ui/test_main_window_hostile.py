"""500 hostile texts in every place that shows what the model, a file or a folder's name says.

None opens a file or a socket, none takes the main thread a tenth of a second. The conversation itself is tested in
`test_conversation_view`.
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
from tests.ui.support.hostile import SLOWEST, Clock, hostile, traps
from tests.ui.support.sessions import STORY, record
from tests.ui.support.turns import happen, open_page
from ui.core.app import App
from ui.finetune.recording_table import RecordingTable
from ui.finetune.recordings_page import RecordingsPage
from ui.sessions.browser import SessionsPage
from ui.sessions.model_comparison import ModelComparison
from ui.settings.model_card import ModelCard
from ui.widgets.common import Picker

COUNT = 500
BROKEN = {
    "kind": "other", "state": "broken", "plan": None, "bytes": 1, "download_bytes": 0, "stored": None,
    "reads_emotion": False,
}  # fmt: skip
Show = Callable[[str], object]


def see_tip(text: str) -> None:
    """As Qt shows tool tips: a label that takes for markup what looks like it."""
    tip = QLabel(text)
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
        see_tip(page.window()._status.toolTip())  # type: ignore[attr-defined]
        happen(app, ModelStatus("failed", text))
        page.window().grab()

    return show


def asked_again(app: App, qtbot: QtBot) -> Show:
    page = shown(ModelComparison(app), qtbot)

    def show(text: str) -> None:
        before = {"reply": text, "reading": text[:60], "first_token_ms": 1.0}
        page._take({"turn": 1, "words": text, "before": before, "after": before | {"reply": text[::-1]}})
        page._end(2, text)
        page.grab()
        page._clear()

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
            see_tip(table.data(table.index(0, column), Qt.ItemDataRole.ToolTipRole))
        page.grab()

    return show


def shown(widget: Any, qtbot: QtBot) -> Any:
    qtbot.addWidget(widget)
    widget.setMinimumSize(480, 420)  # as the window's: its pages do not make it larger
    widget.resize(900, 600)
    widget.show()
    return widget


@pytest.mark.parametrize("place", [compact, notices, status, asked_again, models, recordings])
def test_hostile_texts_stay_texts(
    place: Callable[[App, QtBot], Show], app: App, qtbot: QtBot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, show = Clock(), place(app, qtbot)
    with traps(tmp_path / "traps") as trap:
        for text in hostile(trap, COUNT):
            clock.time(text, partial(show, text))
    with capsys.disabled():
        print(f"{place.__name__}: {clock.slowest[0] * 1000:.0f} ms ", end="")  # noqa: T201 (a figure)
    assert clock.slowest[0] < SLOWEST, clock.slowest


def test_hostile_texts_in_recorded_sessions(
    app: App, qtbot: QtBot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten turns in each of 50 sessions: the list, the player and what a search finds."""
    clock, now = Clock(), datetime(2026, 11, 20, 12)
    template, _ = read_lines(record(tmp_path / "template", now, STORY[:1]) / EVENTS)
    ended = next(line for line in template if line["type"] == "turn_ended")
    with traps(tmp_path / "traps") as trap:
        texts = hostile(trap, COUNT)
        for number in range(COUNT // 10):
            folder = app.sessions / f"{now - timedelta(hours=number):%Y-%m-%d_%H-%M-%S}-aaaa"
            folder.mkdir(parents=True)
            lines = JsonLines(folder / EVENTS)
            lines.append(template[0] | {"model": texts[number]})
            for turn, text in enumerate(texts[number::50], 1):
                reading = ended["reading"] | {"label": text[:40]}
                lines.append({"v": 1, "t": 1.0, "type": "typed", "turn": turn, "text": text})
                lines.append(
                    ended | {"turn": turn, "reply": text, "heard": text[:9], "reading": reading, "audio": None}
                )
            lines.close()
        page: SessionsPage = shown(SessionsPage(app), qtbot)
        qtbot.waitUntil(lambda: len(page.list.shown) == COUNT // 10 and not page.list._reading, timeout=60_000)
        for row, session in enumerate(page.list.shown):
            clock.time(str(row), partial(page.list.view.setCurrentIndex, page.list._rows.index(row)))
            while page.player.session_audio is None or page.player.session_audio.session.folder != session.folder:
                clock.time(str(row), lambda: None)
            clock.time(str(row), page.grab)
        for text in texts[:40]:
            clock.time(text, partial(page.list.field.setText, text))
        page.list.field.clear()
    with capsys.disabled():
        print(f"sessions: {clock.slowest[0] * 1000:.0f} ms ", end="")  # noqa: T201 (a figure)
    assert clock.slowest[0] < SLOWEST, clock.slowest


def test_the_clock_sees_what_is_slow(qtbot: QtBot) -> None:
    clock = Clock()
    clock.time("slow", lambda: sum(range(100_000_000)))
    assert clock.slowest[0] > SLOWEST
