"""The conversation view: texts, interruptions, failures, navigation, hostile texts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from PySide6.QtCore import QEvent, QPointF, Qt
from PySide6.QtGui import QColor, QEnterEvent, QTextCursor
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from assistant.events import (
    EmotionRead,
    Event,
    Outcome,
    PlaybackProgressed,
    ReplyText,
    SpeechStarted,
    State,
    StateChanged,
    Transcribed,
    TurnUndone,
    Typed,
    UtteranceEnded,
)
from tests.ui.support.hostile import counted_work, hostile, traps
from tests.ui.support.turns import reading, speech, turn
from ui.core import theme
from ui.talk.conversation_view import ConversationView
from ui.talk.turn_view import SHOWN, SelectableText, TurnView
from ui.widgets.common import EmotionChip


@pytest.fixture
def view(qapp: QApplication, qtbot: QtBot) -> ConversationView:
    theme.apply(qapp, "light")
    made = ConversationView()
    qtbot.addWidget(made)
    made.resize(700, 500)
    made.show()
    return made


def notify(view: ConversationView, *events: Event) -> None:
    for event in events:
        view.handle_event(event)


def delete_dropped() -> None:
    """What is deleted later is deleted by the loop that runs the program; here it is now."""
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)


def texts(shown: TurnView) -> list[str]:
    return [prose.toPlainText() for prose in shown.findChildren(SelectableText)]


def test_a_turn_grows_as_it_is_told(view: ConversationView) -> None:
    notify(view, SpeechStarted(1, 0.0), StateChanged(State.LISTENING, True))
    (shown,) = view.views
    assert texts(shown)[0] == "Listening…"
    notify(view, UtteranceEnded(1, speech(1.5)), StateChanged(State.THINKING, False))
    assert texts(shown)[0] == "1.5 s of speech"
    notify(view, EmotionRead(1, reading("sad")), Transcribed(1, "I missed the train."))
    chip = shown.findChildren(EmotionChip)[0]
    assert (chip.isVisible(), chip.emotion) == (True, "sad")
    for word in ("  That ", "is a ", "rough start."):
        notify(view, ReplyText(1, word))
    assert texts(shown) == ["I missed the train.", "That is a rough start."]
    assert "I missed the train." in shown.accessibleName()


def test_noise_leaves_no_turn(view: ConversationView) -> None:
    notify(view, *turn(1, "Hello.", "Hello."), SpeechStarted(2, 0.0), StateChanged(State.LISTENING, True))
    assert len(view.entries) == 2
    notify(view, StateChanged(State.IDLE, False))
    assert [entry.number for entry in view.entries] == [1]


def colour_at(prose: SelectableText, words: str) -> str:
    cursor: QTextCursor = prose.document().find(words)
    assert not cursor.isNull()
    brush = cursor.charFormat().foreground()
    return brush.color().name() if brush.style() is not Qt.BrushStyle.NoBrush else "plain"


def test_what_was_heard_is_plain_and_the_rest_is_muted(view: ConversationView) -> None:
    reply = "The town was built around a square. Its walls are gone."
    heard = "The town was built around"
    notify(view, *turn(1, "Tell me.", reply, heard=heard, outcome=Outcome.INTERRUPTED))
    prose = view.views[0].findChildren(SelectableText)[1]
    assert prose.toPlainText() == f"{heard}| a square. Its walls are gone."
    assert colour_at(prose, "built around") == "plain"
    assert colour_at(prose, "walls") == QColor(theme.colours().muted).name()
    assert "You interrupted" in view.views[0].accessibleName()
    notify(view, *turn(2, "Go on.", reply, heard="", outcome=Outcome.STOPPED))
    assert view.entries[1].note == "Stopped before playback."
    notify(view, *turn(3, "Once more.", reply))
    notify(view, PlaybackProgressed(3, reply))
    assert view.entries[2].note == ""


def test_a_turn_that_failed_offers_to_ask_again(view: ConversationView, qtbot: QtBot) -> None:
    notify(view, *turn(1, "How long is the walk?", "", failure="Memory ran out: close other programs."))
    shown = view.views[0]
    assert "Memory ran out" in shown.accessibleName()
    with qtbot.waitSignal(view.action_requested) as action_requested:
        shown.remedy.click()
    assert action_requested.args == ["again", 1]
    notify(view, *turn(2, "And now?", "Ten minutes."))
    assert not shown.remedy.isVisible()


def test_undone_turns_go_and_a_new_conversation_is_deaf_to_the_old(view: ConversationView) -> None:
    notify(view, *turn(1, "One.", "First."), *turn(2, "Two.", "Second."), TurnUndone(2))
    assert [entry.number for entry in view.entries] == [1]
    notify(view, *turn(3, "Two, again.", "Second."), SpeechStarted(4, 0.0))
    view.clear()
    notify(view, *turn(3, "Two, again.", "Second.")[2:])
    assert view.last is None
    notify(view, *turn(4, "Hello.", "Hello."))
    assert [entry.number for entry in view.entries] == [4]


def test_only_turns_in_sight_have_widgets_and_the_newest_is_followed(view: ConversationView) -> None:
    for number in range(1, 51):
        notify(view, *turn(number, f"Question {number}.", "An answer. " * 12, emotion="happy"))
    delete_dropped()
    few = len(QApplication.allWidgets())
    for number in range(51, 251):
        notify(view, *turn(number, f"Question {number}.", "An answer. " * 12, emotion="happy"))
    delete_dropped()
    assert len(view.views) < 15
    assert len(QApplication.allWidgets()) <= few + 20
    bar = view.verticalScrollBar()
    assert bar.value() == bar.maximum()
    assert view.newest.isHidden()


def test_who_scrolled_up_stays_there(view: ConversationView) -> None:
    for number in range(1, 31):
        notify(view, *turn(number, f"Question {number}.", "An answer. " * 12))
    bar = view.verticalScrollBar()
    bar.setValue(bar.maximum() // 2)
    first = view.views[0].entry.number
    place = view.views[0].pos()
    notify(view, *turn(31, "Another.", "Answer."))
    assert (view.views[0].entry.number, view.views[0].pos()) == (first, place)
    assert view.newest.isVisible()
    view.follow()
    assert view.views[-1].entry.number == 31
    notify(view, UtteranceEnded(32, Typed("More.")))
    assert bar.value() == bar.maximum()


def test_the_keyboard_goes_from_turn_to_turn_and_to_the_actions(view: ConversationView, qtbot: QtBot) -> None:
    for number in range(1, 21):
        notify(view, *turn(number, f"Question {number}.", "An answer. " * 12, emotion="sad"))
    view.setFocus(Qt.FocusReason.TabFocusReason)
    bar = view.action_bar
    assert bar.isVisible()
    shown = {name for name, button in bar.buttons.items() if button.isVisible()}
    assert shown == {"play", "copy", "edit", "again", "undo", "delay"}
    with qtbot.waitSignal(view.chosen) as chosen:
        qtbot.keyClick(view, Qt.Key.Key_Home)
    assert chosen.args == [1]
    shown = {name for name, button in bar.buttons.items() if button.isVisible()}
    assert shown == {"play", "copy", "delay"}
    assert "Question 1." in view.accessibleDescription()
    place = view.views[0]
    qtbot.waitUntil(lambda: place.geometry().contains(bar.geometry().center()))
    qtbot.keyClick(view, Qt.Key.Key_Down)
    assert "Question 2." in view.accessibleDescription()
    before = view.views[1].height()
    bar.buttons["delay"].click()
    assert view.views[1].height() > before


def test_the_mouse_shows_the_actions_of_the_turn_under_it(view: ConversationView, qtbot: QtBot) -> None:
    for number in range(1, 4):
        notify(view, *turn(number, f"Question {number}.", "An answer.", emotion="sad"))
    view.clearFocus()
    assert view.action_bar.isHidden()
    place = QPointF(30, 30)
    QApplication.sendEvent(view.views[1], QEnterEvent(place, place, place))
    assert view.action_bar.isVisible()
    with qtbot.waitSignal(view.action_requested) as action_requested:
        view.action_bar.buttons["copy"].click()
    assert action_requested.args == ["copy", 2]


@pytest.mark.parametrize("name", theme.THEMES)
@pytest.mark.parametrize("size", [0.75, 1.0, 2.0])
def test_every_theme_and_size_shows_all_of_it(
    view: ConversationView, qapp: QApplication, name: str, size: float
) -> None:
    notify(
        view, *turn(1, "Question.", "An answer that is cut.", heard="An answer", outcome=Outcome.STOPPED, emotion="sad")
    )
    notify(view, *turn(2, "Question.", "", failure="It failed: do this."))
    theme.apply(qapp, name, size)
    qapp.processEvents()
    (first, second) = view.views
    assert first.findChildren(SelectableText)[0].font().pixelSize() == theme.pixels("lead")
    assert second.y() == first.y() + first.height()
    for shown in view.views:
        for prose in shown.findChildren(SelectableText):
            if prose.isVisible():
                assert prose.height() >= prose.document().size().height()
                assert shown.rect().contains(prose.geometry())
    theme.apply(qapp, "light")


# ---- hostile texts


def test_hostile_texts_stay_texts(view: ConversationView, tmp_path: Path) -> None:
    with traps(tmp_path / "traps") as trap, counted_work() as work:
        for number, text in enumerate(hostile(trap, 60), 1):
            voice = "sad" if number % 2 else ""
            for event in turn(number, text, text, emotion=voice, heard=text[:10], outcome=Outcome.STOPPED):
                work.do(text, partial(view.handle_event, event))
            assert len(texts(view.views[-1])[0]) <= SHOWN + 60  # breaks, too


def test_a_reply_of_a_megabyte_streams_smoothly(view: ConversationView) -> None:
    """Each piece costs no more than what is shown of the whole."""
    notify(view, UtteranceEnded(1, Typed("Go on.")))
    with counted_work() as work:
        for _ in range(1000):
            work.do("piece", partial(view.handle_event, ReplyText(1, "aש" * 500)))
    assert len(view.entries[0].reply) == 1_000_000
