"""Charts of emotion readings: five bars for one utterance, and a grid over the turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QEvent, QPoint, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontMetrics, QKeyEvent, QMouseEvent, QPainter, QPainterPath, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from assistant.events import EMOTIONS, UNSURE, EmotionReading
from ui.core import icons, theme
from ui.core.translations import tr

_WIDEST = 24  # pixels of one turn in the history
_FAINT = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class TurnReading:
    """The reading of a turn, and the emotion that the user corrected it to, if any."""

    number: int
    reading: EmotionReading
    corrected: str | None = None


def percent(share: float) -> str:
    """Format a share of 1 as a percentage."""
    return f"{share:.0%}".replace("%", "\N{NARROW NO-BREAK SPACE}%")


def _translucent() -> QColor:
    """Return a light shade that works on any surface."""
    shade = QColor(theme.colours().text)
    shade.setAlphaF(0.1)
    return shade


def shares(reading: EmotionReading) -> str:
    """List all five probabilities for screen readers, the largest first."""
    order = reading.probabilities.argsort()[::-1]
    return tr(", ").join(f"{tr(EMOTIONS[at])} {percent(float(reading.probabilities[at]))}" for at in order)


class _EmotionRows(QWidget):
    """One row per emotion: glyph, optional word, drawing area, figure."""

    show_labels = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(name)

    @property
    def _row(self) -> int:
        return max(22, QFontMetrics(self._font()).height() + 6)

    @property
    def _glyph(self) -> int:
        return theme.pixels("lead")

    def sizeHint(self) -> QSize:
        """As wide as there is room."""
        return QSize(260, len(EMOTIONS) * self._row)

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self.updateGeometry()

    def _font(self, *, bold: bool = False) -> QFont:
        font = QFont(self.font())
        font.setPixelSize(theme.pixels("body"))
        font.setWeight(QFont.Weight.DemiBold if bold else QFont.Weight.Normal)
        return font

    def _field(self) -> QRectF:
        """The drawing area over all rows."""
        metrics = QFontMetrics(self._font(bold=True))
        labels = max(metrics.horizontalAdvance(tr(emotion)) for emotion in EMOTIONS) + 12 if self.show_labels else 0
        left = self._glyph + 8 + labels
        right = metrics.horizontalAdvance(percent(1.0)) + 10
        return QRectF(left, 0, max(24, self.width() - left - right), len(EMOTIONS) * self._row)

    def _paint_labels(self, painter: QPainter, strongest: str, figures: Sequence[str]) -> None:
        c, field = theme.colours(), self._field()
        for number, emotion in enumerate(EMOTIONS):
            top = number * self._row
            hue = c.emotion(emotion)
            icons.paint(painter, emotion, QRectF(0, top + (self._row - self._glyph) / 2, self._glyph, self._glyph), hue)
            painter.setFont(self._font(bold=emotion == strongest))
            painter.setPen(QColor(c.text if emotion == strongest or not strongest else c.muted))
            if self.show_labels:
                area = QRectF(self._glyph + 8, top, field.left() - self._glyph - 8, self._row)
                painter.drawText(area, Qt.AlignmentFlag.AlignVCenter, tr(emotion))
            area = QRectF(field.right(), top, self.width() - field.right(), self._row)
            right = Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight
            painter.drawText(area, right, figures[number] if figures else "–")


class ReadingBars(_EmotionRows):
    """The five probabilities of one reading."""

    def __init__(self) -> None:
        super().__init__(tr("Emotion"))
        self._reading: EmotionReading | None = None

    def show_reading(self, reading: EmotionReading | None) -> None:
        """Show a reading; None leaves the tracks empty."""
        self._reading = reading
        description = shares(reading) if reading else tr("none yet")
        self.setAccessibleName(f"{self._name}: {description}")
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint tracks and bars. The bars of an unsure reading are hollow."""
        c, field, reading = theme.colours(), self._field(), self._reading
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        figures = [percent(float(share)) for share in reading.probabilities] if reading else []
        self._paint_labels(painter, reading.strongest if reading else "", figures)
        high = min(10.0, self._row - 12)
        for number, emotion in enumerate(EMOTIONS):
            track = QRectF(field.left(), number * self._row + (self._row - high) / 2, field.width(), high)
            rounded = QPainterPath()
            rounded.addRoundedRect(track, high / 2, high / 2)
            painter.fillPath(rounded, _translucent())
            if reading is None:
                continue
            cut = QPainterPath()
            cut.addRect(QRectF(track.left(), track.top(), track.width() * float(reading.probabilities[number]), high))
            bar, hue = rounded.intersected(cut), c.emotion(emotion)
            fill = QColor(hue)
            if reading.label == UNSURE:
                fill.setAlphaF(0.2)
                painter.strokePath(bar, QPen(hue, 1.4))
            painter.fillPath(bar, fill)


