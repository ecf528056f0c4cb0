"""Small widgets and layout helpers that all pages share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from PySide6.QtCore import QEvent, QRectF, QSignalBlocker, QSize, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import (
    QAbstractButton,
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from assistant.events import EMOTIONS, UNSURE
from ui.core import icons, theme
from ui.core.emotion_text import voice_sounds
from ui.core.translations import tr
from ui.core.untrusted_text import LONGEST, brief, one_line, paragraphs

_ICON_GAP = 0.375
_Box = TypeVar("_Box", QHBoxLayout, QVBoxLayout)


class _Label(QLabel):
    """A label that shows any text, however long, as plain text."""

    def setText(self, text: str) -> None:
        """Show the beginning of a text that is too long to lay out quickly."""
        super().setText(paragraphs(text[:LONGEST]))


def label(text: str = "", role: str = "", *, wrap: bool = True, selectable: bool = False) -> QLabel:
    """Make a label. Its text is always plain, never markup."""
    made = _Label()
    made.setTextFormat(Qt.TextFormat.PlainText)
    made.setWordWrap(wrap)
    if role:
        made.setProperty("role", role)
    if selectable:
        made.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
    made.setText(text)
    return made


class _Button(QPushButton):
    """A push button whose icon follows the theme."""

    def __init__(self, text: str, kind: str, icon: str) -> None:
        super().__init__(text)
        self._icon, self._kind = icon, kind
        if kind:
            self.setProperty("kind", kind)
        self._draw()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._draw()

    def _draw(self) -> None:
        if self._icon:
            role = {"primary": "on_accent", "quiet": "accent", "danger": "danger"}.get(self._kind, "text")
            self.setIcon(icons.icon(self._icon, role, _ICON_GAP))
            self.setIconSize(QSize(round(16 * (1 + _ICON_GAP)), 16))


def button(text: str, act: Callable[[], object], kind: str = "", icon: str = "") -> QPushButton:
    """Make a push button; `kind` is "primary", "quiet", "danger", "tab" or ""."""
    made = _Button(text, kind, icon)
    made.setCursor(Qt.CursorShape.PointingHandCursor)
    made.clicked.connect(lambda _checked=False: act())
    return made


def line() -> QFrame:
    """Make a horizontal hairline."""
    made = QFrame()
    made.setProperty("role", "line")
    made.setFixedHeight(1)
    return made


def row(*parts: QWidget | int | None, spacing: int = theme.GRID) -> QHBoxLayout:
    """Lay out widgets side by side; a number adds space in pixels, None adds a stretch."""
    return _filled(QHBoxLayout(), parts, spacing)


def column(*parts: QWidget | int | None, spacing: int = theme.GRID) -> QVBoxLayout:
    """Lay out widgets from top to bottom, as `row`."""
    return _filled(QVBoxLayout(), parts, spacing)


def _filled(layout: _Box, parts: tuple[QWidget | int | None, ...], spacing: int) -> _Box:
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(spacing)
    for part in parts:
        if part is None:
            layout.addStretch(1)
        elif isinstance(part, int):
            layout.addSpacing(part)
        else:
            layout.addWidget(part)
    return layout


def restyle(widget: QWidget, **properties: object) -> None:
    """Set style properties and update the widget's style."""
    for name, value in properties.items():
        widget.setProperty(name, value)
    widget.style().unpolish(widget)
    widget.style().polish(widget)


class IconLabel(QLabel):
    """An icon without function; `role` is a field of `theme.Colours`."""

    def __init__(self, icon: str, size: int = 16, role: str = "muted") -> None:
        super().__init__()
        self._what = (icon, role, size)
        self._draw()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._draw()

    def _draw(self) -> None:
        icon, role, size = self._what
        self.setPixmap(icons.icon(icon, role).pixmap(size, size))


class IconButton(QToolButton):
    """A button with an icon only; `name` is its accessible name and its tooltip."""

    def __init__(self, icon: str, name: str, act: Callable[[], object] | None = None, size: int = 20) -> None:
        super().__init__()
        self._icon, self._size = icon, size
        self.setAccessibleName(name)
        self.setToolTip(name)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self._draw()
        if act is not None:
            self.clicked.connect(lambda _checked=False: act())

    def show_icon(self, icon: str, name: str) -> None:
        """Change icon and name, for buttons with two functions."""
        if (icon, name) != (self._icon, self.toolTip()):
            self._icon = icon
            self.setAccessibleName(name)
            self.setToolTip(name)
            self._draw()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme and the text size."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.FontChange):
            self._draw()

    def _draw(self) -> None:
        size = round(self._size * max(1.0, theme.pixels("body") / theme.SIZES["body"]))
        self.setIcon(icons.icon(self._icon))
        self.setIconSize(QSize(size, size))


