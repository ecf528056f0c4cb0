"""Fine-tuning, first page: the recordings as the check finds them, in a table where they are heard and mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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
    QAbstractItemView,
    QComboBox,
    QHeaderView,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableView,
    QWidget,
)

from assistant.errors import AssistantError
from assistant.events import EMOTIONS
from assistant.finetune import IGNORE, Recording, overview, read_sound
from ui import icons, theme
from ui.app import App
from ui.plots import Balance
from ui.settings_parts import Outcome, Picker, Work
from ui.translations import tr
from ui.widgets import button, column, label, row

Index = QModelIndex | QPersistentModelIndex
USE, PLAY, FILE, EMOTION, TEXT, LENGTH, PROBLEM = range(7)
_TITLES = ("Use", "", "Recording", "Emotion", "Transcript", "Length", "Problem")


class RecordingTable(QAbstractTableModel):
    """The recordings; `changed` tells that one was mended or left out."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Recording] = []
        self.mapping: dict[str, str] = {}

    def add(self, recording: Recording) -> None:
        """One more, at the end."""
        at = len(self.rows)
        self.beginInsertRows(QModelIndex(), at, at)
        self.rows.append(recording)
        self.endInsertRows()

    def clear(self) -> None:
        """Begin anew."""
        self.beginResetModel()
        self.rows, self.mapping = [], {}
        self.endResetModel()

    def map_emotion(self, name: str, meaning: str) -> None:
        """Let `name` mean one of the five, or nothing ("ignore")."""
        self.mapping[name] = meaning
        self.touch()

    def touch(self) -> None:
        """Everything may look otherwise now."""
        if self.rows:
            self.dataChanged.emit(self.index(0, 0), self.index(len(self.rows) - 1, PROBLEM))
        self.changed.emit()

    # ---- Qt's questions

    def rowCount(self, parent: Index | None = None) -> int:
        """Recordings."""
        return 0 if parent is not None and parent.isValid() else len(self.rows)

    def columnCount(self, parent: Index | None = None) -> int:
        """See `_TITLES`."""
        return 0 if parent is not None and parent.isValid() else len(_TITLES)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Titles of the columns."""
        if orientation is Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return tr(_TITLES[section]) if _TITLES[section] else ""
        if orientation is Qt.Orientation.Horizontal and role == Qt.ItemDataRole.TextAlignmentRole:
            return Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
        return None

    def flags(self, index: Index) -> Qt.ItemFlag:
        """What can be changed where."""
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        if index.column() == USE:
            flags |= Qt.ItemFlag.ItemIsUserCheckable
        if index.column() in (EMOTION, TEXT):
            flags |= Qt.ItemFlag.ItemIsEditable
        return flags

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """What is shown of a recording."""
        one, at = self.rows[index.row()], index.column()
        problems = one.problems(self.mapping)
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return self._words(one, at, editing=role == Qt.ItemDataRole.EditRole)
        if role == Qt.ItemDataRole.CheckStateRole and at == USE:
            return Qt.CheckState.Checked if one.usable(self.mapping) else Qt.CheckState.Unchecked
        if role == Qt.ItemDataRole.ToolTipRole:
            return "\n".join(problem.message for problem in problems) if at == PROBLEM else self._words(one, at)
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

    def _words(self, one: Recording, at: int, *, editing: bool = False) -> str:
        if at == FILE:
            return Path(one.audio).name
        if at == EMOTION:
            return one.meaning(self.mapping) or one.emotion or ("" if editing else "—")
        if at == TEXT:
            return one.text or ("" if editing else "—")
        if at == LENGTH:
            return "" if one.seconds is None else f"{one.seconds:.1f} s"
        if at == PROBLEM:
            return "; ".join(problem.kind for problem in one.problems(self.mapping))
        return ""

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        """Mend a recording, or leave it out."""
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


class _OfKind(QSortFilterProxyModel):
    """The recordings with one kind of problem, or all."""

    kind = ""

    def show_kind(self, kind: str) -> None:
        """ "" for all."""
        self.kind = kind
        self.invalidate()

    def filterAcceptsRow(self, at: int, _parent: Index) -> bool:
        """Whether it has the problem."""
        table = self.sourceModel()
        assert isinstance(table, RecordingTable)
        return not self.kind or any(one.kind == self.kind for one in table.rows[at].problems(table.mapping))


class _UseBox(QStyledItemDelegate):
    """A box with a tick that is seen in every theme; a click or the space bar changes it."""

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        """The row's ground, the box, the tick."""
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
        """Change it."""
        space = isinstance(event, QKeyEvent) and event.key() == Qt.Key.Key_Space
        if event.type() is not QEvent.Type.MouseButtonRelease and not space:
            return False
        on = index.data(Qt.ItemDataRole.CheckStateRole) == Qt.CheckState.Checked
        value = Qt.CheckState.Unchecked if on else Qt.CheckState.Checked
        return bool(model.setData(index, value, Qt.ItemDataRole.CheckStateRole))


