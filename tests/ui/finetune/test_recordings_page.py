"""The recordings page and the plots: display, editing, leaving out, playback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PySide6.QtCore import QEvent, QPointF, Qt
from PySide6.QtGui import QKeyEvent, QMouseEvent
from PySide6.QtWidgets import QApplication, QStyleOptionViewItem
from pytestqt.qtbot import QtBot

from assistant.events import EMOTIONS
from assistant.finetune.tuning_data import Problem, Recording
from tests.ui.support.tuning_child import Child, check, child, page, tuning
from ui.core import theme
from ui.core.app import App
from ui.finetune.recording_table import EMOTION, PLAY, PROBLEM, TEXT, USE
from ui.finetune.wizard import FineTunePage
from ui.widgets.plots import Confusion, Curves, EmotionBalance, Series, ticks

__all__ = ["child", "page", "tuning"]  # fixtures


def test_recordings_are_shown_mended_and_left_out(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App) -> None:
    bad = Recording(
        "/r/x.wav", "", "joy", seconds=2.0, suggestion="happy", heard=(Problem("noisy", "noise", fatal=False),)
    )
    dead = Recording("/r/y.wav", "words", "sad", heard=(Problem("unreadable", "no sound"),))
    child.write(rows=[*child.script["rows"], bad.as_dict(), dead.as_dict()])
    check(page, qtbot)
    data, table = page.recordings, page.recordings.table
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
    box = page.recordings.view.itemDelegateForColumn(USE)
    option = QStyleOptionViewItem()
    click = QMouseEvent(
        QEvent.Type.MouseButtonRelease, QPointF(), QPointF(), Qt.MouseButton.LeftButton, Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )  # fmt: skip
    space = QKeyEvent(QEvent.Type.KeyPress, Qt.Key.Key_Space, Qt.KeyboardModifier.NoModifier, " ")
    for event, out in ((click, True), (space, False)):
        assert box is not None
        box.editorEvent(event, page.recordings.shown, option, page.recordings.shown.index(0, USE))
        assert page.recordings.rows[0].excluded == out


def test_too_little_is_refused_in_words(page: FineTunePage, child: Child, qtbot: QtBot) -> None:
    child.write(rows=child.script["rows"][:1])
    check(page, qtbot)
    assert not page.recordings.next.isEnabled()
    assert "two emotions" in page.recordings.remark.text()


def test_a_recording_is_heard(page: FineTunePage, child: Child, qtbot: QtBot, tuning: App, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    child.write(rows=[Recording(str(tmp_path / "a.wav"), emotion="sad").as_dict(), Recording("/gone.wav").as_dict()])
    check(page, qtbot)
    page.recordings.view.clicked.emit(page.recordings.shown.index(0, PLAY))
    talk: Any = tuning.talk
    assert talk.calls[-1][0] == "clips.play"
    assert (len(talk.calls[-1][1]), talk.calls[-1][2]) == (800, 8000)
    page.recordings.play(1)
    assert "cannot be played" in page.recordings.message.text.text()


def test_missing_transcripts_are_written_by_the_recogniser(page: FineTunePage, child: Child, qtbot: QtBot) -> None:
    child.write(rows=[Recording(f"/r/{at}.wav", "", EMOTIONS[at % 5], seconds=1.0).as_dict() for at in range(10)])
    check(page, qtbot)
    assert page.recordings.message.action is not None
    page.recordings.message.action.click()
    qtbot.waitUntil(lambda: not page.recordings.progress.running)
    assert [one.text for one in page.recordings.rows] == ["heard words"] * 10
    assert child.emitted[-1][:3] == ["transcribe", "--json", "/r/0.wav"]


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
    curves, confusion, balance = Curves("Loss"), Confusion("Before"), EmotionBalance()
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
    assert confusion.accessibleDescription() == "5 of 25 correct"
    theme.apply(qapp, "light")