class Switch(QAbstractButton):
    """An on/off switch. The knob's position and a check mark show the state, not colour alone."""

    def __init__(self, text: str, act: Callable[[bool], object] | None = None) -> None:
        super().__init__()
        self.setText(text)
        self.setAccessibleName(text)
        self.setCheckable(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        if act is not None:
            self.clicked.connect(act)

    def sizeHint(self) -> QSize:
        """The track and the text."""
        caption = self.fontMetrics().horizontalAdvance(self.text())
        return QSize(46 + (8 + caption if caption else 0), max(26, self.fontMetrics().height() + 4))

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint track, knob, check mark and text."""
        c = theme.colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        on, middle = self.isChecked(), self.height() / 2
        track = QRectF(3, middle - 10, 38, 20)
        painter.setPen(QPen(QColor(c.accent if on else c.outline), 1.5))
        painter.setBrush(QColor(c.accent if on else c.sunken))
        painter.drawRoundedRect(track, 10, 10)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(c.on_accent if on else c.outline))
        painter.drawEllipse(QRectF(24 if on else 6, middle - 7, 14, 14))
        if on:
            icons.paint(painter, "check", QRectF(26, middle - 5, 10, 10), QColor(c.accent))
        if self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(c.accent), 2))
            painter.drawRoundedRect(track.adjusted(-2, -2, 2, 2), 12, 12)
        painter.setPen(QColor(c.text if self.isEnabled() else c.outline))
        area = QRectF(50, 0, self.width() - 50, self.height())
        painter.drawText(area, Qt.AlignmentFlag.AlignVCenter, self.text())


class EmotionChip(QWidget):
    """An emotion as a pill with glyph, hue and word."""

    def __init__(self, emotion: str = UNSURE, note: str = "") -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.emotion = UNSURE
        self._note = ""
        self.show_emotion(emotion, note)

    def show_emotion(self, emotion: str, note: str = "") -> None:
        """Show one of `EMOTIONS` or "unsure"; `note` follows the word ("72 %", "corrected")."""
        self.emotion = emotion if emotion in EMOTIONS else UNSURE  # a recording may hold any label
        self._note = note
        self.setAccessibleName(f"{voice_sounds(self.emotion)} {note}".strip())
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        """Glyph, word and note."""
        metrics = self.fontMetrics()
        return QSize(36 + metrics.horizontalAdvance(self._text()), max(24, metrics.height() + 6))

    def _text(self) -> str:
        return f"{tr(self.emotion)}  {self._note}" if self._note else tr(self.emotion)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint a pill outlined in the hue."""
        c = theme.colours()
        hue = c.emotion(self.emotion)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        fill = QColor(hue)
        fill.setAlphaF(0.12)
        painter.setPen(QPen(hue, 1.2))
        painter.setBrush(fill)
        painter.drawRoundedRect(
            QRectF(self.rect()).adjusted(0.6, 0.6, -0.6, -0.6), self.height() / 2, self.height() / 2
        )
        icons.paint(painter, self.emotion, QRectF(8, self.height() / 2 - 8, 16, 16), hue)
        painter.setPen(QColor(c.text))
        area = QRectF(28, 0, self.width() - 28, self.height())
        painter.drawText(area, Qt.AlignmentFlag.AlignVCenter, self._text())


class Picker(QComboBox):
    """A drop-down list. `picked` carries the value that the user chose; the mouse wheel scrolls the page instead."""

    picked = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(12)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.activated.connect(lambda at: self.picked.emit(self.itemData(at)))

    def wheelEvent(self, event: Any) -> None:
        """Ignore the wheel: scrolling the page must not change a setting."""
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Paint the arrow, which the style sheet leaves out."""
        super().paintEvent(event)
        c = theme.colours()
        place = QRectF(self.width() - 28, self.height() / 2 - 8, 16, 16)
        icons.paint(QPainter(self), "down", place, QColor(c.text if self.isEnabled() else c.outline))

    def show_options(self, options: Sequence[tuple[Any, str]], value: Any) -> None:
        """Set values and texts. An open list stays as it is if nothing changed."""
        options = [(data, one_line(text)) for data, text in options]
        with QSignalBlocker(self):
            if options != [(self.itemData(at), self.itemText(at)) for at in range(self.count())]:
                self.clear()
                for data, text in options:
                    self.addItem(text, data)
            at = next((at for at in range(self.count()) if self.itemData(at) == value), -1)
            self.setCurrentIndex(at)


class EmptyState(QWidget):
    """What an empty page shows: an icon, one sentence and one button."""

    def __init__(self, icon: str, sentence: str, text: str = "", act: Callable[[], object] | None = None) -> None:
        super().__init__()
        picture = IconLabel(icon, 48)
        picture.setAlignment(Qt.AlignmentFlag.AlignCenter)
        caption = label(sentence, "muted")
        caption.setAlignment(Qt.AlignmentFlag.AlignCenter)
        layout = column(None, picture, caption, spacing=2 * theme.GRID)
        if text and act is not None:
            self.button = button(text, act, "primary")
            layout.addWidget(self.button, 0, Qt.AlignmentFlag.AlignHCenter)
        layout.addStretch(1)
        self.setLayout(layout)


class Banner(QFrame):
    """A message above the page with an optional action and a close button. Never modal.

    Signals:
        dismissed: the banner was closed.
    """

    dismissed = Signal()

    def __init__(self, text: str, action: str, act: Callable[[], object] | None, *, error: bool) -> None:
        super().__init__()
        self.setProperty("role", "raised")
        picture = IconLabel("warning", 20, "danger") if error else IconLabel("info", 20)
        self.text = label(brief(text), selectable=True)
        self.setAccessibleName(self.text.text())
        layout = row(picture, spacing=12)
        layout.setContentsMargins(14, 8, 8, 8)
        layout.addWidget(self.text, 1)
        if act is not None:
            self.action = button(action, act, "quiet")
            self.action.clicked.connect(self.dismiss)
            layout.addWidget(self.action)
        layout.addWidget(IconButton("close", tr("Dismiss"), self.dismiss, 16))
        self.setLayout(layout)

    def dismiss(self) -> None:
        """Close the banner."""
        self.hide()
        self.deleteLater()
        self.dismissed.emit()
