"""A word-by-word comparison of two replies, and a label that marks the differences."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from PySide6.QtCore import QEvent, QPointF, QSize
from PySide6.QtGui import QColor, QFont, QPainter, QPaintEvent, QResizeEvent, QTextCharFormat, QTextLayout, QTextOption
from PySide6.QtWidgets import QSizePolicy, QWidget

from ui.core import theme
from ui.core.translations import tr

Span = tuple[int, int]
"""Characters [first, last) of a text."""

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_MOST = 800  # words compared of each text; more would take too long


def differing(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """Return the spans of words that only `before` has, and those that only `after` has."""
    one, other = ([match.span() for match in _WORD.finditer(text)][:_MOST] for text in (before, after))
    words = [before[slice(*span)] for span in one], [after[slice(*span)] for span in other]
    gone: list[Span] = []
    new: list[Span] = []
    for kind, i, j, k, n in SequenceMatcher(None, *words).get_opcodes():
        if kind != "equal":
            if j > i:
                gone.append((one[i][0], one[j - 1][1]))
            if n > k:
                new.append((other[k][0], other[n - 1][1]))
    return gone, new


def marked(text: str, spans: list[Span]) -> float:
    """Return the share of a text that lies in spans."""
    return sum(last - first for first, last in spans) / max(1, len(text))


class MarkedText(QWidget):
    """Plain text with marked words: struck out, or bold and underlined."""

    def __init__(self, text: str, marks: list[Span], *, struck: bool) -> None:
        super().__init__()
        self.text, self.marks, self._struck = text, marks, struck
        self._laid_out: tuple[int, QTextLayout, float] | None = None
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.setAccessibleName(text)
        words = "; ".join(text[first:last] for first, last in marks)
        self.setAccessibleDescription((tr("removed: {}") if struck else tr("added: {}")).format(words) if words else "")

    def heightForWidth(self, width: int) -> int:
        """The height of the text in pixels."""
        return round(self.layout_for(width)[1] + 0.5)

    def sizeHint(self) -> QSize:
        """The size at a usual width."""
        return QSize(280, self.heightForWidth(280))

    def minimumSizeHint(self) -> QSize:
        """Any width."""
        return QSize(60, self.fontMetrics().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Wrap again."""
        super().resizeEvent(event)
        self.update()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._laid_out = None
            self.updateGeometry()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the lines."""
        painter = QPainter(self)
        painter.setPen(QColor(theme.colours().text))
        self.layout_for(self.width())[0].draw(painter, QPointF(0, 0))

    def layout_for(self, width: int) -> tuple[QTextLayout, float]:
        """The text laid out at a width in pixels, and its height."""
        if self._laid_out is not None and self._laid_out[0] == width:
            return self._laid_out[1:]
        font = QFont(self.font())
        font.setPixelSize(theme.pixels("body"))
        layout = QTextLayout(self.text.replace("\n", "\N{LINE SEPARATOR}"), font)
        option = QTextOption()
        option.setWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        layout.setTextOption(option)
        layout.setFormats([self._format(*span) for span in self.marks])
        layout.beginLayout()
        height = 0.0
        while (line := layout.createLine()).isValid():
            line.setLineWidth(max(1, width))
            line.setPosition(QPointF(0, height))
            height += line.height()
        layout.endLayout()
        self._laid_out = (width, layout, height)
        return layout, height

    def _format(self, first: int, last: int) -> QTextLayout.FormatRange:
        made = QTextLayout.FormatRange()
        start, end = (len(self.text[:at].encode("utf-16-le")) // 2 for at in (first, last))
        looks = QTextCharFormat()
        if self._struck:
            looks.setFontStrikeOut(True)
        else:
            looks.setFontUnderline(True)
            looks.setFontWeight(QFont.Weight.Bold)
        made.start, made.length, made.format = start, end - start, looks
        return made
