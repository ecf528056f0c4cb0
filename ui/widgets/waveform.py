"""A waveform coloured by the emotion of each moment, with a playhead."""

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
_BAND = 18  # pixels below the bars: the glyph of the strongest emotion
_SMOOTH_SECONDS = 0.6  # smoothing of segments; single frames are noisy
_FINEST = 1 << 17  # peaks kept of a recording
_QUIET = 0.05  # softer recordings are not scaled to full height


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A recording at its place in a lane: `start` in seconds, mono samples, and its reading, if any."""

    start: float
    samples: Samples
    rate: int
    reading: EmotionReading | None = None

    @property
    def end(self) -> float:
        """The end in seconds."""
        return self.start + len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a lane, in seconds, in which one emotion is strongest."""

    start: float
    end: float
    emotion: str


def dominant_emotions(reading: EmotionReading, seconds: float = 0.0) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the strongest emotion of each frame and its strength, 0 to 1; both [frames].

    Strength 1 is a lead over the second emotion that one frame in ten reaches.

    Args:
        reading: the reading of the clip.
        seconds: the width of a moving average over the frames.
    """
    count = len(reading.contributions)
    reach = round(seconds / reading.frame_seconds / 2)
    at = np.arange(count)
    return _dominant_between(reading, np.maximum(0, at - reach), np.minimum(count, at + reach + 1))


def _dominant_between(
    reading: EmotionReading, first: NDArray[np.intp], last: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return `dominant_emotions` of the mean of frames [first, last), row by row."""
    shares = reading.contributions.astype(np.float64) + reading.offset / len(reading.contributions)
    sums = np.vstack([np.zeros(len(EMOTIONS)), np.cumsum(shares, 0)])
    means = (sums[last] - sums[first]) / (last - first)[:, None]
    clear = max(float(np.percentile(_margin(shares), 90)), 1e-12)
    return means.argmax(1), np.minimum(1.0, _margin(means) / clear)


def _margin(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.sort(shares, 1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def segments(clip: Clip) -> list[Segment]:
    """Return the segments of a clip in order; none without a reading."""
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
    """One recording, or a lane of several. Seek by a click or the arrow keys.

    Signals:
        seek_requested: the position in seconds.
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
        """Show one recording; without samples, show the widget itself, as `QWidget.show` does."""
        if samples is None:
            super().show()
        else:
            self.show_lane([Clip(0.0, samples, rate, reading)])

    def show_lane(self, clips: Sequence[Clip], duration: float | None = None) -> None:
        """Show clips at their places. The lane ends with the last one, or after `duration` seconds."""
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
        """Move the playhead; None hides it."""
        if seconds != self._position:
            self._position = seconds
            self.update()

    @property
    def position(self) -> float | None:
        """The position of the playhead."""
        return self._position

    def sizeHint(self) -> QSize:
        """As wide as there is room."""
        return QSize(240, 60 + _BAND)

    # ---- input

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Seek."""
        if event.button() == Qt.MouseButton.LeftButton and self.duration:
            self._seek(self._time(event.position().x()))

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Show a tooltip."""
        if not self.duration:
            return
        self._pointed = self._time(event.position().x())
        QToolTip.showText(event.globalPosition().toPoint(), self.tooltip(self._pointed), self)
        self.update()

    def leaveEvent(self, event: QEvent) -> None:
        """Hide the pointer line."""
        super().leaveEvent(event)
        self._pointed = None
        self.update()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Arrow keys, Page Up, Page Down, Home and End seek; Space and Enter play from here."""
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

    def tooltip(self, seconds: float) -> str:
        """The text shown for a moment."""
        for clip in self._clips:
            if clip.start <= seconds < clip.end and clip.reading is not None and len(clip.reading.contributions):
                best, clear = dominant_emotions(clip.reading)
                frame = min(int((seconds - clip.start) / clip.reading.frame_seconds), len(best) - 1)
                how = tr("strong") if clear[frame] >= 0.5 else tr("weak")
                return tr("{0:.2f} s: {1} ({2})").format(seconds, tr(EMOTIONS[best[frame]]), how)
        return tr("{0:.2f} s").format(seconds)

    # ---- painting

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Redraw the bars."""
        super().resizeEvent(event)
        self._picture = None

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._picture = None

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the cached bars and, over them, the moving lines."""
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
        """Draw the bars and the glyphs of the segments."""
        c, ratio = theme.colours(), self.devicePixelRatioF()
        picture = QPixmap(self.size() * ratio)
        picture.setDevicePixelRatio(ratio)
        picture.fill(Qt.GlobalColor.transparent)
        painter = QPainter(picture)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        middle = (self.height() - (_BAND if self._segments else 0)) / 2
        plain = QColor(c.outline)
        hues = [c.emotion(emotion) for emotion in EMOTIONS]
        for number, (height, emotion, share) in enumerate(self.bars()):
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

    def bars(self) -> list[tuple[float, int | None, float]]:
        """Return height, emotion and strength of each bar, from left to right."""
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
    """Return the peak of equal blocks of a recording, few enough to redraw quickly."""
    block = -(-len(samples) // _FINEST)
    loud = np.abs(samples)
    return loud if block == 1 else np.maximum.reduceat(loud, np.arange(0, len(loud), block))


def _ranges(edges: NDArray[np.float64], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return index ranges [first, last) between neighbouring edges, each with at least one of `count` values."""
    first = np.minimum(edges[:-1].astype(np.intp), count - 1)
    return first, np.minimum(np.maximum(first + 1, edges[1:].astype(np.intp)), count)


def _mixed(plain: QColor, hue: QColor, part: float) -> QColor:
    return QColor.fromRgbF(
        plain.redF() + (hue.redF() - plain.redF()) * part,
        plain.greenF() + (hue.greenF() - plain.greenF()) * part,
        plain.blueF() + (hue.blueF() - plain.blueF()) * part,
    )
