"""A field for another checkpoint: choose a folder or download one, check it, convert it if needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QLineEdit, QWidget

from ui.core.app import App
from ui.core.translations import tr
from ui.settings.model_card import choose_folder
from ui.widgets.common import button, column, label, row
from ui.widgets.forms import InlineMessage, JobProgress
from ui.widgets.model_text import facts, plan_text

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_reference(repository: str, revision: str) -> bool:
    """Return whether these are a repository (owner/name) and a full commit hash."""
    return bool(_REPOSITORY.fullmatch(repository) and _COMMIT.fullmatch(revision))


class CheckpointSource(QWidget):
    """Fields for a folder and for the model hub, and the facts about the checkpoint.

    Signals:
        changed: `folder` or the facts changed.

    Attributes:
        folder: a checkpoint that fits and can be loaded, or "".
    """

    changed = Signal()

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app
        self.folder = ""
        self.path = QLineEdit()
        self.path.setPlaceholderText(tr("Folder with config.json (converted or original)"))
        self.path.setAccessibleName(tr("Model folder"))
        self.path.returnPressed.connect(self._inspect)
        choose = button(tr("Choose…"), lambda: choose_folder(self, tr("Model folder"), self.inspect), icon="folder")
        inspect = button(tr("Check"), self._inspect)
        self.repository, self.revision = QLineEdit(), QLineEdit()
        self.repository.setPlaceholderText(tr("owner/name"))
        self.repository.setAccessibleName(tr("Repository on the hub"))
        self.revision.setPlaceholderText(tr("commit (40 hex digits)"))
        self.revision.setAccessibleName(tr("Commit"))
        download = button(tr("Download"), self.download, icon="download")
        self.progress = JobProgress()
        self.progress.ended.connect(self._ended)
        self.message = InlineMessage()
        hub = row(self.repository, self.revision, download)
        hub.setStretch(0, 2)
        hub.setStretch(1, 3)
        layout = column(label(tr("From a folder on this computer"), "small"), spacing=6)
        layout.addLayout(row(self.path, choose, inspect))
        layout.addSpacing(6)
        layout.addWidget(label(tr("Or from the model hub: weights and settings of one commit, no code"), "small"))
        layout.addLayout(hub)
        layout.addSpacing(6)
        layout.addWidget(self.progress)
        layout.addWidget(self.message)
        self.setLayout(layout)

    def inspect(self, folder: str) -> None:
        """Check a folder in a child process: what it is and whether it fits into memory."""
        self._take("")
        path = Path(folder.strip()).expanduser().absolute()
        self.path.setText(str(path))
        if not path.is_dir():
            self.message.report(tr("Folder not found: {path}").format(path=path), error=True)
        elif not self.progress.running:
            self.message.report("")
            self.progress.follow(self._app.run_module("model.manager", "list", str(path)), tr("Checking…"))

    def _inspect(self) -> None:
        if self.path.text().strip():
            self.inspect(self.path.text())

    def download(self) -> None:
        """Download the checkpoint that the fields name, in a child process."""
        repository, revision = self.repository.text().strip(), self.revision.text().strip()
        if not is_hub_reference(repository, revision):
            text = tr("Enter the repository as owner/name and the 40-digit commit from its page.")
            self.message.report(text, error=True)
        elif not self.progress.running:
            self._take("")
            self.message.report("")
            job = self._app.run_module("model.manager", "hub", repository, revision)
            self.progress.follow(job, tr("Downloading {name}…").format(name=repository))

    def _convert(self, source: str) -> None:
        target = self._app.services.home / "models" / f"{Path(source).name}-converted"
        job = self._app.run_module("model.manager", "convert", source, str(target))
        self.message.report("")
        self.progress.follow(job, tr("Converting…"))

    def _ended(self, code: int, message: str, last: dict[str, Any]) -> None:
        if "state" in last and last["error"] is None:
            self._show(last)
        elif code == 0 and "folder" in last:
            self.inspect(str(last["folder"]))  # downloaded or converted
        else:
            self.message.report(message or tr("Could not check the model: the program ended."), error=code != 130)
            self.changed.emit()

    def _show(self, about: dict[str, Any]) -> None:
        source, plan = str(about["source"]), about["plan"]
        if about["kind"] == "original":
            amount = facts(about)
            self.message.report(
                tr("{facts}. Converting keeps the original and needs the same space again.").format(facts=amount),
                action=tr("Convert"),
                act=lambda: self._convert(source),
            )
            self.changed.emit()
            return
        fits = plan is not None and plan["recommended"] is not None
        self.message.report("\n".join([facts(about), *([plan_text(plan)] if plan else [])]), error=not fits)
        self._take(source if fits else "")

    def _take(self, folder: str) -> None:
        self.folder = folder
        self.changed.emit()
