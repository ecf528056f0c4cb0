"""The list of sessions: newest first, searchable, updated while a conversation is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path

from PySide6.QtCore import QEvent, QFileSystemWatcher, Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QFrame, QLineEdit, QListView, QStackedWidget, QWidget

from assistant.events import TurnEnded
from assistant.sessions.reader import sessions
from assistant.sessions.recorder import EVENTS, LOCK
from ui.core.app import App
from ui.core.background import Background
from ui.sessions.rows import SessionDelegate, SessionListModel
from ui.sessions.search import search
from ui.sessions.summary import Summary, summarise
from ui.widgets.common import EmptyState, IconButton, button, column, label, line, row

Fingerprint = tuple[int, int, bool]
"""Modification time and size of a session's lines, and whether it is locked. Changes with the session."""
_BATCH = 25


def scan_sessions(root: Path) -> dict[Path, Fingerprint]:
    """Return all sessions, newest first, each with its fingerprint."""
    found = {}
    for folder in sessions(root):
        try:
            known = (folder / EVENTS).stat()
            found[folder] = (known.st_mtime_ns, known.st_size, (folder / LOCK).exists())
        except OSError:
            continue  # deleted meanwhile
    return found


def _summaries(folders: Sequence[Path]) -> list[Summary]:
    made = []
    for folder in folders:
        try:
            made.append(summarise(folder))
        except OSError:
            continue  # deleted meanwhile
    return made


class _View(QListView):
    """A list that leaves Space, Left, Right and Delete to the player."""

    opened = Signal()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Space, Qt.Key.Key_Left, Qt.Key.Key_Right, Qt.Key.Key_Delete):
            event.ignore()
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.currentIndex().isValid():
            self.opened.emit()
        else:
            super().keyPressEvent(event)


