"""The emotion panel: the emotion of the current turn and of the conversation, and corrections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QBoxLayout, QFrame, QScrollArea, QSizePolicy, QWidget

from assistant.backend.protocol import Ready
from assistant.events import (
    SAMPLE_RATE,
    UNSURE,
    EmotionRead,
    EmotionReading,
    Failed,
    Spoken,
    StateChanged,
    TurnEnded,
    TurnUndone,
    UtteranceEnded,
)
from ui.core import theme
from ui.core.app import App
from ui.core.emotion_text import voice_sounds
from ui.core.playback import Playback
from ui.core.translations import tr
from ui.talk.emotion_headline import Headline
from ui.widgets.common import IconButton, column, label, row
from ui.widgets.emotion_charts import ReadingBars, ReadingHistory, TurnReading, percent
from ui.widgets.emotion_correction import EmotionCorrection, remember_answer, was_asked
from ui.widgets.waveform import Waveform

_STRIP_HEIGHT = 320  # pixels; maximum height of the expanded strip
_TWO_COLUMNS = 32  # text heights; a narrower strip has one column
_NEAR = 24  # pixels from the end that count as the end
_UNLIMITED = 16_777_215  # Qt's own largest height


@dataclass(slots=True, eq=False)
class _Turn:
    """A spoken turn as the panel knows it."""

    number: int
    spoken: Spoken
    reading: EmotionReading | None = None
    read: bool = False  # the model answered, with or without a reading
    ended: bool = False  # it is in the history; before that it cannot be corrected
    corrected: str | None = None
    before: str | None = None  # the previous value of `corrected`


class EmotionPanel(QWidget):
    """Follows `app.event_received`. A column next to the conversation, or a strip above it (`set_strip`).

    Args:
        app: the application object.
        before: the panel in the previous language, whose turns this one keeps.

    Signals:
        corrected: the number of a turn, and its correct emotion; None restores the reading.
    """

    corrected = Signal(int, object)

    def __init__(self, app: App, before: EmotionPanel | None = None) -> None:
        super().__init__()
        self._app = app
        self._turns: dict[int, _Turn] = before._turns if before else {}
        self._shown: int | None = before.shown if before else None
        self._speaking: bool = before is not None and before._speaking
        self._about: Mapping[str, Any] = app.about
        self._strip = self._folded = False
        self._drawn: tuple[_Turn | None, EmotionReading | None] = (None, None)
        self._playback = Playback(app, self)
        self._playback.changed.connect(self._show_playing)
        self._playback.refused.connect(app.notify)
        self.setAccessibleName(self.tr("Emotion"))
        self._build()
        app.event_received.connect(self._on_event)
        self._draw()

    # ---- for the page

    def show_turn(self, number: int) -> None:
        """Show the reading of a turn, if it was spoken."""
        if number in self._turns and number != self._shown:
            self._shown = number
            self._draw()

    def clear(self) -> None:
        """Forget all turns for a new conversation."""
        self._turns.clear()
        self._shown = None
        self._draw()

    def set_strip(self, on: bool) -> None:
        """Switch between a column and a strip, which starts collapsed."""
        if on != self._strip:
            self._strip = on
            self._edge.setContentsMargins(16, 8 if on else 12, 16, 8 if on else 12)
            self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum if on else self._free)
            self._edge.setStretch(self._edge.count() - 1, int(on))  # takes the remaining space
            self.fold.setVisible(on)
            self.set_folded(on)

    def set_folded(self, folded: bool) -> None:
        """Collapse the strip to its headline, or expand it."""
        self._folded = folded and self._strip
        self.body.setVisible(not self._folded)
        self.fold.show_icon(*(("down", self.tr("More")) if self._folded else ("close", self.tr("Less"))))
        self._arrange()

    @property
    def shown(self) -> int | None:
        """The number of the current turn."""
        return self._shown

    def correct(self, emotion: str) -> None:
        """Correct the emotion of the current turn."""
        turn = self._turn
        if turn is not None and turn.corrected != emotion:
            turn.before, turn.corrected = turn.corrected, emotion
            self._notify(turn)
            if not self._app.settings.recording.corrections and not was_asked(self._app):
                self.correction.ask(on=True)
            self._draw()

    def undo(self) -> None:
        """Undo the last correction of the current turn."""
        turn = self._turn
        if turn is not None:
            turn.corrected, turn.before = turn.before, None
            self._notify(turn)
            self.correction.ask(on=False)
            self._draw()

    # ---- events

    def _on_event(self, event: object) -> None:
        if isinstance(event, StateChanged):
            if event.user_speaking != self._speaking:
                self._speaking = event.user_speaking
                self._draw()
            return
        if isinstance(event, UtteranceEnded) and isinstance(event.message, Spoken):
            self._turns[event.turn] = _Turn(event.turn, event.message)
            self._shown = event.turn
        elif isinstance(event, EmotionRead) and (turn := self._turns.get(event.turn)):
            turn.reading, turn.read = event.reading, True
        elif isinstance(event, TurnEnded) and (turn := self._turns.get(event.turn.number)):
            self._end(turn, event)
        elif isinstance(event, TurnUndone) and event.turn in self._turns:
            self._forget(event.turn)
        elif isinstance(event, Failed) and event.turn is not None and (turn := self._turns.get(event.turn)):
            turn.ended = True
        elif isinstance(event, Ready):
            self._about = event.about
        else:
            return
        self._draw()

    def _end(self, turn: _Turn, event: TurnEnded) -> None:
        if not turn.ended:
            turn.ended = True
            if turn.corrected:
                self._send(turn)
        if event.turn.reading is not None:
            turn.reading, turn.read = event.turn.reading, True

    def _forget(self, number: int) -> None:
        del self._turns[number]
        if self._shown == number:
            self._shown = next(reversed(self._turns), None)

    # ---- corrections

    def _notify(self, turn: _Turn) -> None:
        self._send(turn)
        self.corrected.emit(turn.number, turn.corrected)

    def _send(self, turn: _Turn) -> None:
        talk = self._app.talk
        if talk is not None and turn.ended:
            talk.correct(turn.number, turn.corrected, consent=self._app.settings.recording.corrections)

    def _answer(self, consent: bool) -> None:
        remember_answer(self._app)
        self.correction.ask(on=False)
        if consent:
            self._app.change("recording", corrections=True)
            for turn in self._turns.values():
                if turn.corrected:
                    self._send(turn)

    # ---- sound

    def _play_from(self, seconds: float) -> None:
        self._playback.seek(seconds)
        if not self._playback.playing:
            self._playback.play()

    def _show_playing(self, on: bool) -> None:
        self.sound.show_icon(*(("stop", self.tr("Stop")) if on else ("play", self.tr("Play"))))
        if not on:
            self.waveform.set_position(None)

    # ---- building

    def _build(self) -> None:
        self._free = QSizePolicy.Policy.Expanding
        self.headline = Headline()
        self.note = label(role="small")
        self.fold = IconButton("down", self.tr("More"), lambda: self.set_folded(not self._folded))
        self.fold.hide()
        whole = row()
        whole.addWidget(self.headline, 1)
        whole.addWidget(self.fold, 0, Qt.AlignmentFlag.AlignTop)
        self.bars, self.history = ReadingBars(), ReadingHistory()
        self.history.chosen.connect(self.show_turn)
        self.waveform = Waveform(self.tr("Your voice"))
        self.waveform.seek_requested.connect(self._play_from)
        self._playback.moved.connect(self.waveform.set_position)
        self.sound = IconButton("play", self.tr("Play"), self._playback.toggle, 16)
        self._caption = label(role="small", wrap=False)
        self.more = IconButton("down", self.tr("This conversation"), self._show_history, 16)
        head = _widget(row(self._caption, None, self.sound, self.more, spacing=2))
        self.utterance = _widget(column(head, self.waveform, spacing=0))
        self.correction = EmotionCorrection()
        self.correction.chosen.connect(self.correct)
        self.correction.undone.connect(self.undo)
        self.correction.answered.connect(self._answer)
        heading = label(self.tr("This conversation"), "small")
        self._conversation = _widget(column(heading, self.history, spacing=4))
        self._halves = QBoxLayout(QBoxLayout.Direction.TopToBottom)
        for half in (
            column(self.bars, self.utterance, spacing=8),
            column(self.correction, self._conversation, spacing=12),
        ):
            self._halves.addWidget(_widget(half), 1, Qt.AlignmentFlag.AlignTop)
        self._halves.addStretch(0)
        inside = _widget(self._halves)
        self._halves.setContentsMargins(0, 0, 8, 0)
        self.body = QScrollArea()
        self.body.setWidgetResizable(True)
        self.body.setFrameShape(QFrame.Shape.NoFrame)
        self.body.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.body.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.body.setWidget(inside)
        self._edge = column(spacing=8)
        self._edge.addLayout(whole)
        self._edge.addWidget(self.note)
        self._edge.addWidget(self.body, 1)
        for moved in (bar := self.body.verticalScrollBar()).valueChanged, bar.rangeChanged:
            moved.connect(self._show_more)
        self._edge.addStretch(0)
        self._edge.setContentsMargins(16, 12, 16, 12)
        self.setLayout(self._edge)

    # ---- drawing

    def _show_history(self) -> None:
        self.body.ensureWidgetVisible(self._conversation, 0, 8)

    def _show_more(self, *_: int) -> None:
        """Show a button if the conversation's emotions are below the visible area."""
        bar = self.body.verticalScrollBar()
        below = bar.maximum() - bar.value() > _NEAR
        self.more.setVisible(below and not self._folded and self._conversation.isVisibleTo(self))

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme and the text size."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.FontChange) and self.layout() is not None:
            self._draw()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Lay out for the new width."""
        super().resizeEvent(event)
        self._arrange()

    @property
    def _turn(self) -> _Turn | None:
        return None if self._shown is None else self._turns.get(self._shown)

    def _draw(self) -> None:
        turn = None if self._speaking else self._turn
        reading = turn.reading if turn else None
        glyph, headline, note = self._text(turn)
        self.headline.show_text(glyph, headline, note if self._folded else "")
        self.headline.show_confidence(percent(reading.confidence) if reading else "", estimate=self._is_estimate)
        self.note.setText(note)
        self.note.setVisible(bool(note) and not self._folded)
        self.bars.show_reading(reading)
        if (turn, reading) != self._drawn:
            self._drawn = turn, reading
            self._playback.load(turn.spoken.samples if turn else None)
            if turn is None:
                self.waveform.clear()
            else:
                self.waveform.show(turn.spoken.samples, SAMPLE_RATE, reading)
                seconds = len(turn.spoken.samples) / SAMPLE_RATE
                self._caption.setText(self.tr("Turn {0}, {1:.1f} s").format(turn.number, seconds))
        self.utterance.setVisible(turn is not None)
        self._draw_correction(turn)
        turns = [TurnReading(t.number, t.reading, t.corrected) for t in self._turns.values() if t.reading]
        self.history.show_turns(turns, self._shown)
        self._conversation.setVisible(bool(turns))
        self._arrange()

    def _draw_correction(self, turn: _Turn | None) -> None:
        self.correction.setVisible(turn is not None and turn.reading is not None)
        if turn is not None and turn.reading is not None:
            self.correction.show_correction(turn.corrected, confirms=turn.corrected == turn.reading.label)

    def _text(self, turn: _Turn | None) -> tuple[str, str, str]:
        """Return glyph, headline and note."""
        if self._speaking:
            return "microphone", self.tr("Listening"), self.tr("The emotion appears when you finish speaking.")
        if turn is not None and turn.reading is not None:
            reading = turn.reading
            if reading.label == UNSURE:
                return UNSURE, self.tr("Unsure, closest to {0}").format(tr(reading.strongest)), ""
            return reading.label, voice_sounds(reading.label), ""
        if self._about.get("reads_emotion") is False or (turn is not None and turn.read):
            why = self.tr("Choose another model, or teach this one under Fine-tune.")
            return "info", self.tr("This model does not read emotion"), why
        if turn is not None and turn.ended:
            return UNSURE, self.tr("No emotion detected"), self.tr("The turn ended before your voice was read.")
        if turn is not None:
            return UNSURE, self.tr("Reading your voice…"), ""
        return UNSURE, self.tr("No emotion yet"), self.tr("Say something to see how your voice sounds.")

    @property
    def _is_estimate(self) -> bool:
        source = self._app.settings.model.source
        return bool(self._about.get("prosody_estimate", source.partition("-")[0] == "mini"))

    def _arrange(self) -> None:
        """In a strip, put the halves side by side where there is room."""
        across, down = QBoxLayout.Direction.LeftToRight, QBoxLayout.Direction.TopToBottom
        self.headline.fit(self.width() - 32, strip=self._strip)
        two = self._strip and self.width() > _TWO_COLUMNS * theme.pixels("body")
        self._halves.setDirection(across if two else down)
        self._halves.setSpacing(32 if two else 12)
        for at, stretch in enumerate((1, 1, 0) if two else (0, 0, 1)):
            self._halves.setStretch(at, stretch)
        inside = max(0, self._halves.heightForWidth(self.width() - 40))
        high = min(_STRIP_HEIGHT, inside) if self._strip else _UNLIMITED
        self.body.setMinimumHeight(high if self._strip else 0)
        self.body.setMaximumHeight(high)
        self._show_more()


def _widget(layout: QBoxLayout) -> QWidget:
    made = QWidget()
    made.setLayout(layout)
    layout.setContentsMargins(0, 0, 0, 0)
    return made
