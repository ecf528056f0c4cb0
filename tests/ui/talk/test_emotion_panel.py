"""The emotion panel: kinds of readings, playback, history, corrections, consent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtWidgets import QToolButton, QWidget
from pytestqt.qtbot import QtBot

from assistant.backend.protocol import Ready
from assistant.events import (
    UNSURE,
    EmotionRead,
    Failed,
    State,
    StateChanged,
    Turn,
    TurnEnded,
    TurnUndone,
    Typed,
    UtteranceEnded,
)
from tests.ui.support.readings import RATE, reading, spoken
from ui.core import theme
from ui.core.app import App
from ui.talk.emotion_headline import prosody_explanation
from ui.talk.emotion_panel import EmotionPanel

MINI = Ready({"name": "mini", "reads_emotion": True, "prosody_estimate": True})


@pytest.fixture
def panel(app: App, qtbot: QtBot) -> Iterator[EmotionPanel]:
    window = QWidget()  # which leaves the panel's size to the test
    qtbot.addWidget(window)
    window.resize(900, 700)
    made = EmotionPanel(app)
    made.setParent(window)
    made.resize(340, 640)
    window.show()
    yield made
    window.close()


def notify(app: App, *events: object) -> None:
    for event in events:
        app.event_received.emit(event)


def report(app: App, number: int, label: str = "sad", *, ended: bool = True) -> None:
    message, read = spoken(seed=number), reading(label, seed=number)
    notify(app, UtteranceEnded(number, message), EmotionRead(number, read))
    if ended:
        notify(app, TurnEnded(Turn(number, message, "words", read)))


def calls(app: App, name: str) -> list[tuple[Any, ...]]:
    talk: Any = app.talk
    return [call[1:] for call in talk.calls if call[0] == name]


def words(panel: EmotionPanel) -> str:
    return panel.headline.text.text()


def press(panel: EmotionPanel, qtbot: QtBot, emotion: str) -> None:
    name = f"It sounded {emotion}"
    chosen = next(one for one in panel.findChildren(QToolButton) if one.accessibleName() == name)
    qtbot.mouseClick(chosen, Qt.MouseButton.LeftButton)


def test_a_turn_from_silence_to_reading(app: App, panel: EmotionPanel) -> None:
    assert words(panel) == "No emotion yet"
    notify(app, MINI, StateChanged(State.LISTENING, True))
    assert words(panel) == "Listening"
    message, read = spoken(), reading("sad")
    notify(app, StateChanged(State.THINKING, False), UtteranceEnded(1, message))
    assert words(panel) == "Reading your voice…"
    assert panel.bars.accessibleName() == "Emotion: none yet"
    notify(app, EmotionRead(1, read))
    assert words(panel) == "Voice sounds sad"
    assert panel.headline.confidence.text() == f"{read.confidence * 100:.0f}\N{NARROW NO-BREAK SPACE}%"
    assert panel.bars.accessibleName().startswith(f"Emotion: sad {panel.headline.confidence.text()}, ")
    assert panel.waveform.duration == 2.0
    notify(app, StateChanged(State.LISTENING, True))
    assert words(panel) == "Listening"
    assert not panel.utterance.isVisible()
    notify(app, StateChanged(State.IDLE, False))  # a cough
    assert words(panel) == "Voice sounds sad"


def test_unsure_is_said_as_such(app: App, panel: EmotionPanel) -> None:
    report(app, 1, UNSURE)
    assert words(panel) == "Unsure, closest to angry"


def test_mini_is_called_a_prosody_estimate_and_explains_it(app: App, panel: EmotionPanel) -> None:
    notify(app, MINI)
    assert not panel.headline.estimate.isVisible()
    report(app, 1)
    assert panel.headline.estimate.isVisible()
    assert panel.headline.estimate.accessibleDescription() == prosody_explanation()
    assert "often wrong" in prosody_explanation()
    notify(app, Ready({"reads_emotion": True, "prosody_estimate": False}))
    assert not panel.headline.estimate.isVisible()


def test_a_model_without_a_head_says_so(app: App, panel: EmotionPanel) -> None:
    notify(app, Ready({"reads_emotion": False}))
    assert words(panel) == "This model does not read emotion"
    notify(app, UtteranceEnded(1, spoken()), EmotionRead(1, None))
    assert words(panel) == "This model does not read emotion"
    assert "Choose another model" in panel.note.text()
    assert panel.waveform.isVisible()
    assert not panel.correction.isVisible()


def test_a_turn_that_fails_before_it_is_read_says_so(app: App, panel: EmotionPanel) -> None:
    notify(app, UtteranceEnded(1, spoken()), Failed(1, "The model broke."))
    assert words(panel) == "No emotion detected"


def test_a_moment_is_heard_and_followed(app: App, panel: EmotionPanel, qtbot: QtBot) -> None:
    report(app, 1)
    talk: Any = app.talk
    where = QPoint(panel.waveform.width() // 2, 30)
    qtbot.mouseClick(panel.waveform, Qt.MouseButton.LeftButton, pos=where)
    ((samples, rate, at, speed),) = calls(app, "clips.play")
    assert (len(samples), rate, speed) == (2 * RATE, RATE, 1.0)
    assert at == pytest.approx(1.0, abs=0.02)
    talk.clips.playing, talk.clips.position = True, 1.4
    qtbot.waitUntil(lambda: panel.waveform.position == 1.4)
    assert panel.sound.accessibleName() == "Stop"
    talk.clips.playing = False
    qtbot.waitUntil(lambda: panel.waveform.position is None)
    assert panel.sound.accessibleName() == "Play"


def test_the_history_leads_to_its_turns(app: App, panel: EmotionPanel, qtbot: QtBot) -> None:
    for number in range(1, 6):
        report(app, number, "happy" if number == 2 else "sad")
    notify(app, UtteranceEnded(6, Typed("hello")))
    assert panel.shown == 5
    qtbot.keyClick(panel.history, Qt.Key.Key_Home)
    qtbot.keyClick(panel.history, Qt.Key.Key_Right)
    assert panel.shown == 2
    assert words(panel) == "Voice sounds happy"
    assert panel.history.accessibleName().startswith("This conversation, turn 2: happy ")
    qtbot.mouseMove(panel.history, panel.history.middle_of(3))
    pointed = panel.history.highlighted
    assert pointed is not None
    assert pointed.number == 4
    qtbot.mouseClick(panel.history, Qt.MouseButton.LeftButton, pos=panel.history.middle_of(3))
    assert panel.shown == 4
    panel.show_turn(6)  # typed: there is nothing to show
    assert panel.shown == 4


@pytest.mark.parametrize("turns", [1, 200])
def test_any_number_of_turns_can_be_drawn(app: App, panel: EmotionPanel, qtbot: QtBot, turns: int) -> None:
    for number in range(1, turns + 1):
        report(app, number, ("sad", UNSURE, "happy")[number % 3])
    assert not panel.grab().isNull()
    qtbot.keyClick(panel.history, Qt.Key.Key_End)
    assert panel.shown == turns


def test_undone_turns_and_new_conversations_go(app: App, panel: EmotionPanel) -> None:
    report(app, 1, "happy")
    report(app, 2, "sad")
    notify(app, TurnUndone(2))
    assert (panel.shown, words(panel)) == (1, "Voice sounds happy")
    panel.clear()
    assert (panel.shown, words(panel)) == (None, "No emotion yet")


def test_a_correction_is_kept_shown_and_taken_back(app: App, panel: EmotionPanel, qtbot: QtBot) -> None:
    app.change("recording", corrections=True)
    report(app, 3, "sad")
    press(panel, qtbot, "angry")
    assert calls(app, "correct") == [(3, "angry", {"consent": True})]
    assert panel.correction.chip.isVisible()
    assert panel.correction.chip.accessibleName() == "Voice sounds angry corrected"
    assert not panel.correction.consent.isVisible()
    press(panel, qtbot, "sad")
    assert panel.correction.chip.accessibleName() == "Voice sounds sad confirmed"
    for _ in range(2):
        qtbot.mouseClick(panel.correction.undo, Qt.MouseButton.LeftButton)
    assert [call[1] for call in calls(app, "correct")] == ["angry", "sad", "angry", None]
    assert not panel.correction.chip.isVisible()


def test_a_correction_waits_until_its_turn_stands_in_the_history(app: App, panel: EmotionPanel) -> None:
    report(app, 1, "sad", ended=False)
    panel.correct("neutral")
    assert calls(app, "correct") == []
    notify(app, TurnEnded(Turn(1, spoken(), "words", reading("sad"))))
    assert calls(app, "correct") == [(1, "neutral", {"consent": False})]


@pytest.mark.parametrize("yes", [True, False])
def test_consent_is_asked_once_in_place(app: App, panel: EmotionPanel, qtbot: QtBot, yes: bool) -> None:
    report(app, 1)
    panel.correct("happy")
    assert panel.correction.consent.isVisible()
    assert calls(app, "correct")[-1] == (1, "happy", {"consent": False})
    panel.correction.answered.emit(yes)
    assert app.settings.recording.corrections is yes
    assert calls(app, "correct")[-1] == (1, "happy", {"consent": yes})
    report(app, 2)
    panel.correct("angry")
    assert not panel.correction.consent.isVisible()
    again = EmotionPanel(app)
    qtbot.addWidget(again)
    report(app, 3)
    again.correct("angry")
    assert again.correction.consent.isHidden()


def test_a_strip_folds_and_unfolds(app: App, panel: EmotionPanel, qtbot: QtBot) -> None:
    report(app, 1)
    panel.set_strip(True)
    panel.resize(880, 60)
    assert not panel.bars.isVisible()
    folded = panel.sizeHint().height()
    assert folded < 70
    qtbot.mouseClick(panel.fold, Qt.MouseButton.LeftButton)
    assert panel.bars.isVisible()
    assert folded < panel.sizeHint().height() < 420
    panel.set_strip(False)
    panel.set_folded(True)  # a column does not fold
    assert panel.bars.isVisible()


@pytest.mark.parametrize("name", theme.THEMES)
@pytest.mark.parametrize("size", [1.0, 2.0])
def test_it_can_be_drawn_in_every_theme_and_size(app: App, panel: EmotionPanel, name: Any, size: float) -> None:
    report(app, 1, UNSURE)
    app.change("looks", theme=name, text_size=size)
    assert not panel.grab().isNull()
    app.change("looks", theme="light", text_size=1.0)
