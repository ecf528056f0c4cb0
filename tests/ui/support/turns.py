"""The events of turns, for tests of their display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from assistant.backend.protocol import Ready
from assistant.events import (
    EMOTIONS,
    EmotionRead,
    EmotionReading,
    Event,
    Failed,
    Outcome,
    ReplyFinished,
    ReplyText,
    Spoken,
    State,
    StateChanged,
    Transcribed,
    Turn,
    TurnEnded,
    Typed,
    UtteranceEnded,
)
from ui.core.app import App
from ui.main_window import PAGES, MainWindow
from ui.talk.page import TalkPage

MARKS = {
    "asked": 9.7,
    "read": 9.86,
    "first_text": 10.32,
    "first_sentence": 10.45,
    "first_speech": 10.61,
    "ended": 10.0,
    "first_sound": 10.7,
    "reply_finished": 12.0,
    "finished": 15.0,
}
FIGURES = {"encode_ms": 150.0, "prefill_ms": 310.0, "first_token_ms": 345.0, "reply_ms": 2100.0, "tokens": 40.0}


def reading(label: str, confidence: float = 0.7) -> EmotionReading:
    """A confident reading of one emotion."""
    probabilities = np.full(5, (1 - confidence) / 4, np.float32)
    probabilities[EMOTIONS.index(label)] = confidence
    return EmotionReading(probabilities, label, 0.1, np.zeros((20, 5), np.float32), np.log(probabilities))


def speech(seconds: float = 1.0) -> Spoken:
    """A tone."""
    return Spoken(np.sin(np.arange(int(seconds * 16_000)) / 20).astype(np.float32) * 0.3)


def turn(
    number: int,
    said: str,
    reply: str,
    *,
    emotion: str = "",
    heard: str | None = None,
    outcome: Outcome = Outcome.ANSWERED,
    marks: Mapping[str, float] = MARKS,
    failure: str = "",
) -> list[Event]:
    """The events of a turn from its message to its end; spoken if it has an emotion."""
    message = speech() if emotion else Typed(said)
    emitted: list[Event] = [UtteranceEnded(number, message), StateChanged(State.THINKING, False)]
    read = reading(emotion) if emotion else None
    if emotion:
        emitted += [EmotionRead(number, read), Transcribed(number, said)]
    emitted += [ReplyText(number, reply[at : at + 40]) for at in range(0, min(len(reply), 400), 40)]
    if failure:
        emitted.append(Failed(number, failure))
    elif reply:
        emitted.append(ReplyFinished(number, reply))
    whole = Turn(
        number=number,
        message=message,
        transcript=said if emotion else None,
        reading=read,
        reply=reply,
        heard=reply if heard is None else heard,
        outcome=Outcome.FAILED if failure else outcome,
        marks=marks,
        figures=FIGURES,
    )
    return [*emitted, TurnEnded(whole), StateChanged(State.IDLE, False)]


def open_page(app: App, qtbot: QtBot) -> TalkPage:
    """The Talk page in the real window, active."""
    window = MainWindow(app, {name: lambda _app: QWidget() for name in PAGES} | {"talk": TalkPage})
    qtbot.addWidget(window)
    app.setProperty("window", window)  # keeps it as long as the app
    page = window.show_page("talk")
    assert isinstance(page, TalkPage)
    window.resize(1000, 700)
    window.show()
    window.activateWindow()
    qtbot.waitUntil(lambda: window.isActiveWindow() and page.bar.button.hasFocus())
    return page


def calls(app: App) -> list[tuple[Any, ...]]:
    """Return and clear the calls to the conversation."""
    talk: Any = app.talk
    noted = list(talk.calls)
    talk.calls.clear()
    return noted


def happen(app: App, *events: Event | Ready) -> None:
    """Send events through the bridge to the window."""
    talk: Any = app.talk
    talk.happen(*events)
    app._bridge.flush()
