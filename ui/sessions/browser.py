"""The Sessions page: list, player and model comparison; export, import, delete."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PySide6.QtCore import QCoreApplication, QStandardPaths, Qt
from PySide6.QtGui import QHideEvent, QKeyEvent, QKeySequence, QResizeEvent, QShortcut, QShowEvent
from PySide6.QtWidgets import QApplication, QFileDialog, QFrame, QStackedWidget, QVBoxLayout, QWidget

from assistant.errors import AssistantError
from assistant.sessions.export import export, import_archive
from assistant.sessions.reader import read_session
from ui.core import theme
from ui.core.app import App
from ui.core.background import Background
from ui.core.translations import tr
from ui.sessions.formatting import format_start
from ui.sessions.model_comparison import ModelComparison
from ui.sessions.player import SessionPlayer
from ui.sessions.session_list import SessionList
from ui.sessions.summary import Summary
from ui.widgets.common import EmptyState, button, column, label, row

_NARROW = 760  # pixels; narrower windows show list or player
_LIST_WIDTH = (280, 380)
_UNLIMITED = 16_777_215  # Qt's own largest width
_FILES = {
    "wav": "WAV (*.wav)",
    "markdown": "Markdown (*.md)",
    "srt": "SRT (*.srt)",
    "json": "JSON (*.json)",
    "archive": "Undertone (*.undertone)",
}


class SessionsPage(QWidget):
    """All recorded sessions."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self.app = app
        self.list = SessionList(app)
        self.player = SessionPlayer(app)
        self.comparison = ModelComparison(app)
        self._files = Background()
        self.destroyed.connect(self._files.close)
        self._line = QFrame()
        self._line.setProperty("role", "line")
        self._line.setFixedWidth(1)
        self.right = QStackedWidget()
        self.right.addWidget(self.player)
        self.right.addWidget(self.comparison)
        self._body = QWidget()
        layout = row(self.list, self._line, self.right, spacing=0)
        layout.setStretch(2, 1)
        self._body.setLayout(layout)
        kept = self.tr("Turn on recording to keep conversations on this computer for {} days.")
        nothing = self.tr("No sessions yet")
        self.nothing = EmptyState("sessions", nothing, self.tr("Turn on recording"), self.list.turn_on)
        self.recording = EmptyState("record", self.tr("Recording is on"))
        self._explain(self.nothing, kept.format(app.settings.recording.days))
        self._explain(self.recording, self.tr("Your next conversation appears here."))
        self.stack = QStackedWidget()
        for page in (self._body, self.nothing, self.recording):
            self.stack.addWidget(page)
        self.nothing.setFocusProxy(self.nothing.button)
        self.setLayout(column(self.stack, spacing=0))
        self._narrow = False
        self._focus_due = False  # set the focus once the list is loaded
        self._showing_session = False  # in a narrow window: the session is shown, not the list
        self._connect()

    def _connect(self) -> None:
        self.list.chosen.connect(self._show)
        self.list.opened.connect(partial(self._inspect, at_session=True))
        self.list.empty_changed.connect(self._show_empty)
        self.list.import_requested.connect(self._ask_archive)
        self.player.back_requested.connect(partial(self._inspect, at_session=False))
        self.player.delete_requested.connect(self.delete)
        self.player.comparison_requested.connect(self._ask_again)
        self.player.export_requested.connect(self._ask_target)
        self.player.corrected.connect(self.list.refresh)
        self.comparison.back_requested.connect(self._back)
        find = QShortcut(QKeySequence(QKeySequence.StandardKey.Find), self)
        find.activated.connect(self._find)
        application = QCoreApplication.instance()
        assert application is not None, "a widget exists"
        application.aboutToQuit.connect(self.finish)

    def _explain(self, empty: EmptyState, more: str) -> None:
        """Add a second line and the import button to an empty state."""
        within = empty.layout()
        assert isinstance(within, QVBoxLayout), "a column"
        text = label(more, "small")
        text.setAlignment(Qt.AlignmentFlag.AlignCenter)
        within.insertWidget(3, text)
        import_from = button(self.tr("Import an archive"), self._ask_archive, "quiet")
        within.insertWidget(within.count() - 1, import_from, 0, Qt.AlignmentFlag.AlignHCenter)

    # ---- deleting

    def delete(self) -> None:
        """Delete the current session, with an undo."""
        summary = self.player.summary
        if summary is None:
            return
        if summary.running:
            self.app.notify(self.tr("This session is still recording. Start a new conversation first."), error=True)
            return
        folder, text = summary.folder, self.tr("Deleted: {}.").format(format_start(summary))
        self.player.playback.pause()
        try:
            self.app.delete([folder], text, partial(self.list.refresh, folder))
        except AssistantError as error:
            self.app.notify(str(error), error=True)
            return
        self.list.leave(folder)
        self._inspect(at_session=False)

    def finish(self) -> None:
        """Stop playing when the program ends."""
        self.player.playback.pause()
        self.comparison.cancel()
        self._files.close()

    @property
    def busy(self) -> bool:
        """Whether a comparison runs."""
        return self.comparison.running

    # ---- export and import

    def save(self, form: str, target: Path) -> None:
        """Export the current session to a file."""
        summary = self.player.summary
        if summary is None:
            return
        self._files.run(
            partial(_export, summary.folder, form, target),
            lambda path: self.app.notify(self.tr("Saved as {}.").format(path)),
            lambda why: self.app.notify(why, error=True),
        )

    def import_from(self, archive: Path) -> None:
        """Import an archive and show it."""
        self.app.notify(self.tr("Importing {}…").format(archive.name))
        root = self.app.sessions
        self._files.run(partial(_import, archive, root), self._imported, lambda why: self.app.notify(why, error=True))

    def _imported(self, folder: Path) -> None:
        self.list.field.clear()
        self.list.refresh(folder)
        self._inspect(at_session=True)

    def _ask_target(self, form: str) -> None:
        summary = self.player.summary
        if summary is None:
            return
        dialog = QFileDialog(self, self.tr("Export"), _documents(), _FILES[form])
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        suffix = _FILES[form].partition("*.")[2].rstrip(")")
        dialog.setDefaultSuffix(suffix)
        dialog.selectFile(f"{summary.folder.name}.{suffix}")
        dialog.fileSelected.connect(lambda name: self.save(form, Path(name)))
        dialog.open()

    def _ask_archive(self) -> None:
        dialog = QFileDialog(self, self.tr("Import an archive"), _documents(), _FILES["archive"])
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        dialog.fileSelected.connect(lambda name: self.import_from(Path(name)))
        dialog.open()

    # ---- display

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Escape goes back; other unhandled keys go to the player."""
        if event.key() == Qt.Key.Key_Escape and self.right.currentWidget() is self.comparison:
            self._back()
        elif event.key() == Qt.Key.Key_Escape and self._showing_session:
            self._inspect(at_session=False)
        elif self.right.currentWidget() is not self.player or not self.player.take_key(event):
            super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Show list and player side by side, or one at a time."""
        super().resizeEvent(event)
        factor = theme.pixels("body") / theme.SIZES["body"]
        least, most = (round(width * factor) for width in _LIST_WIDTH)
        self._narrow = self.width() < _NARROW * factor
        width = max(least, min(most, self.width() // 3))
        self.list.setMinimumWidth(0 if self._narrow else width)
        self.list.setMaximumWidth(_UNLIMITED if self._narrow else width)
        self._lay_out()

    def showEvent(self, event: QShowEvent) -> None:
        """Refresh the list and focus it."""
        super().showEvent(event)
        self.list.refresh()
        focus = QApplication.focusWidget()
        self._focus_due = focus is None or not self.isAncestorOf(focus)

    def hideEvent(self, event: QHideEvent) -> None:
        """Stop playing."""
        super().hideEvent(event)
        self.player.playback.pause()

    def _show(self, summary: Summary | None) -> None:
        before = self.player.summary
        self.player.show_session(summary)
        if summary is None or (before is not None and before.folder != summary.folder):
            self.right.setCurrentWidget(self.player)
        if summary is None:
            self._inspect(at_session=False)

    def _show_empty(self, empty: bool) -> None:
        off = self.app.settings.recording.mode == "off"
        self.stack.setCurrentWidget(self._body if not empty else self.nothing if off else self.recording)
        if self._focus_due and (empty or self.list.shown):
            self._focus_due = False
            (self.nothing if empty and off else self.recording if empty else self.list.view).setFocus()

    def _inspect(self, *, at_session: bool) -> None:
        self._showing_session = at_session and self.player.summary is not None
        self._lay_out()
        if self._narrow:
            (self.player.timeline if self._showing_session else self.list.view).setFocus()

    def _lay_out(self) -> None:
        self.list.setVisible(not (self._narrow and self._showing_session))
        self.right.setVisible(not self._narrow or self._showing_session)
        self._line.setVisible(not self._narrow)
        self.player.back.setVisible(self._narrow)

    def _ask_again(self) -> None:
        if self.player.summary is not None:
            self.player.playback.pause()
            self.comparison.show_session(self.player.summary)
            self.right.setCurrentWidget(self.comparison)
            self.comparison.model.setFocus()

    def _back(self) -> None:
        self.right.setCurrentWidget(self.player)
        self.player.compare.setFocus()

    def _find(self) -> None:
        self._inspect(at_session=False)
        self.list.field.setFocus()
        self.list.field.selectAll()


def _export(folder: Path, form: str, target: Path) -> Path:
    try:
        return export(read_session(folder), form, target)
    except RuntimeError as error:  # soundfile's errors are RuntimeErrors
        text = tr("Could not write {path} ({why}). Choose another folder.").format(path=target, why=error)
        raise AssistantError(text) from error


def _import(archive: Path, root: Path) -> Path:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        text = tr("Could not create {path} ({why}). Free some disk space.").format(path=root, why=error.strerror)
        raise AssistantError(text) from error
    return import_archive(archive, root)


def _documents() -> str:
    return QStandardPaths.writableLocation(QStandardPaths.StandardLocation.DocumentsLocation)
