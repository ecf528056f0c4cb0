"""The emotion panel of the Sessions page: the turn that is playing, and the whole session."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QWidget

from assistant.events import SAMPLE_RATE, Spoken, Typed
from ui.core.emotion_text import voice_sounds
from ui.core.translations import tr
from ui.sessions.timeline import SessionAudio
from ui.sessions.transcript import ReadingArea
from ui.widgets.common import column, label
from ui.widgets.emotion_charts import ReadingBars, ReadingHistory, TurnReading
from ui.widgets.waveform import Waveform


class SessionEmotionPanel(ReadingArea):
    """The reading of the current turn, its waveform, and the readings of the session.

    Signals:
        seek_requested: a position of the session in seconds.
        turn_requested: the index of a turn to play.
    """

    seek_requested = Signal(float)
    turn_requested = Signal(int)

    def __init__(self) -> None:
        super().__init__("")
        self._session_audio: SessionAudio | None = None
        self._turn = -1
        self.setAccessibleName(self.tr("Emotion"))
        self._text = label("", "lead")
        self._note = label("", "small")
        self._bars = ReadingBars()
        self._wave = Waveform(self.tr("This utterance"))
        self._wave.seek_requested.connect(self._seek)
        self._history = ReadingHistory()
        self._history.chosen.connect(self._choose)
        inner = QWidget()
        layout = column(
            self._text, self._note, self._bars, 4, self._wave, 12, label(self.tr("This session"), "heading")
        )
        layout.addWidget(self._history)
        layout.addStretch(1)
        layout.setContentsMargins(16, 12, 8, 16)
        inner.setLayout(layout)
        self.setWidget(inner)

    def show_session_audio(self, session_audio: SessionAudio | None) -> None:
        """Show a session."""
        self._session_audio, self._turn = session_audio, -1
        self._show_turn()

    def set_position(self, seconds: float) -> None:
        """Follow the player."""
        if self._session_audio is None:
            return
        turn = self._session_audio.turn_at(seconds)
        if turn != self._turn:
            self._turn = turn
            self._show_turn()
        part = self._session_audio.part(turn, "you")
        inside = part is not None and part.start <= seconds <= part.end
        self._wave.set_position(seconds - part.start if part is not None and inside else None)

    def _show_turn(self) -> None:
        recorded = (
            self._session_audio.session.turns[self._turn]
            if self._session_audio is not None and self._turn >= 0
            else None
        )
        turn = recorded.turn if recorded else None
        reading = turn.reading if turn else None
        if recorded is not None and recorded.corrected is not None:
            self._text.setText(voice_sounds(recorded.corrected))
            self._note.setText(self.tr("Corrected by you. Detected: {}").format(tr(reading.label) if reading else "?"))
        elif reading is not None:
            self._text.setText(f"{voice_sounds(reading.label)}  {reading.confidence:.0%}")
            self._note.setText("")
        else:
            typed = turn is not None and isinstance(turn.message, Typed)
            self._text.setText(self.tr("Typed, no voice") if typed else self.tr("No emotion detected"))
            self._note.setText("")
        self._note.setVisible(bool(self._note.text()))
        self._bars.show_reading(reading)
        if turn is not None and isinstance(turn.message, Spoken):
            self._wave.show(turn.message.samples, SAMPLE_RATE, reading)
        else:
            self._wave.clear()
        self._show_history(turn.number if turn else None)

    def _show_history(self, number: int | None) -> None:
        turns = self._session_audio.session.turns if self._session_audio else ()
        read = [TurnReading(t.turn.number, t.turn.reading, t.corrected) for t in turns if t.turn.reading is not None]
        self._history.show_turns(read, number)

    def _seek(self, seconds: float) -> None:
        part = self._session_audio.part(self._turn, "you") if self._session_audio else None
        if part is not None:
            self.seek_requested.emit(part.start + seconds)

    def _choose(self, number: int) -> None:
        turns = self._session_audio.session.turns if self._session_audio else ()
        self.turn_requested.emit(next(index for index, one in enumerate(turns) if one.turn.number == number))
