"""Settings: the model list with presets, the user's folders and downloads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QLineEdit, QVBoxLayout, QWidget

from assistant.backend.protocol import Ready
from assistant.events import ModelStatus
from assistant.settings import Settings
from ui.core.app import App
from ui.core.translations import tr
from ui.settings.checkpoint_source import is_hub_reference
from ui.settings.model_card import ModelCard, choose_folder
from ui.widgets.common import button, row
from ui.widgets.forms import InlineMessage, JobProgress, Section, actions
from ui.widgets.model_text import checkpoint_name, presets


class ModelSettings(Section):
    """The checkpoints as cards, a field to add a folder, and a download from the hub."""

    def __init__(self, app: App) -> None:
        super().__init__(tr("Model"), tr("Choose the model that replies. All models run on this computer."))
        self.app = app
        self.setAcceptDrops(True)
        self.cards: dict[str, ModelCard] = {}
        self._box = QWidget()
        self._cards = QVBoxLayout()
        self._cards.setContentsMargins(0, 0, 0, 0)
        self._cards.setSpacing(12)
        self._box.setLayout(self._cards)
        self.error = InlineMessage()
        self.path = QLineEdit()
        self.path.setPlaceholderText(tr("Folder with config.json (converted or original)"))
        self.path.setAccessibleName(tr("Add a folder"))
        self.path.returnPressed.connect(self._add_typed)
        add = QWidget()
        add.setLayout(
            row(self.path, button(tr("Choose…"), self._choose, icon="folder"), button(tr("Add"), self._add_typed))
        )
        self.added = InlineMessage()
        self.repository, self.revision = QLineEdit(), QLineEdit()
        self.repository.setPlaceholderText(tr("owner/name"))
        self.repository.setAccessibleName(tr("Repository on the hub"))
        self.revision.setPlaceholderText(tr("commit (40 hex digits)"))
        self.revision.setAccessibleName(tr("Commit"))
        self.download = button(tr("Download"), self._download, icon="download")
        for field in (self.repository, self.revision):
            field.textChanged.connect(self._allow_download)
        self.progress = JobProgress()
        self.progress.ended.connect(self._downloaded)
        self.add(self._box, self.error)
        self.add_field(tr("Add a folder"), add, self.added)
        self.add_field(
            tr("Download from the model hub"),
            self.repository,
            self.revision,
            actions(self.download),
            self.progress,
            note=tr("Uses the network only when you press Download. Downloads weights and settings of one fixed "
                    "commit, never code."),
        )  # fmt: skip
        app.settings_changed.connect(self._follow)
        app.event_received.connect(self._on_event)
        self._allow_download()
        self._lay_out()
        self.inspect(list(self.cards))

    def inspect(self, sources: Sequence[str]) -> None:
        """Query checkpoints in a child process."""
        self.error.report("")
        job = self.app.run_module("model.manager", "list", *sources)
        job.printed.connect(self._show)
        job.ended.connect(lambda code, message: self._listed(code, message, sources))

    # ---- the list

    def _lay_out(self) -> None:
        shipped = presets()
        wanted = dict.fromkeys((*shipped, *self.app.settings.model.folders, self.app.settings.model.source))
        for source in list(self.cards):
            if source not in wanted:
                self.cards.pop(source).deleteLater()
        for source in wanted:
            if source not in self.cards:
                card = ModelCard(self.app, source, preset=source in shipped)
                card.made.connect(self.add_folder)
                card.removed.connect(self._remove)
                card.changed.connect(lambda one: self.inspect([one]))
                self.cards[source] = card
            self._cards.addWidget(self.cards[source])

    def _show(self, about: dict[str, Any]) -> None:
        card = self.cards.get(str(about.get("source")))
        if card is not None:
            card.show_about(about)

    def _listed(self, code: int, message: str, sources: Sequence[str]) -> None:
        if code != 0:
            self.error.report(
                tr("Could not list models: {why}").format(why=message or tr("the program ended")),
                error=True,
                action=tr("Try again"),
                act=lambda: self.inspect(sources),
            )

    def _follow(self, _settings: Settings) -> None:
        before = set(self.cards)
        self._lay_out()
        for card in self.cards.values():
            card.follow()
        if new := [source for source in self.cards if source not in before]:
            self.inspect(new)

    def _on_event(self, event: object) -> None:
        card = self.cards.get(self.app.settings.model.source)
        if card is None:
            return
        if isinstance(event, ModelStatus):
            card.show_status(event.status, event.text)
        elif isinstance(event, Ready) and (card.about is None or card.about["state"] == "absent"):
            self.inspect([card.source])  # it was downloaded while loading

    # ---- adding and removing

    def add_folder(self, folder: str) -> None:
        """Add a folder to the list."""
        path = Path(folder.strip()).expanduser().absolute()
        if not path.is_dir():
            self.added.report(tr("Folder not found: {path}").format(path=path), error=True)
            return
        self.path.clear()
        if str(path) in self.cards:
            self.added.report(tr("{name} is already in the list.").format(name=path.name))
            return
        self.added.report("")
        self.app.change("model", folders=(*self.app.settings.model.folders, str(path)))

    def _add_typed(self) -> None:
        if self.path.text().strip():
            self.add_folder(self.path.text())

    def _choose(self) -> None:
        choose_folder(self, tr("Add a model"), self.add_folder)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Accept dropped folders."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Add the dropped folders."""
        for url in event.mimeData().urls():
            if url.isLocalFile():
                self.add_folder(url.toLocalFile())

    def _remove(self, source: str) -> None:
        folders = self.app.settings.model.folders
        app = self.app
        app.change("model", folders=tuple(one for one in folders if one != source))
        app.notify(
            tr("Removed {name} from the list. Its files are kept.").format(name=checkpoint_name(source)),
            tr("Undo"),
            lambda: app.change("model", folders=folders),
        )

    # ---- the hub

    def _allow_download(self) -> None:
        repository, revision = self.repository.text().strip(), self.revision.text().strip()
        self.download.setEnabled(is_hub_reference(repository, revision) and not self.progress.running)

    def _download(self) -> None:
        repository, revision = self.repository.text().strip(), self.revision.text().strip()
        job = self.app.run_module("model.manager", "hub", repository, revision)
        self.added.report("")
        self.progress.follow(job, tr("Downloading {name}…").format(name=repository))
        self._allow_download()

    def _downloaded(self, code: int, message: str, last: dict[str, Any]) -> None:
        self._allow_download()
        if code == 0:
            self.repository.clear()
            self.revision.clear()
            self.add_folder(str(last["folder"]))
        else:
            self.added.report(message, error=code != 130, action=tr("Try again"), act=self._download)
