"""One checkpoint in the model list: what it is, whether it fits, and its actions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFileDialog, QFrame, QLineEdit, QWidget

from ui.core.app import App
from ui.core.translations import tr
from ui.core.untrusted_text import brief
from ui.widgets.common import Picker, button, column, label, restyle, row
from ui.widgets.forms import InlineMessage, JobProgress, StatusIcon, actions, format_bytes
from ui.widgets.model_text import (
    AUTOMATIC,
    About,
    checkpoint_name,
    checkpoint_purpose,
    facts,
    fits,
    loading_modes,
    plan_text,
)


def choose_folder(owner: QWidget, text: str, chosen: Callable[[str], object]) -> QFileDialog:
    """Open a non-modal folder dialog."""
    dialog = QFileDialog(owner, text)
    dialog.setFileMode(QFileDialog.FileMode.Directory)
    dialog.setOption(QFileDialog.Option.ShowDirsOnly)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.fileSelected.connect(chosen)
    dialog.show()
    return dialog


class TargetForm(QWidget):
    """A form for a new folder. Hidden until needed.

    Signals:
        started: the folder.
    """

    started = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.text = label("", "small")
        self.path = QLineEdit()
        self.path.setAccessibleName(tr("New folder"))
        self.path.textChanged.connect(self._name)
        self.path.returnPressed.connect(lambda: self.started.emit(self.path.text()))
        self.start = button(tr("Start"), lambda: self.started.emit(self.path.text()), "primary")
        cancel = button(tr("Cancel"), self.hide, "quiet")
        line_layout = row(self.path, self.start, cancel)
        layout = column(self.text, spacing=6)
        layout.addLayout(line_layout)
        self.setLayout(layout)
        self.hide()

    def ask(self, text: str, folder: Path) -> None:
        """Show the form with a proposed folder."""
        self.text.setText(text)
        self.path.setText(str(folder))
        self._name(self.path.text())
        self.show()
        self.path.setFocus()

    def _name(self, path: str) -> None:
        begun = bool(path) and Path(f"{path}.part").exists()
        self.start.setText(tr("Continue") if begun else tr("Start"))
        self.start.setEnabled(bool(path.strip()))


class ModelCard(QFrame):
    """A checkpoint.

    Signals:
        made: a new folder was written from it.
        removed: the user removes it from the list.
        changed: its state may have changed.
    """

    made = Signal(str)
    removed = Signal(str)
    changed = Signal(str)

    def __init__(self, app: App, source: str, *, preset: bool) -> None:
        super().__init__()
        self.setProperty("role", "raised")
        self.setAccessibleName(checkpoint_name(source))
        self.app, self.source, self.preset = app, source, preset
        self.about: About | None = None
        self._doing = ""
        self._targets: dict[str, Path] = {}
        self._before = app.settings.model
        self._used = StatusIcon("check", "accent", 18)
        self._used_words = label(tr("in use"), "small", wrap=False)
        head = row(label(checkpoint_name(source), "lead", wrap=False), self._used, self._used_words, None, spacing=8)
        self.facts = label(tr("Checking…"), "small")
        self.plan = label("", "small")
        self.mode = Picker()
        self.mode.setAccessibleName(tr("Loading mode"))
        self.mode.picked.connect(lambda mode: self._load(*mode))
        self.use = button(tr("Use"), lambda: self._load(*AUTOMATIC), "primary")
        self.fetch = button(tr("Download"), self._fetch, "primary", icon="download")
        self.convert = button(tr("Convert…"), self._ask_convert, "primary")
        self.verify = button(tr("Verify"), self._verify)
        self.quantize = button(tr("Make a 4-bit copy…"), self._ask_quantize, "quiet")
        self.remove = button(tr("Remove"), lambda: self.removed.emit(source), "quiet")
        self.buttons = actions(self.use, self.fetch, self.convert, self.verify, self.quantize, self.remove)
        self.form = TargetForm()
        self.form.started.connect(self._make)
        self.progress = JobProgress()
        self.progress.ended.connect(self._ended)
        self.message = InlineMessage()
        what = label(checkpoint_purpose(source), "small", selectable=not preset)
        layout = column(spacing=6)
        layout.setContentsMargins(18, 14, 18, 14)
        layout.addLayout(head)
        for part in (what, self.facts, self.plan, self.mode, self.message, self.form, self.progress, self.buttons):
            layout.addWidget(part)
        self.setLayout(layout)
        self._update()

    @property
    def in_use(self) -> bool:
        """Whether it is the current model."""
        return self.app.settings.model.source == self.source

    def show_about(self, about: About) -> None:
        """Show what the manager reports."""
        self.about = about
        self._update()

    def follow(self) -> None:
        """Follow the settings."""
        self._update()

    def show_status(self, status: str, text: str) -> None:
        """Show the loading status."""
        if status == "failed":
            back = self._before
            if back.source != self.source:
                action, act = tr("Go back to {name}").format(name=checkpoint_name(back.source)), self._go_back
            else:
                action, act = tr("Try again"), self.app.load_model
            self.message.report(text, error=True, action=action, act=act)
        elif status == "ready":
            self.message.report("")
        else:
            self.message.report(text)

    # ---- display

    def _update(self) -> None:
        about, used = self.about, self.in_use
        self._used.setVisible(used)
        self._used_words.setVisible(used)
        kind, state = (about["kind"], about["state"]) if about else ("", "")
        plan = about["plan"] if about else None
        usable = state == "ready" and kind in ("preset", "checkpoint")
        if about:
            self.facts.setText(facts(about))
            self.plan.setText(brief(str(about["error"])) if about["error"] else plan_text(plan) if plan else "")
            restyle(self.plan, role="error" if about["error"] else "small")
        self.facts.setVisible(bool(self.facts.text()))
        self.plan.setVisible(bool(self.plan.text()))
        self.mode.setVisible(used and usable and plan is not None)
        if plan:
            settings = self.app.settings.model
            self.mode.show_options(loading_modes(plan), (settings.device, settings.quantize))
            restyle(self.use, kind="primary" if fits(plan, *AUTOMATIC) else "")
        self.use.setVisible(usable and not used)
        self.fetch.setVisible(self.preset and state == "absent")
        if about and about["download_bytes"]:
            self.fetch.setText(tr("Download {size}").format(size=format_bytes(about["download_bytes"])))
        self.convert.setVisible(kind == "original" and state == "ready")
        self.quantize.setVisible(usable and not self.preset and about is not None and about["stored"] is None)
        self.verify.setVisible(state in ("ready", "broken"))
        self.remove.setVisible(not self.preset and not used)
        self.buttons.setEnabled(not self.progress.running)

    # ---- actions

    def _load(self, device: str, quantize: str, *, anyway: bool = False) -> None:
        plan = self.about["plan"] if self.about else None
        if plan and not anyway and not fits(plan, device, quantize):
            self.message.report(
                tr("Does not fit into memory in this mode."),
                error=True,
                action=tr("Try anyway"),
                act=lambda: self._load(device, quantize, anyway=True),
            )
            self._update()
            return
        self._before = self.app.settings.model
        self.message.report("")
        self.app.change("model", source=self.source, device=device, quantize=quantize)

    def _go_back(self) -> None:
        before = self._before
        self.message.report("")
        self.app.change("model", source=before.source, device=before.device, quantize=before.quantize)

    def _fetch(self) -> None:
        job = self.app.run("fetch", self.source, "--json")
        self._follow("fetch", tr("Downloading {name}…").format(name=checkpoint_name(self.source)), job)

    def _verify(self) -> None:
        job = self.app.run_module("model.manager", "verify", self.source)
        self._follow("verify", tr("Verifying all files…"), job)

    def _ask_convert(self) -> None:
        folder = Path(self.source)
        self._doing = "convert"
        self.form.ask(
            tr("Writes the converted model to a new folder. The original does not change. You can stop and continue "
               "later."),
            self._targets.get("convert", folder.with_name(f"{folder.name}-undertone")),
        )  # fmt: skip

    def _ask_quantize(self) -> None:
        folder = Path(self.source)
        self._doing = "quantize"
        self.form.ask(
            tr("Writes a smaller copy that loads faster to a new folder. This one does not change."),
            self._targets.get("quantize", folder.with_name(f"{folder.name}-nf4")),
        )

    def _make(self, target: str) -> None:
        self.form.hide()
        text = tr("Converting…") if self._doing == "convert" else tr("Making a 4-bit copy…")
        self._targets[self._doing] = folder = Path(target).expanduser()
        job = self.app.run_module("model.manager", self._doing, self.source, str(folder))
        self._follow(self._doing, text, job)

    def _follow(self, doing: str, text: str, job: Any) -> None:
        self._doing = doing
        self.message.report("")
        self.progress.follow(job, text)
        self._update()

    def _ended(self, code: int, message: str, last: dict[str, Any]) -> None:
        again = {"fetch": self._fetch, "verify": self._verify, "convert": self._ask_convert}
        if code != 0:
            act = again.get(self._doing, self._ask_quantize)
            text = message or tr("Ended without a message (code {code}).").format(code=code)
            self.message.report(text, error=code != 130, action=tr("Try again"), act=act)
        elif self._doing == "verify":
            hashes = "\n".join(f"{digest}  {name}" for name, digest in last.get("sha256", {}).items())
            copy = (lambda: QGuiApplication.clipboard().setText(hashes)) if hashes else None
            checked = "; ".join(map(str, last.get("checked", [])))
            self.message.report(
                tr("Intact: {checked}.").format(checked=checked), action=tr("Copy the SHA-256 sums"), act=copy
            )
        elif self._doing == "fetch":
            self.changed.emit(self.source)
        else:
            self.message.report(tr("Done. The new folder is in the list."))
            self.made.emit(str(last["folder"]))
        self._update()
