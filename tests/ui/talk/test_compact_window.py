"""The compact window and the tray icon."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QSystemTrayIcon
from pytestqt.qtbot import QtBot

from assistant.events import ReplyFinished, ReplyText, State, StateChanged
from tests.ui.support.turns import calls, happen, open_page, turn
from ui.core.app import App


def test_the_small_window_takes_the_place_of_the_large_one(app: App, qtbot: QtBot) -> None:
    page = open_page(app, qtbot)
    happen(app, *turn(1, "Hello.", "Hello to you!"))
    page.bar.compact.click()
    small = page.compact
    assert small.isVisible()
    assert not page.window().isVisible()
    assert small.windowFlags() & Qt.WindowType.WindowStaysOnTopHint
    assert small.text.toPlainText() == "Hello to you!"
    calls(app)
    qtbot.keyPress(small, Qt.Key.Key_Space)
    qtbot.keyRelease(small, Qt.Key.Key_Space)
    qtbot.keyClick(small, Qt.Key.Key_Escape)
    assert calls(app) == [("press",), ("release",), ("stop",)]
    happen(app, *turn(2, "More.", "Word. " * 400)[:10], ReplyText(2, "the end"), StateChanged(State.SPEAKING, False))
    assert small.text.toPlainText().endswith("the end")
    bar = small.text.verticalScrollBar()
    assert bar.value() == bar.maximum() > 0  # its end is in sight
    assert small.button.caption == "Speaking"
    before = small.size()
    happen(app, ReplyFinished(2, "long " * 4000))
    assert small.size() == before
    small.mute.click()
    assert page.key.muted
    assert page.bar.mute.accessibleName().startswith("Unmute")
    small.restore.click()
    assert page.window().isVisible()
    assert not small.isVisible()


def test_the_tray_says_and_changes_what_holds(app: App, qtbot: QtBot) -> None:
    page = open_page(app, qtbot)
    tray = page.tray
    app.change("looks", tray=True)
    assert tray.isVisible() is QSystemTrayIcon.isSystemTrayAvailable()
    tray.muted.trigger()
    assert page.key.muted
    page.key.mute(on=False)
    assert not tray.muted.isChecked()
    tray.hands_free.trigger()
    assert app.settings.turns.hands_free
    compact, whole = (tray.menu.actions()[index] for index in (1, 0))
    compact.trigger()
    assert page.compact.isVisible()
    whole.trigger()
    assert page.window().isVisible()
    assert not page.compact.isVisible()