class SessionList(QWidget):
    """The search field, the list and its empty states.

    Signals:
        chosen: the `Summary` of the selected session, or None.
        opened: the user opened it; in a narrow window the player replaces the list.
        import_requested: the user wants to import an archive.
        empty_changed: whether there is no session at all.
    """

    chosen = Signal(object)
    opened = Signal()
    import_requested = Signal()
    empty_changed = Signal(bool)

    def __init__(self, app: App) -> None:
        super().__init__()
        self.app = app
        self.view = _View()
        self.background = Background()
        self.destroyed.connect(self.background.close)
        self._known: dict[Path, Fingerprint] = {}
        self._all: dict[Path, Summary] = {}
        self._reading = 0
        self._scanned = False
        self._wanted: Path | None = None
        self._current: Summary | None = None
        self._make()
        self._soon = QTimer(self, singleShot=True, interval=250)
        self._soon.timeout.connect(self.refresh)
        self._watcher = QFileSystemWatcher(self)
        self._watcher.directoryChanged.connect(lambda _path: self._soon.start())
        app.event_received.connect(self._on_event)
        app.settings_changed.connect(self._report)
        self.refresh()

    def _make(self) -> None:
        self.field = QLineEdit()
        self.field.setPlaceholderText(self.tr("Words, emotion, date"))
        self.field.setAccessibleName(self.tr("Search sessions"))
        self.field.setClearButtonEnabled(True)
        self.field.setMaxLength(500)
        self.field.textChanged.connect(lambda _text: self._filter(searched=True))
        self.field.returnPressed.connect(lambda: self.view.setFocus(Qt.FocusReason.TabFocusReason))
        self._rows = SessionListModel()
        self.view.setAccessibleName(self.tr("Sessions"))
        self.view.setModel(self._rows)
        self.view.setItemDelegate(SessionDelegate(self.view))
        self.view.setUniformItemSizes(True)
        self.view.setMouseTracking(True)
        self.view.setFrameShape(QFrame.Shape.NoFrame)
        self.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.view.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.view.selectionModel().currentChanged.connect(self._choose)
        self.view.clicked.connect(lambda _index: self.opened.emit())
        self.view.opened.connect(self.opened)
        self.none_found = EmptyState("search", self.tr("No sessions found"), self.tr("Show all"), self.field.clear)
        self._opening = QWidget()
        self.stack = QStackedWidget()
        for page in (self._opening, self.view, self.none_found):
            self.stack.addWidget(page)
        self.count = label("", "small", wrap=False)
        self.count.setAccessibleName(self.tr("Number of sessions"))
        self.retention = label("", "small")
        self._turn_on_button = button(self.tr("Turn on"), self.turn_on, "quiet")
        bring = IconButton("import", self.tr("Import an archive"), self.import_requested.emit)
        head = row(self.field, bring)
        head.setContentsMargins(16, 16, 12, 8)
        numbers = row(self.count, None)
        numbers.setContentsMargins(20, 0, 16, 4)
        foot = row()
        foot.setContentsMargins(20, 8, 12, 8)
        foot.addWidget(self.retention, 1)
        foot.addWidget(self._turn_on_button)
        layout = column(spacing=0)
        layout.addLayout(head)
        layout.addLayout(numbers)
        layout.addWidget(self.stack, 1)
        layout.addWidget(line())
        layout.addLayout(foot)
        self.setLayout(layout)

    @property
    def current(self) -> Summary | None:
        """The selected session."""
        return self._current

    @property
    def shown(self) -> list[Summary]:
        """The sessions that match the search, newest first."""
        return self._rows.shown

    @property
    def complete(self) -> bool:
        """Whether every session has been read."""
        return self._scanned and not self._reading

    def refresh(self, wanted: Path | None = None) -> None:
        """Rescan the folder; `wanted` is selected once it is found."""
        self._wanted = wanted or self._wanted
        self.background.run(partial(scan_sessions, self.app.sessions), self._compare)

    def leave(self, folder: Path) -> None:
        """Remove a deleted session and select its neighbour."""
        index = next((n for n, session in enumerate(self.shown) if session.folder == folder), 0)
        near = self.shown[index + 1 : index + 2] or self.shown[max(0, index - 1) : index]
        self._wanted = near[0].folder if near else None
        self._known.pop(folder, None)
        self._all.pop(folder, None)
        self._filter()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the text size."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self.view.scheduleDelayedItemsLayout()

    # ---- internal

    def _on_event(self, event: object) -> None:
        if isinstance(event, TurnEnded):
            self._soon.start()

    def turn_on(self) -> None:
        """Turn on recording for a limited time."""
        self.app.change("recording", mode="days")

    def _compare(self, found: dict[Path, Fingerprint]) -> None:
        changed = [folder for folder, fingerprint in found.items() if self._known.get(folder) != fingerprint]
        for folder in self._all.keys() - found.keys():
            del self._all[folder]
        self._known = found
        self._reading += len(changed)
        self._scanned = True
        for first in range(0, len(changed), _BATCH):
            part = changed[first : first + _BATCH]
            self.background.run(partial(_summaries, part), partial(self._take, len(part)))
        self._watch()
        self._filter()

    def _take(self, asked: int, summaries: list[Summary]) -> None:
        self._reading -= asked
        for summary in summaries:
            if summary.folder in self._known:
                self._all[summary.folder] = summary
        self._filter()

    def _watch(self) -> None:
        """Watch the sessions folder, or its parent while it does not exist, and the sessions being recorded."""
        root = self.app.sessions
        locked = [folder for folder, (_, _, lock) in self._known.items() if lock]
        wanted = {str(path) for path in (root if root.is_dir() else root.parent, *locked) if path.is_dir()}
        watched = set(self._watcher.directories())
        if watched - wanted:
            self._watcher.removePaths(sorted(watched - wanted))
        if wanted - watched:
            self._watcher.addPaths(sorted(wanted - watched))

    def _filter(self, *, searched: bool = False) -> None:
        """Show the matching sessions. A session that changes stays until the next search."""
        stays = self._current.folder if self._current and not searched else None
        test = search(self.field.text(), date.today())
        ordered = sorted(self._all.values(), key=lambda session: session.folder.name, reverse=True)
        shown = [session for session in ordered if test(session) or session.folder == stays]
        wanted = self._wanted or (self._current.folder if self._current else None)
        if shown != self._rows.shown:
            scroll = self.view.verticalScrollBar().value()
            self.view.selectionModel().blockSignals(True)
            self._rows.show(shown)
            self.view.selectionModel().blockSignals(False)
            self.view.verticalScrollBar().setValue(scroll)
        at = next((n for n, session in enumerate(shown) if session.folder == wanted), None)
        if at is not None:
            self.view.setCurrentIndex(self._rows.index(at))
            self._wanted = None
        elif shown and not self._reading:
            self.view.setCurrentIndex(self._rows.index(0))
        self._choose()
        self._report()

    def _choose(self, *_indexes: object) -> None:
        index = self.view.currentIndex()
        chosen = self.shown[index.row()] if index.isValid() else None
        if chosen != self._current:
            self._current = chosen
            self.chosen.emit(chosen)

    def _report(self, *_: object) -> None:
        everything = len(self._all)
        recording = self.app.settings.recording
        if self._reading:
            whole = len(self._known)
            self.count.setText(self.tr("Reading {} of {}…").format(whole - self._reading, whole))
        elif self.field.text().strip():
            self.count.setText(self.tr("{} of {} sessions").format(len(self.shown), everything))
        else:
            self.count.setText(self.tr("{} sessions").format(everything) if everything != 1 else self.tr("1 session"))
        kept = {
            "off": self.tr("Recording is off."),
            "days": self.tr("Sessions are kept for {} days.").format(recording.days),
            "keep": self.tr("Sessions are kept until you delete them."),
        }
        self.retention.setText(kept[recording.mode])
        self._turn_on_button.setVisible(recording.mode == "off" and bool(everything))
        if self.shown:
            page: QWidget = self.view
        elif not self.complete:
            page = self._opening
        else:
            page = self.none_found
        self.stack.setCurrentWidget(page)
        self.empty_changed.emit(self.complete and not everything)
