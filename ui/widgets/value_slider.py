"""A slider that shows its value and reports it once the user stops moving it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QSignalBlocker, Qt, QTimer, Signal
from PySide6.QtWidgets import QSlider, QWidget

from ui.widgets.common import label, row

_SETTLE_MS = 250


class ValueSlider(QWidget):
    """A slider with its value as text; `settled` carries the value once it rests.

    Args:
        low, high, step: of the value.
        format_value: returns the text of a value.
    """

    settled = Signal(float)

    def __init__(
        self, title: str, low: float, high: float, step: float, value: float, format_value: Callable[[float], str]
    ) -> None:
        super().__init__()
        self._step, self._format = step, format_value
        self.slider = _Slider(Qt.Orientation.Horizontal)
        self.slider.setRange(round(low / step), round(high / step))
        self.slider.setPageStep(max(1, round((high - low) / step / 10)))
        self.slider.setAccessibleName(title)
        self.setAccessibleName(title)
        self.setFocusProxy(self.slider)
        self.slider.setMinimumHeight(24)
        self.shown = label(wrap=False)
        self.shown.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.shown.setMinimumWidth(
            max(self.shown.fontMetrics().horizontalAdvance(format_value(v)) for v in (low, high)) + 12
        )
        self._rest = QTimer(self, singleShot=True, interval=_SETTLE_MS)
        self._rest.timeout.connect(lambda: self.settled.emit(self.value))
        self.setLayout(row(self.slider, self.shown))
        self.show_value(value)
        self.slider.valueChanged.connect(self._moved)

    @property
    def value(self) -> float:
        """The current value."""
        return round(self.slider.value() * self._step, 4)

    def show_value(self, value: float) -> None:
        """Set the value without a signal."""
        with QSignalBlocker(self.slider):
            self.slider.setValue(round(value / self._step))
        self.shown.setText(self._format(self.value))

    def _moved(self) -> None:
        self.shown.setText(self._format(self.value))
        self._rest.start()


class _Slider(QSlider):
    def wheelEvent(self, event: Any) -> None:
        event.ignore()