class _EmotionEditor(QStyledItemDelegate):
    """The five emotions to choose from."""

    def createEditor(self, parent: QWidget, _option: Any, _index: Index) -> QWidget:
        """A list that is open at once."""
        box = QComboBox(parent)
        for name in EMOTIONS:
            box.addItem(icons.icon(name), name)
        box.activated.connect(lambda _at: self._take(box))
        return box

    def _take(self, box: QComboBox) -> None:
        self.commitData.emit(box)
        self.closeEditor.emit(box)

    def setEditorData(self, editor: QWidget, index: Index) -> None:
        """Show what it is now."""
        assert isinstance(editor, QComboBox)
        editor.setCurrentText(str(index.data(Qt.ItemDataRole.EditRole)))

    def setModelData(self, editor: QWidget, model: Any, index: Index) -> None:
        """Take what was chosen."""
        assert isinstance(editor, QComboBox)
        model.setData(index, editor.currentText())


class DataPage(QWidget):
    """The check of the recordings.

    Signals:
        went_on: the recordings are as the user wants them.
    """

    went_on = Signal()

    def __init__(self, app: App, back: Callable[[], object]) -> None:
        super().__init__()
        self._app = app
        self.name = ""
        self.table = RecordingTable()
        self.table.changed.connect(self._weigh)
        self.shown = _OfKind()
        self.shown.setSourceModel(self.table)
        self.title = label("", "title")
        self.facts = label("", "muted")
        self.balance = Balance()
        self.work = Work()
        self.outcome = Outcome()
        self.kinds = Picker()
        self.kinds.setMaximumWidth(260)
        self.kinds.setAccessibleName(tr("Which recordings are shown"))
        self.kinds.picked.connect(self.show_kind)
        self._mappings = column(spacing=6)
        self.view = self._table_view()
        self.remark = label("", "small")
        self.next = button(tr("Go on"), self.went_on.emit, "primary")
        self.next.setEnabled(False)
        self._writing: list[int] = []
        below = row(button(tr("Back"), back))
        below.addWidget(self.remark, 1)
        below.addWidget(self.next)
        layout = column(self.title, self.facts, self.balance, self.work, self.outcome, spacing=10)
        layout.addLayout(self._mappings)
        layout.addLayout(row(label(tr("Show"), "muted", wrap=False), self.kinds, None))
        layout.addWidget(self.view, 1)
        layout.addLayout(below)
        layout.setContentsMargins(24, 20, 24, 20)
        self.setLayout(layout)
        self.work.ended.connect(self._ended)

    # ---- the check

    def check(self, source: Path) -> None:
        """Look at a manifest, a folder, or the corrections."""
        self.table.clear()
        self.shown.show_kind("")
        self.name = source.stem if source.is_file() else source.name
        self.title.setText(tr("Recordings in {name}").format(name=source.name))
        self.outcome.say("")
        self._weigh()
        job = self._app.run_module("training", "check", str(source), "--json")
        job.printed.connect(self._found)
        self.work.follow(job, tr("Listening to every recording…"))

    @property
    def rows(self) -> list[Recording]:
        """The recordings as they are now."""
        return self.table.rows

    def _found(self, line: dict[str, Any]) -> None:
        if "recording" in line:
            self.table.add(Recording.of(line["recording"]))
        elif "audio" in line and self._writing:
            self._written(line)

    def _ended(self, code: int, said: str, _last: object) -> None:
        self._writing = []
        if code:
            self.outcome.say(said or tr("The check ended unexpectedly."), trouble=True)
        self._propose()
        self._weigh()

    # ---- what it comes to

    def _weigh(self) -> None:
        found = overview(self.table.rows, self.table.mapping)
        words = tr("{usable} of {all} can be used · {minutes} · {speakers}").format(
            usable=found.usable,
            all=found.recordings,
            minutes=tr("{n} minutes").format(n=f"{found.minutes:.1f}"),
            speakers=tr("one speaker") if found.speakers <= 1 else tr("{n} speakers").format(n=found.speakers),
        )
        self.facts.setText(words if found.recordings else tr("Nothing found yet."))
        self.balance.show_counts(dict(found.emotions))
        ready = bool(found.recordings) and not found.refusal and not self.work.running
        self.next.setEnabled(ready)
        self.remark.setText("" if self.work.running else found.refusal or " ".join(found.remarks))
        self._show_kinds(Counter(dict(found.problems)))
        self.shown.invalidate()

    def _show_kinds(self, kinds: Counter[str]) -> None:
        if self.shown.kind not in ("", *kinds):
            self.shown.show_kind("")
        everything = ("", tr("all {n} recordings").format(n=len(self.rows)))
        self.kinds.show_options([everything, *((kind, f"{kind}: {n}") for kind, n in kinds.items())], self.shown.kind)

    def show_kind(self, kind: str) -> None:
        """Only recordings with that problem; "" for all."""
        self.shown.show_kind(kind)
        self._weigh()

    def _propose(self) -> None:
        """Offer meanings for unknown emotions, and transcripts where there are none."""
        _empty(self._mappings)
        unknown: dict[str, list[Recording]] = {}
        for one in self.rows:
            if one.emotion and one.emotion.lower() not in EMOTIONS:
                unknown.setdefault(one.emotion, []).append(one)
        for name, group in sorted(unknown.items(), key=lambda pair: -len(pair[1]))[:6]:
            suggestion = next((one.suggestion for one in group if one.suggestion), "")
            self._mappings.addWidget(self._mapping(name, len(group), suggestion))
        silent = [at for at, one in enumerate(self.rows) if not one.text.strip() and one.seconds is not None]
        if silent:
            some = tr("One recording has") if len(silent) == 1 else tr("{n} recordings have").format(n=len(silent))
            words = tr("{some} no transcript. Only tuning of replies needs it.").format(some=some)
            self.outcome.say(words, action=tr("Have it written down"), act=self.write_transcripts)

    def _mapping(self, name: str, count: int, suggestion: str) -> QWidget:
        picker = Picker()
        options = [("", tr("choose…")), *((one, one) for one in EMOTIONS), (IGNORE, tr("leave out"))]
        picker.show_options(options, self.table.mapping.get(name, ""))
        picker.setAccessibleName(tr("What {name} means").format(name=name))
        picker.setMaximumWidth(180)
        picker.picked.connect(lambda value: self.table.map_emotion(name, value) if value else None)
        made = QWidget()
        words = label(
            tr("“{name}” ({n}) is none of the five emotions. It means").format(name=name, n=count), wrap=False
        )
        parts: list[QWidget | int | None] = [words, picker]
        if suggestion and name not in self.table.mapping:

            def take() -> None:
                picker.setCurrentIndex(picker.findData(suggestion))
                self.table.map_emotion(name, suggestion)

            parts.append(button(tr("Take “{name}”").format(name=suggestion), take, "quiet"))
        made.setLayout(row(*parts, None))
        return made

    # ---- transcripts and sound

    def write_transcripts(self) -> None:
        """Let the recogniser write down what has no transcript yet."""
        self._writing = [at for at, one in enumerate(self.rows) if not one.text.strip() and one.seconds is not None]
        files = [self.rows[at].audio for at in self._writing]
        if files and not self.work.running:
            job = self._app.run_module("training", "transcribe", "--json", *files)
            job.printed.connect(self._found)
            self.outcome.say("")
            self.work.follow(job, tr("Writing down {n} recordings…").format(n=len(files)))
            self._weigh()

    def _written(self, line: dict[str, Any]) -> None:
        for one in self.rows:
            if one.audio == line["audio"] and not one.text:
                one.text = str(line["text"])
        self.table.touch()

    def play(self, at: int) -> None:
        """Let a recording be heard."""
        try:
            samples, rate = read_sound(Path(self.rows[at].audio))
        except AssistantError as error:
            self.outcome.say(str(error), trouble=True)
            return
        if self._app.talk is not None:
            self._app.talk.clips.play(samples, rate)

    def _table_view(self) -> QTableView:
        view = QTableView()
        view.setModel(self.shown)
        view.setItemDelegateForColumn(USE, _UseBox(view))
        view.setItemDelegateForColumn(EMOTION, _EmotionEditor(view))
        view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        view.setEditTriggers(
            QAbstractItemView.EditTrigger.SelectedClicked
            | QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        view.setShowGrid(False)
        view.setWordWrap(False)
        view.setAlternatingRowColors(True)
        view.verticalHeader().hide()
        view.verticalHeader().setDefaultSectionSize(36)
        view.setMinimumHeight(150)
        view.setAccessibleName(tr("Recordings"))
        header = view.horizontalHeader()
        header.setHighlightSections(False)
        for at, width in ((USE, 48), (PLAY, 40), (FILE, 190), (EMOTION, 120), (LENGTH, 72), (PROBLEM, 190)):
            view.setColumnWidth(at, width)
        header.setSectionResizeMode(TEXT, QHeaderView.ResizeMode.Stretch)
        view.clicked.connect(self._clicked)
        view.activated.connect(self._clicked)
        return view

    def _clicked(self, index: QModelIndex) -> None:
        if index.column() == PLAY:
            self.play(self.shown.mapToSource(index).row())


def _empty(layout: Any) -> None:
    while (item := layout.takeAt(0)) is not None:
        if (widget := item.widget()) is not None:
            widget.hide()
            widget.deleteLater()
