"""Building blocks of forms: sections, choices, messages, progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PySide6.QtCore import QEvent, QPoint, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import (
    QLabel,
    QLayout,
    QProgressBar,
    QPushButton,
    QRadioButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from ui.core import icons, theme
from ui.core.jobs import Job
from ui.core.translations import tr
from ui.core.untrusted_text import brief
from ui.widgets.common import button, column, label, row

WIDTH = 640
"""Width of a section in pixels at the normal text size, for readable lines."""

_QUIET_DB = -60.0
_RING = 18


class Section(QWidget):
    """A page of the settings: a title and fields in a column of readable width."""

    def __init__(self, title: str, intro: str = "") -> None:
        super().__init__()
        self.setAccessibleName(title)
        self._fit()
        self._column = column(label(title, "title"), spacing=6)
        if intro:
            self._column.addWidget(label(intro, "muted"))
        self._column.addSpacing(2 * theme.GRID)
        self._column.addStretch(1)
        self.setLayout(self._column)

    def changeEvent(self, event: QEvent) -> None:
        """Grow with the text."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange:
            self._fit()

    def _fit(self) -> None:
        self.setMaximumWidth(round(WIDTH * theme.pixels("body") / theme.SIZES["body"]))

    def add(self, *parts: QWidget | QLayout, gap: int = 20) -> None:
        """Add widgets or layouts at the end, followed by `gap` pixels."""
        for part in parts:
            at = self._column.count() - 1
            if isinstance(part, QWidget):
                self._column.insertWidget(at, part)
            else:
                self._column.insertLayout(at, part)
        self._column.insertSpacing(self._column.count() - 1, gap)

    def add_field(self, title: str, *parts: QWidget, note: str = "") -> QLabel:
        """Add a titled control with a note below. Returns the title, the buddy of the first part."""
        heading = label(title, "heading")
        heading.setBuddy(parts[0])
        if not parts[0].accessibleName():
            parts[0].setAccessibleName(title)
        below = [label(note, "small")] if note else []
        self.add(heading, *parts, *below)
        return heading


def actions(*buttons: QWidget) -> QWidget:
    """Lay out buttons side by side, from the left."""
    made = QWidget()
    made.setLayout(row(*buttons, None))
    return made


class Radio(QRadioButton):
    """A radio button that follows the theme."""

    def sizeHint(self) -> QSize:
        """The ring and the text."""
        metrics = self.fontMetrics()
        return QSize(_RING + 12 + metrics.horizontalAdvance(self.text()), max(_RING + 8, metrics.height() + 4))

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint ring, dot and text."""
        c = theme.colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        ring = QRectF(3, (self.height() - _RING) / 2, _RING, _RING)
        painter.setPen(QPen(QColor(c.accent if self.isChecked() else c.outline), 2 if self.isChecked() else 1.5))
        painter.setBrush(QColor(c.raised))
        painter.drawEllipse(ring)
        if self.isChecked():
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(c.accent))
            painter.drawEllipse(ring.adjusted(5, 5, -5, -5))
        if self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(c.accent), 2))
            painter.drawEllipse(ring.adjusted(-3, -3, 3, 3))
        painter.setPen(QColor(c.text if self.isEnabled() else c.outline))
        area = QRectF(_RING + 12, 0, self.width() - _RING - 12, self.height())
        painter.drawText(area, Qt.AlignmentFlag.AlignVCenter, self.text())

    def hitButton(self, pos: QPoint) -> bool:
        """The whole area can be clicked."""
        return self.rect().contains(pos)


class Choices(QWidget):
    """A group of radio buttons, each with an explanation.

    Signals:
        chosen: the value that the user chose.
    """

    chosen = Signal(str)

    def __init__(self, options: Sequence[tuple[str, str, str]], value: str, title: str = "") -> None:
        """`options`: value, text and explanation ("" for none)."""
        super().__init__()
        self.setAccessibleName(title)
        self.buttons: dict[str, QRadioButton] = {}
        layout = column(spacing=1)
        for name, text, meaning in options:
            radio = Radio(text)
            radio.setAccessibleDescription(meaning)
            radio.setChecked(name == value)
            radio.clicked.connect(lambda _on=False, name=name: self.chosen.emit(name))
            self.buttons[name] = radio
            layout.addWidget(radio)
            if meaning:
                note = label(meaning, "small")
                note.setContentsMargins(_RING + 12, 0, 0, 8)
                layout.addWidget(note)
            radio.toggled.connect(partial(self._point, radio))
        self.setLayout(layout)
        self.setFocusProxy(self.buttons[value] if value in self.buttons else next(iter(self.buttons.values())))

    def _point(self, radio: QRadioButton, on: bool) -> None:
        """Move the focus proxy to the chosen button."""
        if on:
            self.setFocusProxy(radio)

    @property
    def value(self) -> str:
        """The chosen value."""
        return next((name for name, radio in self.buttons.items() if radio.isChecked()), "")

    def choose(self, value: str) -> None:
        """Select a value without a signal."""
        self.buttons[value].setChecked(True)


class LevelMeter(QWidget):
    """The microphone level from -60 dB to full scale, with a peak mark."""

    def __init__(self) -> None:
        super().__init__()
        self.setAccessibleName(tr("Microphone level"))
        self.setFixedHeight(12)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.decibels = self._peak = _QUIET_DB

    def sizeHint(self) -> QSize:
        """As wide as there is room."""
        return QSize(200, 12)

    def show_level(self, decibels: float) -> None:
        """Show the current level in dB."""
        self.decibels = max(_QUIET_DB, min(0.0, decibels))
        self._peak = max(self.decibels, self._peak - 0.6)
        self.setAccessibleDescription(f"{self.decibels:.0f} dB")
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the groove, the bar and the peak mark."""
        c = theme.colours()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        groove = QRectF(0, 2, self.width(), 8)
        painter.setBrush(QColor(c.outline))
        painter.setOpacity(0.35)
        painter.drawRoundedRect(groove, 4, 4)
        painter.setOpacity(1.0)
        share = 1 - self.decibels / _QUIET_DB
        if share > 0:
            painter.setBrush(QColor(c.accent))
            painter.drawRoundedRect(QRectF(0, 2, max(8.0, groove.width() * share), 8), 4, 4)
        at = (1 - self._peak / _QUIET_DB) * (groove.width() - 3)
        if self._peak > _QUIET_DB:
            painter.setBrush(QColor(c.text))
            painter.drawRect(QRectF(at, 0, 2, 12))


