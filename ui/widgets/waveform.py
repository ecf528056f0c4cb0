"""A waveform, tinted moment by moment by what the voice sounded like there, with a playhead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QPixmap, QPolygonF, QResizeEvent
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from assistant.events import EMOTIONS, SAMPLE_RATE, EmotionReading, Samples
from ui.core import icons, theme
from ui.core.translations import tr

_BAR, _GAP = 2, 1  # pixels
_BAND = 18  # pixels below the bars: which emotion a stretch speaks for, by its glyph
_SMOOTH_SECONDS = 0.6  # a stretch is told over so much time; a single frame wavers
_FINEST = 1 << 17  # loudness values that are kept of a recording
_QUIET = 0.05  # a recording that is softer than this is not blown up to full height


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A recording at its place in a lane: `start` in seconds, mono samples, and how it sounded, if that was read."""

    start: float
    samples: Samples
    rate: int
    reading: EmotionReading | None = None

    @property
    def end(self) -> float:
        """Seconds."""
        return self.start + len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Segment:
    """Seconds of a lane that speak for one emotion most."""

    start: float
    end: float
    emotion: str


def dominant_emotions(reading: EmotionReading, seconds: float = 0.0) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """What each frame speaks for: the emotion it adds most to, and how clearly, 0 to 1; both [frames].

    Clear (1) is a lead over the runner-up that one frame in ten reaches.

    Args:
        seconds: the mean of so much time around each frame in its place.
    """
    count = len(reading.contributions)
    reach = round(seconds / reading.frame_seconds / 2)
    at = np.arange(count)
    return _dominant_between(reading, np.maximum(0, at - reach), np.minimum(count, at + reach + 1))


