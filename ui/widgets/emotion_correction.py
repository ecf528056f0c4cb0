"""Correcting a reading: one click, with undo, and a single question whether corrections may be kept."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import QEvent, QSettings, QSize, Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QSizePolicy, QToolButton, QWidget

from assistant.events import EMOTIONS
from ui.core import icons, theme
from ui.core.app import App
from ui.core.translations import tr
from ui.widgets.common import EmotionChip, button, column, label, row


def was_asked(app: App) -> bool:
    """Return whether the user was asked if corrections may be kept, here or in the first-run wizard."""
    return _store(app).value("corrections_asked", "") == "yes"


def remember_answer(app: App) -> None:
    """Note that the user was asked. The answer itself is in the settings."""
    _store(app).setValue("corrections_asked", "yes")


def _store(app: App) -> QSettings:
    return QSettings(str(app.services.home / "window.ini"), QSettings.Format.IniFormat)


class EmotionCorrection(QWidget):
    """Five emotions to choose from, and the current choice.

    Signals:
        chosen: one of `EMOTIONS`.
        undone: the last choice was undone.
        answered: whether corrections may be kept.
    """

    chosen = Signal(str)
    undone = Signal()
    answered = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self._buttons = {emotion: self._button(emotion) for emotion in EMOTIONS}
        self._choices = row(spacing=0)
        self.chip = EmotionChip()
        self.undo = button(self.tr("Undo"), self.undone.emit, "quiet")
        self.consent = QFrame()
        self.consent.setProperty("role", "sunken")
        yes = button(self.tr("Keep them"), partial(self.answered.emit, True))
        no = button(self.tr("Don't keep"), partial(self.answered.emit, False), "quiet")
        question = self.tr("Keep your corrections and these recordings on this computer for fine-tuning?")
        inside = column(label(question), spacing=8)
        inside.addLayout(row(yes, no, None))
        inside.setContentsMargins(12, 10, 12, 10)
        self.consent.setLayout(inside)
        self.consent.hide()
        layout = column(label(self.tr("Not right? It sounded"), "small"), spacing=4)
        for made in self._buttons.values():
            self._choices.addWidget(made)
        layout.addLayout(self._choices)
        layout.addLayout(row(self.chip, self.undo, None))
        layout.addWidget(self.consent)
        self.setLayout(layout)
        self.show_correction(None)
        self._draw()

    def show_correction(self, emotion: str | None, *, confirms: bool = False) -> None:
        """Show the user's choice, None for none. `confirms`: it equals the reading."""
        self.chip.setVisible(emotion is not None)
        self.undo.setVisible(emotion is not None)
        if emotion is not None:
            self.chip.show_emotion(emotion, self.tr("confirmed") if confirms else self.tr("corrected"))

    def ask(self, *, on: bool) -> None:
        """Show or hide the question whether corrections may be kept."""
        self.consent.setVisible(on)

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme and the text size."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.FontChange) and self.layout() is not None:
            self._draw()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Show words under the glyphs where there is room."""
        super().resizeEvent(event)
        self._fit()

    def _button(self, emotion: str) -> QToolButton:
        made = QToolButton()
        made.setText(tr(emotion))
        made.setAccessibleName(self.tr("It sounded {0}").format(tr(emotion)))
        made.setToolTip(made.accessibleName())
        made.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        made.setStyleSheet("padding: 4px 0;")
        made.setCursor(Qt.CursorShape.PointingHandCursor)
        made.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        made.clicked.connect(lambda _checked=False: self.chosen.emit(emotion))
        return made

    def _draw(self) -> None:
        side = theme.pixels("lead")
        for emotion, made in self._buttons.items():
            made.setIcon(icons.icon(emotion))
            made.setIconSize(QSize(side, side))
        self._fit()

    def _fit(self) -> None:
        """Show all five words or none; each button is as wide as its word."""
        widths = [made.fontMetrics().horizontalAdvance(made.text()) + 10 for made in self._buttons.values()]
        roomy = sum(widths) <= self.width()
        style = Qt.ToolButtonStyle.ToolButtonTextUnderIcon if roomy else Qt.ToolButtonStyle.ToolButtonIconOnly
        for made, width in zip(self._buttons.values(), widths, strict=True):
            made.setToolButtonStyle(style)
            self._choices.setStretchFactor(made, width if roomy else 1)
