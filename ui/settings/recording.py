"""Settings: whether conversations are kept, what is stored, and deleting it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QUrl
from PySide6.QtGui import QDesktopServices, QShowEvent
from PySide6.QtWidgets import QWidget

from assistant.errors import AssistantError
from assistant.sessions.corrections import corrections
from assistant.sessions.reader import sessions
from assistant.settings import Settings
from ui.core.app import App
from ui.core.background import Background
from ui.core.translations import tr
from ui.widgets.common import Picker, Switch, button, column, label
from ui.widgets.forms import Choices, InlineMessage, Section, actions, format_bytes


@dataclass(frozen=True, slots=True)
class StorageUse:
    """The number and size of stored sessions, and the number of corrections."""

    sessions: int
    bytes: int
    corrections: int


class Retention(QWidget):
    """Whether and how long conversations are kept. Applies at once."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self.mode = Choices(
            [
                ("off", tr("Keep nothing"), tr("Conversations are gone when you close the window.")),
                ("days", tr("Keep for a limited time"), tr("Older sessions are deleted when the program starts.")),
                ("keep", tr("Keep always"), tr("Until you delete them.")),
            ],
            app.settings.recording.mode,
            tr("Keep conversations?"),
        )
        self.mode.chosen.connect(lambda mode: app.change("recording", mode=mode))
        self.days = Picker()
        self.days.setMaximumWidth(240)
        self.days.setAccessibleName(tr("How long"))
        self.days.picked.connect(lambda days: app.change("recording", days=days))
        self.setLayout(column(self.mode, self.days))
        self.setFocusProxy(self.mode)
        app.settings_changed.connect(self._follow)
        self._follow(app.settings)

    def _follow(self, settings: Settings) -> None:
        recording = settings.recording
        self.mode.choose(recording.mode)
        spans = sorted({7, 30, 90, 365, recording.days})
        self.days.show_options([(days, tr("{days} days").format(days=days)) for days in spans], recording.days)
        self.days.setVisible(recording.mode == "days")


class RecordingSettings(Section):
    """Retention, stored sessions and consent to keep corrections."""

    def __init__(self, app: App) -> None:
        super().__init__(tr("Recording"), tr("Everything stays in a folder on this computer."))
        self.app = app
        self._background = Background()
        self.destroyed.connect(self._background.close)
        self.keep = Retention(app)
        self.stored = label(tr("Counting…"))
        self.open = button(tr("Open folder"), self._open, icon="folder")
        self.delete = button(tr("Delete all"), self._delete, "danger", icon="delete")
        self.error = InlineMessage()
        self.consent = Switch(tr("Keep my corrections for fine-tuning"), self._consent)
        self.corrected = label("", "small")
        self.forget = button(tr("Delete corrections"), self._forget, "quiet")
        self.add_field(tr("Conversations"), self.keep)
        self.add_field(tr("Stored"), self.stored, actions(self.open, self.delete), self.error)
        self.add(
            self.consent,
            label(
                tr("When you correct an emotion, the recording and your correction are kept as an example."),
                "small",
            ),
            self.corrected,
            actions(self.forget),
        )  # fmt: skip
        app.trash.changed.connect(self.count)
        app.settings_changed.connect(self._follow)
        self._follow(app.settings)
        self._show(StorageUse(0, 0, 0))

    def showEvent(self, event: QShowEvent) -> None:
        """Count again."""
        super().showEvent(event)
        self.count()

    def count(self) -> None:
        """Count what is stored, off Qt's thread."""
        self._background.run(self._inspect, self._show, lambda why: self.error.report(why, error=True))

    def _inspect(self) -> StorageUse:
        folders = sessions(self.app.sessions)
        try:
            found = len(corrections(self.app.corrections))
            total = sum(path.stat().st_size for one in folders for path in one.rglob("*") if path.is_file())
        except OSError as error:
            raise AssistantError(tr("Could not read the folder ({why}).").format(why=error.strerror)) from error
        return StorageUse(len(folders), total, found)

    def _show(self, stored: StorageUse) -> None:
        self.stored.setText(
            tr("Nothing stored")
            if not stored.sessions
            else tr("Sessions: {count}, {size}").format(count=stored.sessions, size=format_bytes(stored.bytes))
        )
        self.delete.setVisible(stored.sessions > 0)
        self.corrected.setText(tr("Corrections kept: {count}").format(count=stored.corrections))
        self.forget.setVisible(stored.corrections > 0)

    def _follow(self, settings: Settings) -> None:
        self.consent.setChecked(settings.recording.corrections)

    def _consent(self, on: bool) -> None:
        self.app.change("recording", corrections=on)

    def _open(self) -> None:
        try:
            self.app.sessions.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            self.error.report(tr("Could not create the folder ({why}).").format(why=error.strerror), error=True)
            return
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.app.sessions)))

    # ---- deleting

    def _delete(self) -> None:
        running = self.app.talk.folder if self.app.talk is not None else None
        away = [one for one in sessions(self.app.sessions) if one != running]
        self._move_to_trash(away, tr("Sessions deleted: {count}.").format(count=len(away)))

    def _forget(self) -> None:
        file = self.app.corrections
        away = [one for one in (file, file.parent / "corrections") if one.exists()]
        self._move_to_trash(away, tr("Corrections deleted."))

    def _move_to_trash(self, away: list[Path], text: str) -> None:
        try:
            self.app.delete(away, text)
        except AssistantError as error:
            self.error.report(str(error), error=True)
