"""The first-run wizard: three steps, all optional."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent, QResizeEvent, QShowEvent
from PySide6.QtWidgets import QBoxLayout, QFrame, QLineEdit, QPushButton, QScrollArea, QStackedWidget, QWidget

from assistant.audio.devices import Devices
from assistant.audio.devices import devices as find_devices
from ui.core import theme
from ui.core.app import App
from ui.core.translations import tr
from ui.first_run.steps import ModelStep, RecordingStep, SoundStep, Step
from ui.widgets.common import button, column, label, line, row
from ui.widgets.forms import WIDTH, InlineMessage

_NARROW = 460  # pixels, at the normal text size


class FirstRunWizard(QWidget):
    """Three steps with Back and Next; Enter goes on.

    Args:
        devices: lists the devices; called off Qt's thread.

    Signals:
        finished: the steps are done or were skipped.
    """

    finished = Signal()

    def __init__(self, app: App, devices: Callable[[], Devices] = find_devices) -> None:
        super().__init__()
        self._app = app
        self.model = ModelStep(app)
        self.steps: tuple[Step, ...] = (self.model, SoundStep(app, devices), RecordingStep(app))
        self._stack = QStackedWidget()
        for step in self.steps:
            self._stack.addWidget(_scrolling(step))
        self.model.checkpoint_source.changed.connect(self._scroll_to_source)
        self.step_label = label("", "small", wrap=False)
        self.missing = InlineMessage()
        self.back = button(tr("Back"), lambda: self._go(self.step - 1))
        self.next = button(tr("Next"), self.advance, "primary")
        self.skip = button(tr("Skip setup"), self._skip, "quiet")
        below = column(self.missing, self.model.message, self.model.progress, spacing=8)
        self._buttons = row(self.skip, None)
        self._buttons.addLayout(row(None, self.step_label, 8, self.back, self.next))
        below.addLayout(self._buttons)
        self._foot = QWidget()
        self._foot.setLayout(below)
        layout = column(self._stack, line(), spacing=0)
        layout.setStretch(0, 1)
        line_layout = row(None, self._foot, None)
        line_layout.setStretch(1, 100)
        line_layout.setContentsMargins(24, 12, 24, 16)
        layout.addLayout(line_layout)
        self.setLayout(layout)
        self._fit()
        self._go(0)

    @property
    def step(self) -> int:
        """The index of the current step: 0, 1 or 2."""
        return self._stack.currentIndex()

    def advance(self) -> None:
        """Go to the next step, or finish."""
        missing = self.steps[self.step].ready()
        self.missing.report(missing, error=True)
        if missing:
            return
        self.steps[self.step].leave()
        if self.step + 1 < len(self.steps):
            self._go(self.step + 1)
        else:
            self._finish()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Enter presses the focused button or goes on, except in a text field."""
        here = self.focusWidget()
        if event.key() not in (Qt.Key.Key_Return, Qt.Key.Key_Enter) or isinstance(here, QLineEdit):
            super().keyPressEvent(event)
        elif isinstance(here, QPushButton):
            here.click()
        else:
            self.advance()

    def showEvent(self, event: QShowEvent) -> None:
        """Focus the question."""
        super().showEvent(event)
        self.steps[self.step].first.setFocus()

    def changeEvent(self, event: QEvent) -> None:
        """Grow with the text."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange and self.layout() is not None:
            self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Stack the buttons in a narrow window."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        narrow = self.width() < _NARROW * theme.pixels("body") / theme.SIZES["body"]
        down, across = QBoxLayout.Direction.BottomToTop, QBoxLayout.Direction.LeftToRight
        self._buttons.setDirection(down if narrow else across)
        self.step_label.setVisible(not narrow)
        for part in (*self.steps, self._foot):
            part.setMaximumWidth(round(WIDTH * theme.pixels("body") / theme.SIZES["body"]))

    def _go(self, step: int) -> None:
        self._stack.setCurrentIndex(step)
        self.missing.report("")
        self.step_label.setText(tr("Step {number} of {all}").format(number=step + 1, all=len(self.steps)))
        self.step_label.setAccessibleName(f"{self.step_label.text()}: {self.steps[step].question}")
        self.back.setEnabled(step > 0)
        self.next.setText(tr("Start talking") if step == len(self.steps) - 1 else tr("Next"))
        self.steps[step].first.setFocus()

    def _scroll_to_source(self) -> None:
        """Scroll to what was found about the chosen checkpoint."""
        area, part = self._stack.widget(0), self.model.checkpoint_source
        if isinstance(area, QScrollArea):
            QTimer.singleShot(0, part, lambda: area.ensureWidgetVisible(part, 0, 24))

    def _skip(self) -> None:
        """Finish without a download."""
        if self.step == 0:
            self.model.use("mini" if self.model.mini_available else "")
        self._finish()

    def _finish(self) -> None:
        self._app.finish_first_run()
        self.finished.emit()


def _scrolling(step: QWidget) -> QScrollArea:
    """Centre a step at a readable width in a scroll area."""
    inside = QWidget()
    line_layout = row(None, step, None)
    line_layout.setStretch(1, 100)
    line_layout.setAlignment(step, Qt.AlignmentFlag.AlignTop)
    line_layout.setContentsMargins(24, 32, 24, 24)
    inside.setLayout(line_layout)
    area = QScrollArea()
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    area.setWidget(inside)
    return area