def _dominant_between(
    reading: EmotionReading, first: NDArray[np.intp], last: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """`leanings` of the mean of frames [first, last), row by row."""
    shares = reading.contributions.astype(np.float64) + reading.offset / len(reading.contributions)
    sums = np.vstack([np.zeros(len(EMOTIONS)), np.cumsum(shares, 0)])
    means = (sums[last] - sums[first]) / (last - first)[:, None]
    clear = max(float(np.percentile(_margin(shares), 90)), 1e-12)
    return means.argmax(1), np.minimum(1.0, _margin(means) / clear)


def _margin(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.sort(shares, 1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def segments(clip: Clip) -> list[Segment]:
    """The stretches of a piece, in order; none where nothing was read."""
    if clip.reading is None or not len(clip.reading.contributions):
        return []
    strongest, _ = dominant_emotions(clip.reading, _SMOOTH_SECONDS)
    edges = [0, *(np.flatnonzero(np.diff(strongest)) + 1).tolist(), len(strongest)]
    found = []
    for first, last in pairwise(edges):
        start, end = (clip.start + edge * clip.reading.frame_seconds for edge in (first, last))
        if start < clip.end:
            found.append(Segment(start, min(end, clip.end), EMOTIONS[strongest[first]]))
    return found


class Waveform(QWidget):
    """One recording, or a lane of several. Click it, or move in it with the arrow keys.

    Signals:
        sought: the user wants to be at that moment, in seconds.
    """

    seek_requested = Signal(float)

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._name = name or tr("Waveform")
        self._clips: Sequence[Clip] = ()
        self._loudness: list[NDArray[np.float32]] = []
        self._segments: list[Segment] = []
        self._picture: QPixmap | None = None
        self._position: float | None = None
        self._pointed: float | None = None
        self.duration = 0.0
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(self._name)

    def show(
        self, samples: Samples | None = None, rate: int = SAMPLE_RATE, reading: EmotionReading | None = None
    ) -> None:
        """Show one recording; without samples only the widget itself, as every `QWidget.show`."""
        if samples is None:
            super().show()
        else:
            self.show_lane([Clip(0.0, samples, rate, reading)])

    def show_lane(self, clips: Sequence[Clip], duration: float | None = None) -> None:
        """Show recordings at their places; the lane lasts to the end of the last one, or `duration` seconds."""
        self._clips = [clip for clip in clips if len(clip.samples)]
        self.duration = duration if duration is not None else max((clip.end for clip in self._clips), default=0.0)
        self._loudness = [_loudness(clip.samples) for clip in self._clips]
        self._segments = [segment for clip in self._clips for segment in segments(clip)]
        self._position = self._pointed = self._picture = None
        self.setAccessibleName(tr("{0}, {1:.1f} s").format(self._name, self.duration))
        description = (tr("{0} from {1:.1f} s").format(tr(one.emotion), one.start) for one in self._segments[:20])
        self.setAccessibleDescription(tr(", ").join(description))
        self.update()

    def clear(self) -> None:
        """Show nothing."""
        self.show_lane([])

    def set_position(self, seconds: float | None) -> None:
        """Move the playhead; None takes it away."""
        if seconds != self._position:
            self._position = seconds
            self.update()

    @property
    def position(self) -> float | None:
        """Where the playhead is."""
        return self._position

    def sizeHint(self) -> QSize:
        """As wide as there is room."""
        return QSize(240, 60 + _BAND)

    # ---- the user

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Go there."""
        if event.button() == Qt.MouseButton.LeftButton and self.duration:
            self._seek(self._time(event.position().x()))

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Say what is there."""
        if not self.duration:
            return
        self._pointed = self._time(event.position().x())
        QToolTip.showText(event.globalPosition().toPoint(), self._tooltip(self._pointed), self)
        self.update()

    def leaveEvent(self, event: QEvent) -> None:
        """Say no more."""
        super().leaveEvent(event)
        self._pointed = None
        self.update()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Left and right by a little, Page Up and Page Down by more, Home, End; Space and Enter: from here."""
        here, step = self._position or 0.0, max(0.25, self.duration / 50)
        places = {
            Qt.Key.Key_Left: here - step,
            Qt.Key.Key_Right: here + step,
            Qt.Key.Key_PageUp: here - 5 * step,
            Qt.Key.Key_PageDown: here + 5 * step,
            Qt.Key.Key_Home: 0.0,
            Qt.Key.Key_End: self.duration,
            Qt.Key.Key_Space: here,
            Qt.Key.Key_Return: here,
        }
        place = places.get(Qt.Key(event.key()))
        if place is None or not self.duration:
            super().keyPressEvent(event)
        else:
            self._seek(place)

    def _seek(self, seconds: float) -> None:
        self.set_position(min(max(seconds, 0.0), self.duration))
        self.seek_requested.emit(self._position)

    def _time(self, x: float) -> float:
        return min(max(x / max(1, self.width()), 0.0), 1.0) * self.duration

    def _tooltip(self, seconds: float) -> str:
        for clip in self._clips:
            if clip.start <= seconds < clip.end and clip.reading is not None and len(clip.reading.contributions):
                best, clear = dominant_emotions(clip.reading)
                frame = min(int((seconds - clip.start) / clip.reading.frame_seconds), len(best) - 1)
                how = tr("strong") if clear[frame] >= 0.5 else tr("weak")
                return tr("{0:.2f} s: {1} ({2})").format(seconds, tr(EMOTIONS[best[frame]]), how)
        return tr("{0:.2f} s").format(seconds)

    # ---- painting

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Other bars."""
        super().resizeEvent(event)
        self._picture = None

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._picture = None

    def paintEvent(self, _event: QPaintEvent) -> None:
        """What stands still is painted once; over it the lines that move."""
        c = theme.colours()
        if self._picture is None or self._picture.devicePixelRatioF() != self.devicePixelRatioF():
            self._picture = self._painted()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.drawPixmap(0, 0, self._picture)
        if self._pointed is not None:
            self._paint_line(painter, self._pointed, QColor(c.muted), 1)
        if self._position is not None:
            self._paint_line(painter, self._position, QColor(c.text), 2)
        if self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(c.accent), 2))
            painter.drawRoundedRect(QRectF(self.rect()).adjusted(1, 1, -1, -1), 6, 6)

    def _painted(self) -> QPixmap:
        """The bars, and the glyphs of the stretches below."""
        c, ratio = theme.colours(), self.devicePixelRatioF()
        picture = QPixmap(self.size() * ratio)
        picture.setDevicePixelRatio(ratio)
        picture.fill(Qt.GlobalColor.transparent)
        painter = QPainter(picture)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        middle = (self.height() - (_BAND if self._segments else 0)) / 2
        plain = QColor(c.outline)
        hues = [c.emotion(emotion) for emotion in EMOTIONS]
        for number, (height, emotion, share) in enumerate(self._bars()):
            half = max(0.5, height * (middle - 3))
            colour = plain if emotion is None else _mixed(plain, hues[emotion], share)
            painter.fillRect(QRectF(number * (_BAR + _GAP), middle - half, _BAR, 2 * half), colour)
        for segment in self._segments:
            self._paint_segment(painter, segment)
        painter.end()
        return picture

    def _paint_segment(self, painter: QPainter, segment: Segment) -> None:
        left, right = self._x(segment.start) + 1, self._x(segment.end) - 1
        if right - left < 2:
            return
        hue = theme.colours().emotion(segment.emotion)
        top = self.height() - _BAND + 1.5
        painter.fillRect(QRectF(left, top, right - left, 2), hue)
        if right - left >= 14:
            icons.paint(painter, segment.emotion, QRectF((left + right) / 2 - 6, top + 3.5, 12, 12), hue)

    def _paint_line(self, painter: QPainter, seconds: float, colour: QColor, width: int) -> None:
        x = min(max(self._x(seconds), width / 2), self.width() - width / 2)
        bottom = self.height() - (_BAND if self._segments else 0)
        painter.fillRect(QRectF(x - width / 2, 0, width, bottom), colour)
        if width > 1:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(colour)
            painter.drawPolygon(QPolygonF([QPointF(x - 4, 0), QPointF(x + 4, 0), QPointF(x, 6)]))

    def _x(self, seconds: float) -> float:
        return seconds / self.duration * self.width() if self.duration else 0.0

    def _bars(self) -> list[tuple[float, int | None, float]]:
        """From left to right: height, the emotion that the moment speaks for, and how clearly."""
        count = max(1, self.width() // (_BAR + _GAP))
        heights = np.zeros(count, np.float32)
        emotion = np.full(count, -1)
        share = np.zeros(count, np.float32)
        loudest = max([_QUIET, *(float(loud.max()) for loud in self._loudness)])
        for clip, loud in zip(self._clips, self._loudness, strict=True):
            first = min(count - 1, int(clip.start / self.duration * count))
            last = min(count, max(first + 1, int(np.ceil(clip.end / self.duration * count))))
            times = np.linspace(0, clip.end - clip.start, last - first + 1)
            lows, _ = _ranges(times * (len(loud) / (clip.end - clip.start)), len(loud))
            heights[first:last] = np.maximum(heights[first:last], np.maximum.reduceat(loud, lows) / loudest)
            if clip.reading is not None and (frames := len(clip.reading.contributions)):
                ranges = _ranges(times / clip.reading.frame_seconds, frames)
                emotion[first:last], share[first:last] = _dominant_between(clip.reading, *ranges)
        return [
            (height, best if best >= 0 else None, part)
            for height, best, part in zip(heights.tolist(), emotion.tolist(), share.tolist(), strict=True)
        ]


def _loudness(samples: Samples) -> NDArray[np.float32]:
    """The largest magnitudes of equal blocks of a recording, few enough to be looked through at every width."""
    block = -(-len(samples) // _FINEST)
    loud = np.abs(samples)
    return loud if block == 1 else np.maximum.reduceat(loud, np.arange(0, len(loud), block))


def _ranges(edges: NDArray[np.float64], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Between neighbouring edges, indexes [first, last) of at least one of `count` values."""
    first = np.minimum(edges[:-1].astype(np.intp), count - 1)
    return first, np.minimum(np.maximum(first + 1, edges[1:].astype(np.intp)), count)


def _mixed(plain: QColor, hue: QColor, part: float) -> QColor:
    return QColor.fromRgbF(
        plain.redF() + (hue.redF() - plain.redF()) * part,
        plain.greenF() + (hue.greenF() - plain.greenF()) * part,
        plain.blueF() + (hue.blueF() - plain.blueF()) * part,
    )
