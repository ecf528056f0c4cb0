"""The delay of a reply and, expanded, its stages. Only measured values are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QAbstractButton, QSizePolicy, QWidget

from ui.core import icons, theme
from ui.core.translations import tr

_SHORT = 0.002  # seconds; shorter stages are left out


@dataclass(frozen=True, slots=True)
class Stage:
    """One bar of the waterfall.

    Attributes:
        start: seconds after the user finished speaking; negative is before.
        seconds: the length.
        waiting: nothing was computed: the user might still have gone on, or the model was busy.
    """

    name: str
    start: float
    seconds: float
    waiting: bool = False


def delay(marks: Mapping[str, float]) -> tuple[str, float] | None:
    """Return what came first, sound or text, and the seconds until then; None if not measured."""
    for mark, text in (("first_sound", tr("first sound")), ("first_text", tr("first words"))):
        if mark in marks and "ended" in marks:
            return text, max(0.0, marks[mark] - marks["ended"])
    return None


def stages(marks: Mapping[str, float], figures: Mapping[str, float]) -> list[Stage]:
    """Return the measured stages between the last word and the first sound, in order.

    A speculative reply starts before the final end of the utterance; such stages lie before zero.
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
        # Speech that is ready early waits for the end of the turn; that wait is not playback time.
        (tr("playback"), "first_speech", "first_sound"),
    )
    for name, begin, end in voice:
        if begin in at and end in at:
            start = max(0.0, at[begin]) if end == "first_sound" else at[begin]
            found.append(Stage(name, start, max(0.0, at[end] - start)))
    return [stage for stage in found if stage.seconds >= _SHORT]


class DelayChip(QAbstractButton):
    """The delay as a button, such as "first sound 0.7 s". Checked means expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.setCheckable(True)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the conversation's action bar expands it from the keyboard
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)

    def show_delay(self, marks: Mapping[str, float]) -> None:
        """Show the measured delay, or hide."""
        measured = delay(marks)
        self.setVisible(measured is not None)
        if measured is not None:
            text, seconds = measured
            self.setText(tr("{0} {1:.1f} s").format(text, seconds))
            self.setAccessibleName(tr("{0}; show details").format(self.text()))
            self.setToolTip(tr("Time from the end of your message. Click for details."))
            self.updateGeometry()

    def sizeHint(self) -> QSize:
        """The text and an arrow."""
        metrics = QFontMetrics(_small(self.font()))
        return QSize(metrics.horizontalAdvance(self.text()) + 24, metrics.height() + 8)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint the text and an arrow that points down when expanded."""
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
    """The stages of one delay as bars on a time axis."""

    def __init__(self) -> None:
        super().__init__()
        self._stages: list[Stage] = []
        self._until = 0.0
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_stages(self, marks: Mapping[str, float], figures: Mapping[str, float]) -> None:
        """Show the measured stages."""
        self._stages = stages(marks, figures)
        measured = delay(marks)
        self._until = measured[1] if measured else 0.0
        description = (f"{stage.name} {_length(stage.seconds)}" for stage in self._stages)
        self.setAccessibleName(tr("Delay breakdown: {0}").format(tr(", ").join(description)))
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        """One line per stage and one for the axis label."""
        return QSize(280, (len(self._stages) + 1) * self._line + 8)

    @property
    def _line(self) -> int:
        return QFontMetrics(_small(self.font())).height() + 5

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint names, bars and lengths, and a line at the end of speech."""
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
            # Hollow bars are waiting, filled bars are work.
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
