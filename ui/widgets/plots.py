"""Plots of a training run: curves over the steps, the confusion matrix, the balance of emotions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QPainter, QPainterPath, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QBoxLayout, QSizePolicy, QWidget

from assistant.events import EMOTIONS
from ui.core import icons, theme
from ui.core.translations import tr

_TICKS = 4
_NARROWEST = 320  # pixels of a picture with its legend


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: its name and points. `dashed` tells it from the others without colour."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


def ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """Return about `count` round numbers that cover `low` to `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    size = 10.0 ** floor(log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    first = floor(low / step)
    return [at * step for at in range(first, ceil(high / step - 1e-9) + 1)]


class ResponsivePair(QWidget):
    """Two widgets side by side where there is room, otherwise stacked."""

    def __init__(self, one: QWidget, other: QWidget) -> None:
        super().__init__()
        self._layout = QBoxLayout(QBoxLayout.Direction.LeftToRight)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(24)
        self._layout.addWidget(one, 1)
        self._layout.addWidget(other, 1)
        self.setLayout(self._layout)
        self._widest = max(one.minimumSizeHint().width(), other.minimumSizeHint().width(), _NARROWEST)

    def minimumSizeHint(self) -> QSize:
        """The width of one of them."""
        return QSize(self._widest, super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Choose the direction."""
        super().resizeEvent(event)
        wide = event.size().width() >= 2 * self._widest + 24
        self._layout.setDirection(QBoxLayout.Direction.LeftToRight if wide else QBoxLayout.Direction.TopToBottom)


class Curves(QWidget):
    """Curves over steps, with their latest values as a legend.

    Args:
        title: the quantity.
        share: the values are shares from 0 to 1.
    """

    def __init__(self, title: str, *, share: bool = False) -> None:
        super().__init__()
        self._title, self._share = title, share
        self.series: tuple[Series, ...] = ()
        self._of = 0.0
        self.setAccessibleName(title)
        self.setMinimumSize(220, 120)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)

    def sizeHint(self) -> QSize:
        """Enough to see a trend."""
        return QSize(420, 220)

    def show_series(self, series: Sequence[Series], of: float = 0.0) -> None:
        """Draw these curves; `of` is the total number of steps."""
        self.series, self._of = tuple(one for one in series if one.points), of
        latest = ", ".join(f"{one.name} {self._text(one.points[-1][1])}" for one in self.series)
        self.setAccessibleDescription(latest)
        self.update()

    def _text(self, value: float) -> str:
        return f"{value:.0%}" if self._share else f"{value:.3g}"

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint title, legend, grid and curves."""
        c = theme.colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        small = QFont(self.font())
        small.setPixelSize(theme.pixels("small"))
        line = painter.fontMetrics().height()
        painter.setPen(QColor(c.text))
        painter.drawText(QRectF(0, 0, self.width(), line + 4), Qt.AlignmentFlag.AlignVCenter, self._title)
        painter.setFont(small)
        metrics = painter.fontMetrics()
        self._legend(painter, line)
        values = [value for one in self.series for _, value in one.points]
        marks = [0.0, 0.25, 0.5, 0.75, 1.0] if self._share else ticks(min(values, default=0), max(values, default=1))
        left = max(metrics.horizontalAdvance(self._mark(mark)) for mark in marks) + 10
        field = QRectF(left, line + 14, self.width() - left - 6, self.height() - line - 22 - metrics.height())
        for mark in marks if values else ():
            y = field.bottom() - field.height() * (mark - marks[0]) / (marks[-1] - marks[0])
            painter.setPen(QPen(QColor(c.hairline), 1))
            painter.drawLine(QPointF(field.left(), y), QPointF(field.right(), y))
            painter.setPen(QColor(c.muted))
            place = QRectF(0, y - metrics.height() / 2, left - 8, metrics.height())
            painter.drawText(place, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, self._mark(mark))
        below = QRectF(field.left(), field.bottom() + 4, field.width(), metrics.height())
        painter.setPen(QColor(c.muted))
        if not values:
            painter.drawText(field, Qt.AlignmentFlag.AlignCenter, tr("Appears once training starts"))
            return
        last = max(self._of, *(x for one in self.series for x, _ in one.points), 1.0)
        painter.drawText(below, Qt.AlignmentFlag.AlignRight, f"{last:,.0f}")
        painter.drawText(below, Qt.AlignmentFlag.AlignLeft, "0")
        span = marks[-1] - marks[0]
        for number, one in enumerate(self.series):
            places = [
                QPointF(
                    field.left() + field.width() * x / last, field.bottom() - field.height() * (y - marks[0]) / span
                )
                for x, y in one.points
            ]
            painter.setPen(self._pen(number, one))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            path = QPainterPath(places[0])
            for point in places[1:]:
                path.lineTo(point)
            painter.drawPath(path)
            painter.setBrush(painter.pen().color())
            painter.drawEllipse(places[-1], 3, 3)

    def _mark(self, value: float) -> str:
        return f"{value:.0%}" if self._share else f"{value:.4g}"

    def _pen(self, number: int, one: Series) -> QPen:
        c = theme.colours()
        pen = QPen(QColor((c.accent, c.text, c.muted)[number % 3]), 2)
        pen.setStyle(Qt.PenStyle.DashLine if one.dashed else Qt.PenStyle.SolidLine)
        pen.setCapStyle(Qt.PenCapStyle.RoundCap)
        return pen

    def _legend(self, painter: QPainter, line: int) -> None:
        """Paint each curve's line, name and latest value, from the right."""
        x = float(self.width() - 4)
        for number, one in reversed(list(enumerate(self.series))):
            text = f"{one.name}  {self._text(one.points[-1][1])}"
            x -= painter.fontMetrics().horizontalAdvance(text)
            painter.setPen(QColor(theme.colours().text))
            painter.drawText(QRectF(x, 0, self.width(), line + 4), Qt.AlignmentFlag.AlignVCenter, text)
            x -= 30
            painter.setPen(self._pen(number, one))
            painter.drawLine(QPointF(x, line / 2 + 2), QPointF(x + 22, line / 2 + 2))
            x -= 16


class Confusion(QWidget):
    """A confusion matrix: one row per spoken emotion, one column per detected emotion."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self._table: list[list[int]] = []
        self.setAccessibleName(title)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_table(self, table: Sequence[Sequence[int]]) -> None:
        """Show counts, [5][5]: rows as spoken, columns as detected."""
        self._table = [list(row) for row in table]
        total, right = sum(map(sum, self._table)), sum(row[at] for at, row in enumerate(self._table))
        self.setAccessibleDescription(tr("{right} of {total} correct").format(right=right, total=total))
        self.update()

    def sizeHint(self) -> QSize:
        """Square cells."""
        return QSize(330, 30 + 28 + 5 * 40)

    def minimumSizeHint(self) -> QSize:
        """Readable words and cells."""
        return QSize(250, self.sizeHint().height())

    def heightForWidth(self, _width: int) -> int:
        """See `sizeHint`."""
        return self.sizeHint().height()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the title, glyphs for the columns, words for the rows and shaded counts."""
        c = theme.colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(c.text))
        painter.drawText(QRectF(0, 0, self.width(), 28), Qt.AlignmentFlag.AlignVCenter, self._title)
        left = 28 + max(painter.fontMetrics().horizontalAdvance(tr(name)) for name in EMOTIONS) + 10
        size = min(56.0, (self.width() - left) / 5)
        for at, name in enumerate(EMOTIONS):
            icons.paint(painter, name, QRectF(left + at * size + size / 2 - 9, 32, 18, 18), c.emotion(name))
            y = 58 + at * 40.0
            icons.paint(painter, name, QRectF(0, y + 10, 18, 18), c.emotion(name))
            painter.setPen(QColor(c.text))
            painter.drawText(QRectF(28, y, left - 28, 38), Qt.AlignmentFlag.AlignVCenter, tr(name))
        for at, counts in enumerate(self._table):
            whole = max(1, sum(counts))
            for read, count in enumerate(counts):
                cell = QRectF(left + read * size, 58 + at * 40.0, size - 2, 38)
                self._cell(painter, cell, count, count / whole, right=at == read)

    def _cell(self, painter: QPainter, cell: QRectF, count: int, share: float, *, right: bool) -> None:
        c = theme.colours()
        fill = QColor(c.accent if right else c.text)
        fill.setAlphaF((0.06 + 0.44 * share) if right else (0.03 + 0.27 * share))
        painter.setPen(QPen(QColor(c.accent), 1.2) if right else Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        painter.drawRoundedRect(cell.adjusted(1, 1, -1, -1), 6, 6)
        if count:
            painter.setPen(QColor(c.text))
            painter.drawText(cell, Qt.AlignmentFlag.AlignCenter, str(count))


class EmotionBalance(QWidget):
    """The number of recordings per emotion as bars."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, int] = {}
        self.setAccessibleName(tr("Recordings per emotion"))
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_counts(self, counts: dict[str, int]) -> None:
        """Draw these counts."""
        self._counts = dict(counts)
        self.setAccessibleDescription(tr(", ").join(f"{tr(name)} {count}" for name, count in counts.items()))
        self.update()

    def sizeHint(self) -> QSize:
        """One line and a bar."""
        return QSize(420, theme.pixels("body") + 26)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint glyph, word, count, and a bar relative to the most frequent."""
        c = theme.colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        width, most = self.width() / len(EMOTIONS), max([1, *self._counts.values()])
        line = painter.fontMetrics().height()
        for at, name in enumerate(EMOTIONS):
            x, count = at * width, self._counts.get(name, 0)
            icons.paint(painter, name, QRectF(x, line / 2 - 8, 16, 16), c.emotion(name))
            text = f"{tr(name)}  {count}" if width > 110 else str(count)
            painter.setPen(QColor(c.text if count else c.muted))
            painter.drawText(QRectF(x + 24, 0, width - 28, line), Qt.AlignmentFlag.AlignVCenter, text)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(c.hairline))
            painter.drawRoundedRect(QRectF(x, line + 6, width - 16, 6), 3, 3)
            if count:
                painter.setBrush(c.emotion(name))
                painter.drawRoundedRect(QRectF(x, line + 6, max(6.0, (width - 16) * count / most), 6), 3, 3)
