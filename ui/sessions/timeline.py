"""A session on a time axis: its audio, its parts, and the two lanes that show it."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PySide6.QtCore import QRectF, Qt, Signal
from PySide6.QtGui import QBrush, QColor, QMouseEvent, QPainter, QPaintEvent, QPen, QPixmap
from PySide6.QtWidgets import QWidget

from assistant.errors import AssistantError
from assistant.events import EMOTIONS, SAMPLE_RATE, UNSURE, Samples, Typed
from assistant.sessions.export import joined, timeline
from assistant.sessions.journal import read_lines
from assistant.sessions.reader import RecordedTurn, Session, read_session
from assistant.sessions.recorder import EVENTS
from ui.core import icons, theme
from ui.core.translations import tr
from ui.widgets.common import column, label
from ui.widgets.waveform import Clip, Waveform

_PEAKS = 200  # peaks per second of a lane
_LANES = ("you", "assistant")


@dataclass(frozen=True, slots=True)
class Part:
    """Who speaks from `start` to `end`, in seconds.

    Attributes:
        turn: the index of the turn in the session.
        missing: the recording is missing or damaged.
    """

    turn: int
    who: str
    start: float
    end: float
    missing: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class SessionAudio:
    """A session ready to play: mono samples at 16 kHz, its parts in order, and the peaks of each lane.

    Attributes:
        spans: start and end of each turn in seconds.
    """

    session: Session
    samples: Samples
    parts: tuple[Part, ...]
    spans: tuple[tuple[float, float], ...]
    lanes: Mapping[str, Sequence[Clip]]

    @property
    def seconds(self) -> float:
        """The duration."""
        return len(self.samples) / SAMPLE_RATE

    def start(self, turn: int) -> float:
        """The start of a turn, by its index."""
        return self.spans[turn][0]

    def turn_at(self, seconds: float) -> int:
        """The index of the turn at that moment; -1 in an empty session."""
        return bisect(self.spans, seconds + 1e-3, key=lambda span: span[0]) - 1

    def part(self, turn: int, who: str) -> Part | None:
        """A turn's message ("you") or reply ("assistant"), if any."""
        return next((part for part in self.parts if (part.turn, part.who) == (turn, who)), None)