class StatusIcon(QWidget):
    """A small icon that follows the theme and can change."""

    def __init__(self, icon: str, role: str = "muted", size: int = 20) -> None:
        super().__init__()
        self._icon, self._role = icon, role
        self.setFixedSize(size, size)

    def show_icon(self, icon: str, role: str) -> None:
        """Change the icon and its colour."""
        self._icon, self._role = icon, role
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the icon."""
        colour = QColor(getattr(theme.colours(), self._role))
        icons.paint(QPainter(self), self._icon, QRectF(self.rect()), colour)


class InlineMessage(QWidget):
    """A message next to the control it belongs to, with its remedy as a button. Hidden when empty."""

    def __init__(self) -> None:
        super().__init__()
        self._mark = StatusIcon("info")
        self.text = label(selectable=True)
        self._row = row(self._mark, spacing=10)
        self._row.setAlignment(self._mark, Qt.AlignmentFlag.AlignTop)
        self._row.addWidget(self.text, 1)
        self.action: QPushButton | None = None
        self.setLayout(self._row)
        self.hide()

    def report(
        self, text: str, *, error: bool = False, action: str = "", act: Callable[[], object] | None = None
    ) -> None:
        """Show a text; "" hides the message. `act` is the remedy."""
        self.text.setText(brief(text))
        self._mark.show_icon("warning" if error else "info", "danger" if error else "muted")
        if self.action is not None:
            self.action.deleteLater()
            self.action = None
        if act is not None:
            self.action = button(action, act, "quiet")
            self._row.addWidget(self.action, 0, Qt.AlignmentFlag.AlignTop)
        self.setVisible(bool(text))


class JobProgress(QWidget):
    """The progress of a child process, with a stop button. Hidden when no job runs.

    Signals:
        ended: exit code, message for the user, last JSON line.
    """

    ended = Signal(int, str, object)

    def __init__(self) -> None:
        super().__init__()
        self.text = label()
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(6)
        self.stop = button(tr("Stop"), self._stop, "quiet")
        self.job: Job | None = None
        self._stopped = False
        layout = QVBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        line_layout = row(self.text)
        line_layout.setStretch(0, 1)
        line_layout.addWidget(self.stop)
        layout.addLayout(line_layout)
        layout.addWidget(self.bar)
        self.setLayout(layout)
        self.hide()

    @property
    def running(self) -> bool:
        """Whether a job runs."""
        return self.job is not None

    def follow(self, job: Job, what: str) -> None:
        """Show a job until it ends."""
        self.job, self._stopped = job, False
        self.text.setText(what)
        self.bar.setAccessibleName(what)
        self.bar.setRange(0, 0)
        job.printed.connect(self._step)
        job.ended.connect(self._end)
        self.show()

    def _step(self, line: dict[str, Any]) -> None:
        if "what" in line and line.get("total"):
            self.bar.setRange(0, 1000)
            self.bar.setValue(round(1000 * line["done"] / line["total"]))
            amount = f" · {format_bytes(line['done'])} / {format_bytes(line['total'])}" if line["total"] > 1000 else ""
            self.text.setText(f"{line['what']}{amount}")

    def _stop(self) -> None:
        if self.job is not None:
            self._stopped = True
            self.job.stop()

    def _end(self, code: int, description: str) -> None:
        job, self.job = self.job, None
        last = job.results[-1] if job and job.results else {}
        self.hide()
        if self._stopped:
            code, description = 130, tr("Stopped.")
        elif last.get("error"):
            description = str(last["error"])
        self.ended.emit(code, description, last)


def format_bytes(count: float) -> str:
    """Format a size: 980 kB, 271 MB, 15.2 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
