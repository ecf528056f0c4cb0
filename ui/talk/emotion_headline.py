"""The headline of the emotion panel: the emotion, its confidence and the kind of reading."""

from __future__ import annotations

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QFocusEvent, QFont, QFontMetrics, QPainter, QPaintEvent
from PySide6.QtWidgets import QBoxLayout, QPushButton, QToolTip, QWidget

from assistant.events import UNSURE
from ui.core import icons, theme
from ui.core.translations import tr
from ui.widgets.common import label, restyle, row


def prosody_explanation() -> str:
    """Explain the prosody estimate."""
    return tr(
        "Says how a voice sounds, learned mostly from actors. It does not know what you feel and is often wrong. "
        "It is not for judging others."
    )


class _HelpButton(QPushButton):
    """A word whose explanation shows on hover, on focus and to screen readers."""

    def __init__(self, text: str, explanation: str) -> None:
        super().__init__(text)
        self.setProperty("kind", "quiet")
        self.setToolTip(explanation)
        self.setAccessibleDescription(explanation)
        self.clicked.connect(self._explain)

    def focusInEvent(self, event: QFocusEvent) -> None:
        """Show the explanation."""
        super().focusInEvent(event)
        if event.reason() in (Qt.FocusReason.TabFocusReason, Qt.FocusReason.BacktabFocusReason):
            self._explain()

    def _explain(self) -> None:
        QToolTip.showText(self.mapToGlobal(self.rect().bottomLeft()), self.toolTip(), self)


class _Glyph(QWidget):
    """A large glyph in the hue of its emotion."""

    def __init__(self) -> None:
        super().__init__()
        self._name = UNSURE

    def show_glyph(self, name: str) -> None:
        """Show an emotion, or any other icon in the muted colour."""
        self._name = name
        self.setFixedSize(theme.pixels("display"), theme.pixels("display"))
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the icon at the size of the text."""
        painter = QPainter(self)
        icons.paint(painter, self._name, QRectF(self.rect()), theme.colours().emotion(self._name))


class Headline(QWidget):
    """Glyph, text and confidence."""

    def __init__(self) -> None:
        super().__init__()
        self._glyph = _Glyph()
        self.text = label(role="title")
        self.confidence = label(role="lead", wrap=False)
        self.estimate = _HelpButton(tr("prosody estimate"), prosody_explanation())
        self._sure = QWidget()
        self._sure.setLayout(row(self.confidence, self.estimate, None))
        head = row(self._glyph, spacing=10)
        head.addWidget(self.text, 1)
        self._top = QBoxLayout(QBoxLayout.Direction.TopToBottom)
        self._top.setContentsMargins(0, 0, 0, 0)
        self._top.addLayout(head)
        self._top.addWidget(self._sure)
        self.setLayout(self._top)

    def show_text(self, glyph: str, text: str, tip: str) -> None:
        """Show a text with a glyph: an emotion or another icon."""
        self._glyph.show_glyph(glyph)
        self.text.setText(text)
        self.text.setToolTip(tip)

    def show_confidence(self, confidence: str, *, estimate: bool) -> None:
        """Show the confidence, "" for none. `estimate`: it comes from prosody alone."""
        self._sure.setVisible(bool(confidence))
        self.confidence.setText(confidence)
        self.estimate.setVisible(estimate)

    def fit(self, width: int, *, strip: bool) -> None:
        """Fit into `width` pixels. In a strip it takes one line, or two if narrow."""
        title = QFont(self.font())
        title.setPixelSize(theme.pixels("title"))
        title.setBold(True)
        text = QFontMetrics(title).horizontalAdvance(self.text.text()) + self._glyph.width()
        one_line = strip and text + self._sure.sizeHint().width() + 120 < width
        down, across = QBoxLayout.Direction.TopToBottom, QBoxLayout.Direction.LeftToRight
        self._top.setDirection(across if one_line else down)
        self._top.setStretch(1, int(one_line))
        self.text.setWordWrap(not strip)
        restyle(self.text, role="heading" if strip and text + 120 > width else "title")