def load_session_audio(folder: Path) -> SessionAudio:
    """Read a session for display and playback. Slow: call it off Qt's thread.

    Args:
        folder: the session's folder.

    Raises:
        AssistantError: the folder holds no session, or was deleted.
    """
    try:
        session = read_session(folder)
        missing, samples, rows = _missing_recordings(session), joined(session), timeline(session)
    except (OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
        text = tr("Could not read {name}. It may have been deleted.").format(name=folder.name)
        raise AssistantError(text) from error
    session = replace(session, turns=tuple(map(_validated, session.turns)))
    parts: list[Part] = []
    turn = -1
    for start, end, who, _words in rows:
        turn += who == "you"
        parts.append(Part(turn, who, start, end, (turn, who) in missing))
    lanes: dict[str, list[Clip]] = {who: [] for who in _LANES}
    for part in parts:
        peaks = _peaks(samples[round(part.start * SAMPLE_RATE) : round(part.end * SAMPLE_RATE)])
        if len(peaks):
            reading = session.turns[part.turn].turn.reading if part.who == "you" else None
            lanes[part.who].append(Clip(part.start, peaks, _PEAKS, reading))
    spans = [(one.start, one.end) for one in parts if one.who == "you"]
    for part in parts:
        spans[part.turn] = (spans[part.turn][0], part.end)
    return SessionAudio(session, samples, tuple(parts), tuple(spans), lanes)


def emotion_of(recorded: RecordedTurn) -> str | None:
    """Return the emotion of a turn's message: the user's correction, or the reading."""
    reading = recorded.turn.reading
    return recorded.corrected or (reading.label if reading else None)


def _validated(recorded: RecordedTurn) -> RecordedTurn:
    """Drop values that our program cannot have written: archives may come from anyone."""
    reading = recorded.turn.reading
    if reading is not None and not (
        reading.label in (*EMOTIONS, UNSURE)
        and isinstance(reading.frame_seconds, int | float)
        and 1e-3 <= reading.frame_seconds <= 60
        and all(np.isfinite(part).all() for part in (reading.probabilities, reading.contributions, reading.offset))
        and reading.offset.shape == (len(EMOTIONS),)
    ):
        recorded = replace(recorded, turn=replace(recorded.turn, reading=None))
    return recorded if recorded.corrected in EMOTIONS else replace(recorded, corrected=None)


def _missing_recordings(session: Session) -> set[tuple[int, str]]:
    """Return the recordings that lines name but that are missing or changed."""
    named: set[tuple[int, str]] = set()
    for one in read_lines(session.folder / EVENTS)[0]:
        if isinstance(one.get("audio"), str) and isinstance(number := one.get("turn"), int):
            named.add((number, "assistant" if one.get("type") == "turn_ended" else "you"))
    there = {"you": lambda one: one.user_audio, "assistant": lambda one: one.reply_audio}
    return {
        (index, who)
        for index, recorded in enumerate(session.turns)
        for who in _LANES
        if (recorded.turn.number, who) in named and there[who](recorded) is None
    }


def _peaks(samples: Samples) -> NDArray[np.float32]:
    block = SAMPLE_RATE // _PEAKS
    whole = np.abs(samples[: len(samples) // block * block]).reshape(-1, block)
    peaks: NDArray[np.float32] = whole.max(1)
    return peaks


class Timeline(QWidget):
    """Two lanes, yours and the assistant's. Each turn has a band in its emotion's hue.

    Signals:
        seek_requested: the position in seconds.
    """

    seek_requested = Signal(float)

    def __init__(self) -> None:
        super().__init__()
        self._session_audio: SessionAudio | None = None
        self.turn = -1
        self._backdrop: tuple[object, QPixmap] | None = None  # with the state it was drawn for
        names = {"you": self.tr("You"), "assistant": self.tr("Assistant")}
        self.lanes = {who: Waveform(name) for who, name in names.items()}
        layout = column(spacing=0)
        for who in _LANES:
            lane = self.lanes[who]
            lane.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            lane.setFixedHeight(66 if who == "you" else 48)
            lane.seek_requested.connect(self.seek_requested)
            layout.addWidget(label(names[who], "small"))
            layout.addWidget(lane)
        layout.setContentsMargins(8, 6, 8, 8)
        self.setLayout(layout)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName(self.tr("Timeline"))

    def show_session_audio(self, session_audio: SessionAudio | None) -> None:
        """Show a session, or nothing."""
        self._session_audio, self.turn = session_audio, -1
        for who, lane in self.lanes.items():
            lane.show_lane(
                session_audio.lanes[who] if session_audio else (), session_audio.seconds if session_audio else 0.0
            )
        turns = len(session_audio.session.turns) if session_audio else 0
        self.setAccessibleDescription(self.tr("{} turns. Press Left or Right to move between turns.").format(turns))
        self.update()

    def set_position(self, seconds: float) -> None:
        """Move both playheads."""
        for lane in self.lanes.values():
            lane.set_position(seconds)
        turn = self._session_audio.turn_at(seconds) if self._session_audio else -1
        if turn != self.turn:
            self.turn = turn
            self.update()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Seek, also between the lanes."""
        lane = self.lanes["you"]
        if self._session_audio and event.button() == Qt.MouseButton.LeftButton:
            share = (event.position().x() - lane.x()) / max(1, lane.width())
            self.seek_requested.emit(min(max(share, 0.0), 1.0) * self._session_audio.seconds)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the turn bands, missing recordings and interruptions; the lanes paint over them."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        looks = (self.size(), theme.colours().window, self._session_audio, self.lanes["you"].geometry())
        if self._backdrop is None or self._backdrop[0] != looks:
            self._backdrop = (looks, self._draw_backdrop())
        painter.drawPixmap(0, 0, self._backdrop[1])
        if self.turn >= 0:
            self._paint_current(painter)
        if self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(theme.colours().accent), 2))
            painter.drawRoundedRect(QRectF(self.rect()).adjusted(1, 1, -1, -1), 9, 9)

    def _x(self, seconds: float) -> float:
        assert self._session_audio is not None, "painted only with a tape"
        lane = self.lanes["you"]
        return lane.x() + seconds / self._session_audio.seconds * lane.width()

    def _draw_backdrop(self) -> QPixmap:
        """Draw everything that does not move during playback."""
        scale = self.devicePixelRatioF()
        drawn = QPixmap(self.size() * scale)
        drawn.setDevicePixelRatio(scale)
        drawn.fill(Qt.GlobalColor.transparent)
        painter = QPainter(drawn)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(theme.colours().sunken))
        painter.drawRoundedRect(QRectF(self.rect()), 10, 10)
        if self._session_audio is not None and self._session_audio.seconds:
            for index in range(len(self._session_audio.session.turns)):
                band, hue = self._band(index)
                painter.setBrush(hue)
                painter.drawRoundedRect(band, 4, 4)
            for part in self._session_audio.parts:
                self._paint_part(painter, part, self._session_audio.session.turns[part.turn])
        painter.end()
        return drawn

    def _band(self, index: int) -> tuple[QRectF, QColor]:
        """Return the rectangle of a turn and its faint hue."""
        assert self._session_audio is not None, "painted only with a tape"
        c = theme.colours()
        left, right = (self._x(seconds) for seconds in self._session_audio.spans[index])
        emotion = emotion_of(self._session_audio.session.turns[index])
        hue = QColor(c.emotion(emotion)) if emotion else QColor(c.outline)
        hue.setAlphaF(0.1)
        return QRectF(left, 4, max(2.0, right - left), self.height() - 8), hue

    def _paint_current(self, painter: QPainter) -> None:
        band, hue = self._band(self.turn)
        hue.setAlphaF(0.16)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(hue)
        painter.drawRoundedRect(band, 4, 4)
        painter.setBrush(QColor(theme.colours().accent))
        painter.drawRoundedRect(QRectF(band.left(), band.bottom() - 3, band.width(), 3), 1.5, 1.5)

    def _paint_part(self, painter: QPainter, part: Part, recorded: RecordedTurn) -> None:
        c = theme.colours()
        lane = self.lanes[part.who].geometry()
        left, right = self._x(part.start), self._x(part.end)
        area = QRectF(
            left, lane.top() + 6, max(6.0, right - left), lane.height() - 12 - (18 if part.who == "you" else 0)
        )
        if part.missing:
            painter.setPen(QPen(QColor(c.danger), 1))
            painter.setBrush(QBrush(QColor(c.danger), Qt.BrushStyle.BDiagPattern))
            painter.drawRoundedRect(area, 3, 3)
        elif part.who == "you" and isinstance(recorded.turn.message, Typed):
            icons.paint(
                painter, "keyboard", QRectF(area.center().x() - 8, area.center().y() - 8, 16, 16), QColor(c.muted)
            )
        elif part.who == "assistant" and recorded.turn.heard != recorded.turn.reply:
            painter.setPen(QPen(QColor(c.text), 2, Qt.PenStyle.DotLine))
            painter.drawLine(area.topRight(), area.bottomRight())
