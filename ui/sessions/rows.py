"""The list's model and the painting of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QPersistentModelIndex, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPen
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem

from ui.core import icons, theme
from ui.core.translations import tr
from ui.sessions.formatting import format_duration, format_emotions, format_start, format_turns
from ui.sessions.summary import Summary

Index = QModelIndex | QPersistentModelIndex


class SessionListModel(QAbstractListModel):
    """The sessions that are shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Summary] = []

    def rowCount(self, parent: Index | None = None) -> int:
        """The number of sessions."""
        return 0 if parent is not None and parent.isValid() else len(self.shown)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The `Summary` (UserRole), or a sentence for screen readers."""
        session = self.shown[index.row()]
        if role == Qt.ItemDataRole.UserRole:
            return session
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.AccessibleTextRole):
            parts = (format_start(session), session.first_words[:200], format_duration(session.seconds))
            return "; ".join((*parts, format_turns(session.turns), format_emotions(session.emotions)))
        return None

    def show(self, shown: list[Summary]) -> None:
        """Show these sessions in this order."""
        self.beginResetModel()
        self.shown = shown
        self.endResetModel()


class SessionDelegate(QStyledItemDelegate):
    """Paints one session: start, duration, first words, emotions."""

    def sizeHint(self, _option: QStyleOptionViewItem, _index: Index) -> QSize:
        small, lead = QFontMetrics(_font("small")), QFontMetrics(_font("body"))
        return QSize(
            200, 12 + small.height() + 4 + lead.height() + 6 + max(theme.pixels("small") + 4, small.height()) + 12
        )

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        session: Summary = index.data(Qt.ItemDataRole.UserRole)
        style: Any = option
        area: QRect = style.rect
        c = theme.colours()
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        chosen = bool(style.state & QStyle.StateFlag.State_Selected)
        if chosen or style.state & QStyle.StateFlag.State_MouseOver:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(c.sunken))
            painter.drawRoundedRect(QRectF(area).adjusted(6, 2, -6, -2), 10, 10)
        if chosen:
            painter.setBrush(QColor(c.accent))
            painter.drawRoundedRect(QRectF(area.left() + 6, area.top() + 12, 4, area.height() - 24), 2, 2)
        if chosen and style.state & QStyle.StateFlag.State_HasFocus:
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(c.accent), 2))
            painter.drawRoundedRect(QRectF(area).adjusted(7, 3, -7, -3), 10, 10)
        self._write(painter, area.adjusted(20, 12, -18, -12), session)
        painter.restore()

    def _write(self, painter: QPainter, area: QRect, session: Summary) -> None:
        c = theme.colours()
        left, right = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight
        small, body = _font("small"), _font("body")
        painter.setFont(small)
        painter.setPen(QColor(c.muted))
        height = painter.fontMetrics().height()
        when = QRect(area.left(), area.top(), area.width(), height)
        length = format_duration(session.seconds)
        painter.drawText(when, right, length)
        room = area.width() - painter.fontMetrics().horizontalAdvance(length) - 12
        painter.drawText(when, left, _elided(painter, format_start(session), room))
        painter.setFont(body)
        painter.setPen(QColor(c.text if session.first_words else c.muted))
        text = " ".join(session.first_words[:300].split()) or tr("(no transcript)")
        top = when.bottom() + 5
        painter.drawText(
            QRect(area.left(), top, area.width(), painter.fontMetrics().height()),
            left,
            _elided(painter, text, area.width()),
        )
        top += painter.fontMetrics().height() + 6
        painter.setFont(small)
        painter.setPen(QColor(c.muted))
        count = format_turns(session.turns)
        if session.running:
            count = f"{tr('recording')} · {count}"
        elif session.damaged:
            count = f"{tr('damaged')} · {count}"
        last = QRect(area.left(), top, area.width(), max(theme.pixels("small") + 4, height))
        painter.drawText(last, right | Qt.AlignmentFlag.AlignVCenter, count)
        room = area.width() - painter.fontMetrics().horizontalAdvance(count) - 12
        self._draw_mood(painter, session.emotions, last, room)

    def _draw_mood(self, painter: QPainter, emotions: Sequence[str], area: QRect, room: int) -> None:
        glyph = theme.pixels("small") + 4
        most = max(1, room // (glyph + 4))
        shown = emotions if len(emotions) <= most else emotions[: max(1, most - 2)]
        top = area.top() + (area.height() - glyph) / 2
        for number, emotion in enumerate(shown):
            hue = theme.colours().emotion(emotion)
            icons.paint(painter, emotion, QRectF(area.left() + (glyph + 4) * number, top, glyph, glyph), hue)
        if len(shown) < len(emotions):
            rest = area.adjusted((glyph + 4) * len(shown) + 2, 0, 0, 0)
            painter.drawText(rest, Qt.AlignmentFlag.AlignVCenter, f"+{len(emotions) - len(shown)}")


def _font(size: str) -> QFont:
    font = QFont()
    font.setPixelSize(theme.pixels(size))
    return font


def _elided(painter: QPainter, text: str, width: int) -> str:
    return painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, max(0, width))
