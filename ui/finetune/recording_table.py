"""The table of recordings to train on, and its editors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QEvent,
    QModelIndex,
    QPersistentModelIndex,
    QRectF,
    QSortFilterProxyModel,
    Qt,
    Signal,
)
from PySide6.QtGui import QColor, QKeyEvent, QPainter, QPen
from PySide6.QtWidgets import (
    QComboBox,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QWidget,
)

from assistant.events import EMOTIONS
from assistant.finetune.tuning_data import Recording
from ui.core import icons, theme
from ui.core.translations import tr
from ui.core.untrusted_text import one_line, tooltip

Index = QModelIndex | QPersistentModelIndex
USE, PLAY, FILE, EMOTION, TEXT, LENGTH, PROBLEM = range(7)
_TITLES = ("Use", "", "File", "Emotion", "Transcript", "Length", "Problem")


class RecordingTable(QAbstractTableModel):
    """The recordings; `changed` when one was edited or left out."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Recording] = []
        self.mapping: dict[str, str] = {}

    def add(self, recording: Recording) -> None:
        """Append a recording."""
        at = len(self.rows)
        self.beginInsertRows(QModelIndex(), at, at)
        self.rows.append(recording)
        self.endInsertRows()

    def clear(self) -> None:
        """Remove all recordings."""
        self.beginResetModel()
        self.rows, self.mapping = [], {}
        self.endResetModel()

    def map_emotion(self, name: str, meaning: str) -> None:
        """Map an unknown emotion name to one of the five, or to "ignore"."""
        self.mapping[name] = meaning
        self.touch()

    def touch(self) -> None:
        """Refresh all rows."""
        if self.rows:
            self.dataChanged.emit(self.index(0, 0), self.index(len(self.rows) - 1, PROBLEM))
        self.changed.emit()

    # ---- Qt model

    def rowCount(self, parent: Index | None = None) -> int:
        """The number of recordings."""
        return 0 if parent is not None and parent.isValid() else len(self.rows)

    def columnCount(self, parent: Index | None = None) -> int:
        """See `_TITLES`."""
        return 0 if parent is not None and parent.isValid() else len(_TITLES)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The column titles."""
        if orientation is Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return tr(_TITLES[section]) if _TITLES[section] else ""
        if orientation is Qt.Orientation.Horizontal and role == Qt.ItemDataRole.TextAlignmentRole:
            return Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
        return None

    def flags(self, index: Index) -> Qt.ItemFlag:
        """Which cells can be edited."""
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        if index.column() == USE:
            flags |= Qt.ItemFlag.ItemIsUserCheckable
        if index.column() in (EMOTION, TEXT):
            flags |= Qt.ItemFlag.ItemIsEditable
        return flags

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """What each cell shows."""
        one, at = self.rows[index.row()], index.column()
        problems = one.problems(self.mapping)
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return self._text(one, at, editing=role == Qt.ItemDataRole.EditRole)
        if role == Qt.ItemDataRole.CheckStateRole and at == USE:
            return Qt.CheckState.Checked if one.usable(self.mapping) else Qt.CheckState.Unchecked
        if role == Qt.ItemDataRole.ToolTipRole:
            return tooltip("\n".join(problem.message for problem in problems) if at == PROBLEM else self._text(one, at))
        if role == Qt.ItemDataRole.DecorationRole:
            if at == PLAY:
                return icons.icon("play", "accent")
            if at == EMOTION and (meaning := one.meaning(self.mapping)):
                return icons.icon(meaning)
            if at == PROBLEM and problems:
                return icons.icon(*(("warning", "danger") if problems[0].fatal else ("info", "muted")))
        if role == Qt.ItemDataRole.ForegroundRole and not one.usable(self.mapping):
            return QColor(theme.colours().muted)
        if role == Qt.ItemDataRole.AccessibleTextRole and at == PLAY:
            return tr("Play {name}").format(name=Path(one.audio).name)
        return None

    def _text(self, one: Recording, at: int, *, editing: bool = False) -> str:
        if at == FILE:
            return one_line(Path(one.audio).name)
        if at == EMOTION:
            meaning = one.meaning(self.mapping)
            return (
                (meaning if editing else tr(meaning)) if meaning else one_line(one.emotion) or ("" if editing else "—")
            )
        if at == TEXT:
            return one.text if editing else one_line(one.text) or "—"
        if at == LENGTH:
            return "" if one.seconds is None else tr("{0:.1f} s").format(one.seconds)
        if at == PROBLEM:
            return "; ".join(tr(problem.kind) for problem in one.problems(self.mapping))
        return ""

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        """Edit a recording, or leave it out."""
        one = self.rows[index.row()]
        if index.column() == USE and role == Qt.ItemDataRole.CheckStateRole:
            one.excluded = Qt.CheckState(value) is not Qt.CheckState.Checked
        elif index.column() == EMOTION and role == Qt.ItemDataRole.EditRole:
            one.emotion = str(value)
        elif index.column() == TEXT and role == Qt.ItemDataRole.EditRole:
            one.text = str(value).strip()
        else:
            return False
        self.dataChanged.emit(self.index(index.row(), 0), self.index(index.row(), PROBLEM))
        self.changed.emit()
        return True


class ProblemFilter(QSortFilterProxyModel):
    """Shows the recordings with one kind of problem, or all."""

    kind = ""

    def show_kind(self, kind: str) -> None:
        """Filter by a kind of problem, "" for all."""
        self.kind = kind
        self.invalidate()

    def filterAcceptsRow(self, at: int, _parent: Index) -> bool:
        """Whether the recording has the problem."""
        table = self.sourceModel()
        assert isinstance(table, RecordingTable)
        return not self.kind or any(one.kind == self.kind for one in table.rows[at].problems(table.mapping))


class CheckboxDelegate(QStyledItemDelegate):
    """A checkbox that is visible in every theme. A click or the space bar toggles it."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """Paint the box and the check mark."""
        c, rect = theme.colours(), option.rect
        on = index.data(Qt.ItemDataRole.CheckStateRole) == Qt.CheckState.Checked
        box = QRectF(rect.left() + 10, rect.center().y() - 8, 18, 18)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(QColor(c.accent if on else c.outline), 1.5))
        painter.setBrush(QColor(c.accent if on else c.raised))
        painter.drawRoundedRect(box, 4, 4)
        if on:
            icons.paint(painter, "check", box.adjusted(3, 3, -3, -3), QColor(c.on_accent))
        painter.restore()

    def editorEvent(self, event: QEvent, model: Any, _option: QStyleOptionViewItem, index: Index) -> bool:
        """Toggle it."""
        space = isinstance(event, QKeyEvent) and event.key() == Qt.Key.Key_Space
        if event.type() is not QEvent.Type.MouseButtonRelease and not space:
            return False
        on = index.data(Qt.ItemDataRole.CheckStateRole) == Qt.CheckState.Checked
        value = Qt.CheckState.Unchecked if on else Qt.CheckState.Checked
        return bool(model.setData(index, value, Qt.ItemDataRole.CheckStateRole))


class EmotionDelegate(QStyledItemDelegate):
    """An editor with the five emotions."""

    def createEditor(self, parent: QWidget, _option: Any, _index: Index) -> QWidget:
        """Make a drop-down list."""
        box = QComboBox(parent)
        for name in EMOTIONS:
            box.addItem(icons.icon(name), tr(name), name)
        box.activated.connect(lambda _at: self._take(box))
        return box

    def _take(self, box: QComboBox) -> None:
        self.commitData.emit(box)
        self.closeEditor.emit(box)

    def setEditorData(self, editor: QWidget, index: Index) -> None:
        """Select the current emotion."""
        assert isinstance(editor, QComboBox)
        editor.setCurrentIndex(editor.findData(index.data(Qt.ItemDataRole.EditRole)))

    def setModelData(self, editor: QWidget, model: Any, index: Index) -> None:
        """Store the chosen emotion."""
        assert isinstance(editor, QComboBox)
        if editor.currentIndex() >= 0:
            model.setData(index, editor.currentData())
