"""The Talk page with a scripted conversation: talking, typing, switches, actions, states, keyboard only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PySide6.QtCore import QEvent, QPoint, Qt
from PySide6.QtGui import QGuiApplication, QKeyEvent
from PySide6.QtWidgets import QAbstractButton, QApplication, QLineEdit, QWidget
from pytestqt.qtbot import QtBot

from assistant.backend.protocol import Ready
from assistant.events import (
    InputLevel,
    ModelStatus,
    SpeechStarted,
    Spoken,
    State,
    StateChanged,
    Transcribed,
    TurnUndone,
    UtteranceEnded,
)
from tests.ui.support.turns import calls, happen, open_page, speech, turn
from ui.core import theme
from ui.core.app import App
from ui.core.translations import install
from ui.talk.page import TalkPage
from ui.widgets.common import EmptyState


@pytest.fixture
def page(app: App, qtbot: QtBot) -> TalkPage:
    return open_page(app, qtbot)


# ---- the talk key


def key(key: Qt.Key, *, down: bool, repeat: bool) -> QKeyEvent:
    kind = QEvent.Type.KeyPress if down else QEvent.Type.KeyRelease
    return QKeyEvent(kind, key, Qt.KeyboardModifier.NoModifier, " ", repeat)


def focus(page: TalkPage, qtbot: QtBot, widget: QWidget) -> None:
    widget.setFocus(Qt.FocusReason.TabFocusReason)
    qtbot.waitUntil(widget.hasFocus)


def test_the_space_bar_is_held_to_talk(page: TalkPage, app: App, qtbot: QtBot) -> None:
    page.setFocus()
    calls(app)
    qtbot.keyPress(page, Qt.Key.Key_Space)
    assert page.bar.button.state is State.LISTENING
    assert page.bar.button.caption == "Listening"
    for _ in range(3):
        QApplication.sendEvent(page, key(Qt.Key.Key_Space, down=True, repeat=True))
        QApplication.sendEvent(page, key(Qt.Key.Key_Space, down=False, repeat=True))
    assert calls(app) == [("press",)]
    qtbot.keyRelease(page, Qt.Key.Key_Space)
    assert calls(app) == [("release",)]
    assert page.bar.button.caption == "Hold to talk · Space"


def test_in_a_text_field_the_space_bar_writes(page: TalkPage, app: App, qtbot: QtBot) -> None:
    calls(app)
    qtbot.keyClicks(page.bar.line, "a b")
    assert (page.bar.line.text(), calls(app)) == ("a b", [])


def test_a_button_with_the_focus_keeps_its_space_bar(page: TalkPage, app: App, qtbot: QtBot) -> None:
    focus(page, qtbot, page.bar.empathy)
    calls(app)
    qtbot.keyClick(page.bar.empathy, Qt.Key.Key_Space)
    names = [name for name, *_ in calls(app)]
    assert "configure" in names
    assert "press" not in names
    qtbot.mouseClick(page.bar.hands_free, Qt.MouseButton.LeftButton)
    assert not page.bar.hands_free.hasFocus()  # so that the space bar talks after a click


def test_another_key_can_be_chosen(page: TalkPage, app: App, qtbot: QtBot) -> None:
    app.change("turns", shortcut="Ctrl+F8")
    calls(app)
    qtbot.keyClick(page, Qt.Key.Key_Space)
    qtbot.keyClick(page, Qt.Key.Key_F8)
    assert calls(app) == []
    qtbot.keyPress(page, Qt.Key.Key_F8, Qt.KeyboardModifier.ControlModifier)
    qtbot.keyRelease(page, Qt.Key.Key_F8)  # Ctrl went up first
    assert calls(app) == [("press",), ("release",)]
    assert page.bar.button.caption == "Hold to talk · Ctrl+F8"
    app.change("turns", shortcut="")
    assert page.bar.button.caption == "Hold to talk"


def test_the_mouse_holds_the_button_wherever_it_goes(page: TalkPage, app: App, qtbot: QtBot) -> None:
    button = page.bar.button
    calls(app)
    qtbot.mousePress(button, Qt.MouseButton.LeftButton)
    qtbot.mouseMove(button, QPoint(-300, -300))
    assert calls(app) == [("press",)]
    qtbot.keyPress(page, Qt.Key.Key_Space)  # both at once
    qtbot.mouseRelease(button, Qt.MouseButton.LeftButton, pos=QPoint(-300, -300))
    assert calls(app) == []
    qtbot.keyRelease(page, Qt.Key.Key_Space)
    assert calls(app) == [("release",)]


@pytest.mark.parametrize("by_mouse", [True, False])
def test_another_window_in_front_lets_the_key_go(page: TalkPage, app: App, qtbot: QtBot, by_mouse: bool) -> None:
    calls(app)
    if by_mouse:
        qtbot.mousePress(page.bar.button, Qt.MouseButton.LeftButton)
    else:
        qtbot.keyPress(page, Qt.Key.Key_Space)
    other = QWidget()
    qtbot.addWidget(other)
    other.show()
    other.activateWindow()
    qtbot.waitUntil(lambda: not page.key.held)
    assert calls(app) == [("press",), ("release",)]
    assert not page.bar.button.isDown()


def test_another_page_lets_the_key_go(page: TalkPage, app: App, qtbot: QtBot) -> None:
    calls(app)
    qtbot.keyPress(page, Qt.Key.Key_Space)
    page.hide()
    assert calls(app) == [("press",), ("release",)]


def test_a_muted_microphone_says_so(page: TalkPage, app: App, qtbot: QtBot) -> None:
    calls(app)
    page.bar.mute.click()
    assert (calls(app), page.bar.button.caption) == ([("set_muted", True)], "Muted")
    with qtbot.waitSignal(app.notified) as emitted:
        qtbot.keyPress(page, Qt.Key.Key_Space)
    assert calls(app) == []
    emitted.args[0].act()
    assert calls(app) == [("set_muted", False)]
    assert not page.key.muted


# ---- states


def test_each_state_has_a_word_and_a_picture(page: TalkPage, app: App) -> None:
    button = page.bar.button
    seen = {}
    for state, speaking in (
        (State.IDLE, False),
        (State.LISTENING, True),
        (State.THINKING, False),
        (State.SPEAKING, False),
    ):
        happen(app, StateChanged(state, speaking))
        picture = button.grab().toImage()
        picture.convertTo(picture.Format.Format_Grayscale8)
        seen[button.caption] = bytes(picture.constBits())
        assert button.accessibleName() == button.caption
        assert page.bar.stop.isEnabled() is (state is not State.IDLE)
    assert list(seen) == ["Hold to talk · Space", "Listening", "Thinking", "Speaking"]
    assert len(set(seen.values())) == 4  # without colour, too


def test_the_level_moves_ring_and_strip(page: TalkPage, app: App) -> None:
    quiet = [part.grab().toImage() for part in (page.bar.button, page.bar.strip)]
    happen(app, InputLevel(-20.0))
    loud = [part.grab().toImage() for part in (page.bar.button, page.bar.strip)]
    assert quiet[0] != loud[0]
    assert quiet[1] != loud[1]


def test_before_the_model_is_ready_one_can_talk_and_type(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, ModelStatus("loading", "loading mini"))
    assert page.status.isVisible()
    assert page.status.text().startswith("Loading mini. You can already talk or type")
    calls(app)
    qtbot.keyClicks(page.bar.line, "Hello there")
    qtbot.keyClick(page.bar.line, Qt.Key.Key_Return)
    qtbot.keyClick(page, Qt.Key.Key_Space)
    assert calls(app) == [("type", "Hello there"), ("press",), ("release",)]
    assert page.bar.line.text() == ""
    happen(app, Ready({"name": "mini"}))
    assert not page.status.isVisible()
    happen(app, ModelStatus("failed", "mini is not here: fetch it"))
    assert page.status.text() == "Mini is not here: fetch it. There are no replies until a model is loaded."


def test_switches_are_settings(page: TalkPage, app: App, qtbot: QtBot) -> None:
    calls(app)
    page.bar.hands_free.click()
    page.bar.empathy.click()
    assert (app.settings.turns.hands_free, app.settings.turns.empathy) == (True, False)
    assert ("set_hands_free", True) in calls(app)
    assert page.bar.button.caption == "Just speak, or hold · Space"
    app.change("turns", hands_free=False)
    assert not page.bar.hands_free.isChecked()


def test_escape_leaves_the_line_and_then_stops(page: TalkPage, app: App, qtbot: QtBot) -> None:
    page.bar.line.setFocus()
    qtbot.waitUntil(page.bar.line.hasFocus)
    calls(app)
    qtbot.keyClick(page.bar.line, Qt.Key.Key_Escape)
    assert (page.bar.button.hasFocus(), calls(app)) == (True, [])
    qtbot.keyClick(page.bar.button, Qt.Key.Key_Escape)
    assert calls(app) == [("stop",)]


# ---- the conversation and its actions


def test_the_empty_page_has_one_sentence_and_one_button(page: TalkPage, app: App, qtbot: QtBot) -> None:
    assert not page.view.isVisible()
    page.findChild(EmptyState).button.click()
    qtbot.waitUntil(page.bar.line.hasFocus)
    happen(app, *turn(1, "Hello.", "Hello!"))
    assert page.view.isVisible()
    happen(app, TurnUndone(1))
    assert not page.view.isVisible()


def test_copy_play_again_and_undo(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, *turn(1, "First.", "One.", emotion="sad"), *turn(2, "Second.", "Two.", emotion="happy"))
    calls(app)
    page.act("copy", 1)
    assert QGuiApplication.clipboard().text() == "First.\n\nOne."
    page.act("play", 1)
    ((name, samples, rate),) = calls(app)
    entry = page.view.entry(1)
    assert entry is not None
    assert isinstance(entry.message, Spoken)
    assert (name, rate) == ("clips.play", 16_000)
    assert np.array_equal(samples, entry.message.samples)
    page.view.setFocus()
    page.view.go_to(0)
    assert page.view.action_bar.buttons["play"].accessibleName() == "Stop playing"
    page.act("play", 1)
    assert calls(app) == [("clips.stop",)]
    assert page.view.action_bar.buttons["play"].accessibleName() == "Play your message"
    page.act("undo", 1)
    page.act("again", 1)
    assert calls(app) == []  # the last turn alone can be taken back
    page.act("again", 2)
    page.act("undo", 2)
    assert calls(app) == [("again",), ("undo",)]


def test_a_recording_that_ends_offers_to_be_played_again(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, *turn(1, "First.", "One.", emotion="sad"))
    page.view.setFocus()
    page.view.go_to(0)
    play = page.view.action_bar.buttons["play"]
    talk: Any = app.talk
    talk.clips.playing = True
    play.click()
    assert play.accessibleName() == "Stop playing"
    page.inspect()
    talk.clips.playing = False
    page.inspect()
    assert play.accessibleName() == "Play your message"


def test_an_edited_message_takes_the_place_of_the_last(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, *turn(1, "I mist the train.", "Pardon?", emotion="sad"))
    page.act("edit", 1)
    assert page.bar.line.text() == "I mist the train."
    qtbot.waitUntil(page.bar.line.hasFocus)
    page.bar.line.setText("I missed the train.")
    calls(app)
    page.bar.send()
    assert calls(app) == [("again", "I missed the train.")]
    page.act("edit", 1)
    happen(app, UtteranceEnded(2, speech()))  # something else was said meanwhile
    page.bar.send()
    assert calls(app)[-1] == ("type", "I mist the train.")
    page.act("edit", 2)
    qtbot.keyClick(page.bar.line, Qt.Key.Key_Escape)
    assert (page.bar.line.text(), page.bar.editing) == ("", False)


def test_the_remedy_of_a_failed_turn_asks_again(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, *turn(1, "Hello?", "", failure="The model took too long: ask again."))
    calls(app)
    page.view.views[0].remedy.click()
    assert calls(app) == [("again",)]


def test_a_new_conversation_is_empty(page: TalkPage, app: App) -> None:
    happen(app, *turn(1, "Hello.", "Hello!", emotion="happy"), SpeechStarted(2, 1.0))
    calls(app)
    page.bar.new.click()
    assert calls(app) == [("new",)]
    assert page.view.last is None
    assert page.panel.shown is None
    happen(app, Transcribed(1, "late"), *turn(2, "Again.", "Yes."))
    assert [entry.number for entry in page.view.entries] == [2]


def test_undo_keeps_the_words(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, *turn(1, "A long question.", "An answer."))
    with qtbot.waitSignal(app.notified) as emitted:
        page.undo()
    emitted.args[0].act()
    assert page.bar.line.text() == "A long question."


def test_going_to_a_turn_shows_its_reading(page: TalkPage, app: App) -> None:
    happen(app, *turn(1, "First.", "One.", emotion="sad"), *turn(2, "Second.", "Two.", emotion="happy"))
    assert page.panel.shown == 2
    page.view.go_to(0)
    assert page.panel.shown == 1


# ---- the page as a whole


def test_a_narrow_window_has_the_panel_above(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, *turn(1, "First.", "One.", emotion="sad"))
    assert page.panel.x() > page.view.parentWidget().x()
    for width in (480, 880):
        page.window().resize(width, 700)
        qtbot.waitUntil(lambda: page.panel.y() + page.panel.height() <= page.view.parentWidget().y() + 1)
        for part in page.bar.findChildren(QWidget):
            if part.isVisible():
                place = part.mapTo(page, part.rect().topLeft())
                assert 0 <= place.x() <= width - part.width(), part
    page.window().resize(1200, 700)
    qtbot.waitUntil(lambda: page.panel.x() > page.view.parentWidget().x())


def test_every_control_is_reached_by_tab_and_says_its_name(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, *turn(1, "First.", "One.", emotion="sad"), StateChanged(State.THINKING, False))
    qtbot.keyClicks(page.bar.line, "words")
    focus(page, qtbot, page.view)
    met: list[QWidget] = []
    while (now := QApplication.focusWidget()) is not None and page.bar.compact not in met:
        met.append(now)
        qtbot.keyClick(now, Qt.Key.Key_Tab)
    bar, actions = page.bar, page.view.action_bar.buttons
    wanted = [page.view, *(actions[name] for name in ("play", "copy", "edit", "again", "undo", "delay"))]
    wanted += [bar.button, bar.stop, bar.mute, bar.hands_free, bar.empathy, bar.line, bar.send_button]
    wanted += [bar.new, bar.compact]
    assert met == wanted
    for widget in page.bar.findChildren(QAbstractButton) + page.bar.findChildren(QLineEdit):
        assert widget.accessibleName(), widget


@pytest.mark.parametrize("name", theme.THEMES)
def test_the_page_follows_the_theme(page: TalkPage, app: App, qtbot: QtBot, name: str) -> None:
    happen(app, *turn(1, "First.", "One.", emotion="sad"))
    app.change("looks", theme=name, text_size=1.5)
    QApplication.processEvents()
    picture = page.bar.button.grab().toImage()
    wanted = theme.THEMES[name].window
    assert picture.pixelColor(1, 1).name().upper() == wanted.upper()
    app.change("looks", theme="light", text_size=1.0)


def test_the_page_follows_the_language(page: TalkPage, app: App, qtbot: QtBot) -> None:
    happen(app, *turn(1, "First.", "One.", emotion="sad"))
    install("zh")
    try:
        assert page.bar.button.caption.startswith("按住说话 · ")
        qtbot.waitUntil(lambda: page.bar.hands_free.text() == "免按键")
        assert page.tray.muted.text() == "麦克风静音"
        qtbot.waitUntil(lambda: page.view.views[0].accessibleName().startswith("您"))
        assert page.view.action_bar.buttons["copy"].accessibleName() == "复制消息和回答"
    finally:
        install("en")
    assert page.bar.button.caption == "Hold to talk · Space"


def test_a_correction_is_seen_in_the_conversation_and_taken_back(app: App, qtbot: QtBot) -> None:
    page = open_page(app, qtbot)
    happen(app, *turn(1, "I lost my keys.", "I am sorry.", emotion="happy"))
    [shown] = page.view.views
    assert shown.chip.accessibleName() == "Voice sounds happy 70%"
    page.panel.correct("sad")
    assert shown.chip.accessibleName() == "Voice sounds sad corrected"
    assert "sounds sad" in shown.accessibleName()
    page.panel.undo()
    assert shown.chip.accessibleName() == "Voice sounds happy 70%"
    page.panel.correct("happy")
    assert shown.chip.accessibleName() == "Voice sounds happy confirmed"


def test_in_a_low_window_the_way_to_the_history_is_shown(app: App, qtbot: QtBot) -> None:
    page = open_page(app, qtbot)
    page.window().resize(1000, 600)
    happen(app, *turn(1, "I lost my keys.", "I am sorry.", emotion="sad"))
    panel = page.panel
    qtbot.waitUntil(panel.more.isVisible)
    panel.more.click()
    qtbot.waitUntil(lambda: not panel.more.isVisible())
    assert not panel.history.visibleRegion().isEmpty()
    page.window().resize(1000, 1000)
    qtbot.waitUntil(lambda: panel.body.verticalScrollBar().maximum() == 0)
    assert not panel.more.isVisible()
