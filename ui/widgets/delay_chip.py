"""How long the user waited for a reply, and, unfolded, what the time went into. Only what was measured is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QAbstractButton, QSizePolicy, QWidget

from ui.core import icons, theme
from ui.core.translations import tr

_SHORT = 0.002  # seconds; what is shorter plays no part


@dataclass(frozen=True, slots=True)
class Stage:
    """One bar of the waterfall: `start` in seconds after the user had finished (negative: before), and how long.

    `waiting`: nothing was computed; it was waited for the user to go on, or for a model that was not free yet.
    """

    name: str
    start: float
    seconds: float
    waiting: bool = False


def delay(marks: Mapping[str, float]) -> tuple[str, float] | None:
    """What came first, sound or text, in words, and the seconds until then; None where it was not measured."""
    for mark, text in (("first_sound", tr("first sound")), ("first_text", tr("first words"))):
        if mark in marks and "ended" in marks:
            return text, max(0.0, marks[mark] - marks["ended"])
    return None


def stages(marks: Mapping[str, float], figures: Mapping[str, float]) -> list[Stage]:
    """The stages between the user's last word and the first sound that have been measured, in order.

    A reply may be begun on trial before the end of the utterance is certain: such stages lie before zero.
    """
    if "ended" not in marks:
        return []
    at = {name: seconds - marks["ended"] for name, seconds in marks.items()}
    took = {name: figures.get(f"{name}_ms", 0.0) / 1e3 for name in ("encode", "prefill", "first_token")}
    found: list[Stage] = []
    asked = at.get("asked", 0.0)
    encode = max(asked, at["read"] - took["encode"]) if took["encode"] and "read" in at else None
    reply = max(asked, at["first_text"] - took["first_token"]) if took["first_token"] and "first_text" in at else None
    if asked < 0:
        found.append(Stage(tr("end of turn"), asked, -asked, True))
    began = encode if encode is not None else reply
    if began is not None and began - asked >= _SHORT:
        found.append(Stage(tr("waiting for the model"), asked, began - asked, True))
    if encode is not None:
        found.append(Stage(tr("encode"), encode, took["encode"]))
    if reply is not None:
        found.append(Stage(tr("prefill"), reply, took["prefill"]))
        found.append(Stage(tr("first word"), reply + took["prefill"], took["first_token"] - took["prefill"]))
    voice = (
        (tr("first sentence"), "first_text", "first_sentence"),
        (tr("synthesis"), "first_sentence", "first_speech"),
        # What was ready early waits for the end of the turn before it may be heard: that is no work of the output.
        (tr("playback"), "first_speech", "first_sound"),
    )
    for name, begin, end in voice:
        if begin in at and end in at:
            start = max(0.0, at[begin]) if end == "first_sound" else at[begin]
            found.append(Stage(name, start, max(0.0, at[end] - start)))
    return [stage for stage in found if stage.seconds >= _SHORT]


class DelayChip(QAbstractButton):
    """ "first sound 0.7 s"; checked it is unfolded."""

    def __init__(self) -> None:
        super().__init__()
        self.setCheckable(True)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the conversation's action bar unfolds it from the keyboard
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)

    def show_delay(self, marks: Mapping[str, float]) -> None:
        """Show what was measured, or nothing."""
        measured = delay(marks)
        self.setVisible(measured is not None)
        if measured is not None:
            text, seconds = measured
            self.setText(tr("{0} {1:.1f} s").format(text, seconds))
            self.setAccessibleName(tr("{0}; show details").format(self.text()))
            self.setToolTip(tr("Time from the end of your message. Click for details."))
            self.updateGeometry()

    def sizeHint(self) -> QSize:
        """Words and an arrow."""
        metrics = QFontMetrics(_small(self.font()))
        return QSize(metrics.horizontalAdvance(self.text()) + 24, metrics.height() + 8)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Muted words, an arrow that points down when unfolded."""
        c = theme.colours()
        painter = QPainter(self)
        colour = QColor(c.text if self.underMouse() or self.isChecked() else c.muted)
        painter.setFont(_small(self.font()))
        painter.setPen(colour)
        area = QRectF(0, 0, self.width() - 20, self.height())
        painter.drawText(area, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight, self.text())
        arrow = QRectF(self.width() - 18, self.height() / 2 - 8, 16, 16)
        icons.paint(painter, "down" if self.isChecked() else "right", arrow, colour)


class Waterfall(QWidget):
    """The stages of one delay as bars on one line of time."""

    def __init__(self) -> None:
        super().__init__()
        self._stages: list[Stage] = []
        self._until = 0.0
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_stages(self, marks: Mapping[str, float], figures: Mapping[str, float]) -> None:
        """Show what was measured."""
        self._stages = stages(marks, figures)
        measured = delay(marks)
        self._until = measured[1] if measured else 0.0
        description = (f"{stage.name} {_length(stage.seconds)}" for stage in self._stages)
        self.setAccessibleName(tr("Delay breakdown: {0}").format(tr(", ").join(description)))
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        """A line for each stage, and one for the words at zero."""
        return QSize(280, (len(self._stages) + 1) * self._line + 8)

    @property
    def _line(self) -> int:
        return QFontMetrics(_small(self.font())).height() + 5

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Name, bar, length; a hairline at the moment the user had finished."""
        c, line = theme.colours(), self._line
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(_small(self.font()))
        metrics = painter.fontMetrics()
        left = max((metrics.horizontalAdvance(stage.name) for stage in self._stages), default=0) + 12
        right = self.width() - metrics.horizontalAdvance("0000 ms") - 8
        begin = min([0.0, *(stage.start for stage in self._stages)])
        end = max([self._until, 1e-3, *(stage.start + stage.seconds for stage in self._stages)])
        scale = max(0, right - left) / (end - begin)
        zero = left + (0.0 - begin) * scale
        bottom = len(self._stages) * line + 4
        painter.setPen(QPen(QColor(c.outline), 1, Qt.PenStyle.DotLine))
        painter.drawLine(QPointF(zero, 2), QPointF(zero, bottom))
        for row, stage in enumerate(self._stages):
            top = 4 + row * line
            painter.setPen(QColor(c.muted))
            painter.drawText(QRectF(0, top, left, line), Qt.AlignmentFlag.AlignVCenter, stage.name)
            bar = QRectF(left + (stage.start - begin) * scale, top + line / 2 - 4, max(2, stage.seconds * scale), 8)
            painter.setPen(QColor(c.text))
            area = QRectF(bar.right() + 6, top, self.width(), line)
            painter.drawText(area, Qt.AlignmentFlag.AlignVCenter, _length(stage.seconds))
            painter.setPen(QPen(QColor(c.accent), 1.2))
            # Hollow: waiting. Filled: work.
            painter.setBrush(Qt.BrushStyle.NoBrush if stage.waiting else QColor(c.accent))
            painter.drawRoundedRect(bar, 2, 2)
        painter.setPen(QColor(c.muted))
        text = tr("end of speech")
        at = min(max(0.0, zero - metrics.horizontalAdvance(text) / 2), self.width() - metrics.horizontalAdvance(text))
        painter.drawText(QPointF(at, bottom + metrics.ascent() + 1), text)


def _length(seconds: float) -> str:
    return tr("{0:.0f} ms").format(seconds * 1e3) if seconds < 9.9995 else tr("{0:.1f} s").format(seconds)


def _small(font: QFont) -> QFont:
    made = QFont(font)
    made.setPixelSize(theme.pixels("small"))
    return made