class ReadingHistory(_EmotionRows):
    """The readings of a conversation: one row per emotion, one column per turn. Click or use the arrow keys.

    Signals:
        chosen: the number of the turn that the user selected.
    """

    chosen = Signal(int)
    show_labels = False  # leaves room for a hundred turns

    def __init__(self) -> None:
        super().__init__(tr("This conversation"))
        self._turns: Sequence[TurnReading] = ()
        self._shown: int | None = None  # turn numbers
        self._pointed: int | None = None
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def show_turns(self, turns: Sequence[TurnReading], shown: int | None) -> None:
        """Show these turns in order; `shown` is the number of the selected one."""
        self._turns, self._shown, self._pointed = turns, shown, None
        self._describe()
        self.update()

    def sizeHint(self) -> QSize:
        """One more line for the turn numbers."""
        hint = super().sizeHint()
        return QSize(hint.width(), hint.height() + self._axis)

    @property
    def highlighted(self) -> TurnReading | None:
        """The turn under the mouse, otherwise the selected one."""
        number = self._shown if self._pointed is None else self._pointed
        return next((turn for turn in self._turns if turn.number == number), None)

    def middle_of(self, index: int) -> QPoint:
        """The middle of the column of a turn, counted from 0."""
        return QPoint(round(self._field().left() + (index + 0.5) * self._step), self.height() // 2)

    @property
    def _axis(self) -> int:
        return theme.pixels("small") + 8

    @property
    def _step(self) -> float:
        return min(_WIDEST, self._field().width() / max(1, len(self._turns)))

    def _describe(self) -> None:
        turn = self.highlighted
        if turn is None:
            self.setAccessibleName(tr("{0}: {1} turns").format(self._name, len(self._turns)))
            return
        description = tr("{0}, turn {1}: {2}").format(self._name, turn.number, shares(turn.reading))
        corrected = tr(", corrected to {0}").format(tr(turn.corrected)) if turn.corrected else ""
        self.setAccessibleName(description + corrected)

    # ---- input

    def _at(self, x: float) -> TurnReading | None:
        number = int((x - self._field().left()) // self._step)
        return self._turns[number] if 0 <= number < len(self._turns) else None

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Select the turn."""
        turn = self._at(event.position().x())
        if turn is not None and event.button() == Qt.MouseButton.LeftButton:
            self.chosen.emit(turn.number)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Show the figures of the turn under the mouse."""
        turn = self._at(event.position().x())
        self._pointed = turn.number if turn else None
        self.update()

    def leaveEvent(self, event: QEvent) -> None:
        """Show the figures of the selected turn again."""
        super().leaveEvent(event)
        self._pointed = None
        self.update()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Left, Right, Home and End select a turn."""
        numbers = [turn.number for turn in self._turns]
        here = numbers.index(self._shown) if self._shown in numbers else len(numbers)
        last = len(numbers) - 1
        moves = {Qt.Key.Key_Left: here - 1, Qt.Key.Key_Right: here + 1, Qt.Key.Key_Home: 0, Qt.Key.Key_End: last}
        place = moves.get(Qt.Key(event.key()))
        if place is None or not numbers:
            super().keyPressEvent(event)
        else:
            self.chosen.emit(numbers[min(max(place, 0), last)])

    # ---- painting

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the columns, the highlighted turn with its figures, and the turn numbers."""
        c, field, step = theme.colours(), self._field(), self._step
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        turn = self.highlighted
        gap = 2 if step >= 8 else 1 if step >= 4 else 0
        for number, one in enumerate(self._turns):
            left = field.left() + number * step
            if turn is one:
                painter.fillRect(QRectF(left - gap / 2, 0, max(2, step), field.height() + 3), _translucent())
            self._paint_turn(painter, one, left, max(1.0, step - gap))
        for number in range(1, len(EMOTIONS) + 1):
            painter.fillRect(QRectF(field.left(), number * self._row - 1, field.width(), 1), QColor(c.hairline))
        figures = [percent(float(share)) for share in turn.reading.probabilities] if turn else []
        self._paint_labels(painter, turn.reading.strongest if turn else "", figures)
        self._paint_axis(painter, turn)
        if self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(c.accent), 2))
            painter.drawRoundedRect(QRectF(self.rect()).adjusted(1, 1, -1, -1), 6, 6)

    def _paint_turn(self, painter: QPainter, turn: TurnReading, left: float, wide: float) -> None:
        c = theme.colours()
        strongest = int(turn.reading.probabilities.argmax())
        for number, share in enumerate(turn.reading.probabilities.tolist()):
            hue = c.emotion(EMOTIONS[number])
            if number != strongest or turn.reading.label == UNSURE:
                hue.setAlphaF(_FAINT)
            high = max(1.0, share * (self._row - 5))
            painter.fillRect(QRectF(left, (number + 1) * self._row - 1 - high, wide, high), hue)
        if turn.corrected in EMOTIONS:
            bottom = (EMOTIONS.index(turn.corrected) + 1) * self._row - 3
            painter.setPen(QPen(QColor(c.text), 1.5))
            painter.setBrush(QColor(c.raised))
            painter.drawEllipse(QRectF(left + wide / 2 - 3.5, bottom - 7, 7, 7))

    def _paint_axis(self, painter: QPainter, turn: TurnReading | None) -> None:
        if not self._turns:
            return
        field, c = self._field(), theme.colours()
        font = self._font()
        font.setPixelSize(theme.pixels("small"))
        painter.setFont(font)
        metrics = QFontMetrics(font)
        right_most, taken = field.left(), list[tuple[float, float]]()
        marked = [turn] if turn else []
        for one in (*marked, self._turns[0], self._turns[-1]):
            text = str(one.number)
            wide = metrics.horizontalAdvance(text)
            middle = field.left() + (self._turns.index(one) + 0.5) * self._step
            left = min(max(middle - wide / 2, right_most), self.width() - wide)
            if any(left < end + 6 and start < left + wide + 6 for start, end in taken):
                continue
            taken.append((left, left + wide))
            painter.setPen(QColor(c.text if one is turn else c.muted))
            painter.drawText(QRectF(left, field.bottom() + 2, wide + 1, self._axis - 2), text)
