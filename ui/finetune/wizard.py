"""The fine-tuning wizard: recordings, plan, training, result, one question per page.

Training is `python -m training tune` in a child process. Both sides share only the run folder, so a run survives the
window, and a folder from another computer shows the same pages.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QFileDialog, QFrame, QScrollArea, QStackedWidget, QVBoxLayout, QWidget

from assistant.finetune.run_watcher import Stage, TuningRun, discard, in_use, restore, runs, sweep
from assistant.sessions.corrections import corrections
from ui.core.app import App
from ui.core.translations import tr
from ui.finetune.plan_page import PlanPage
from ui.finetune.recordings_page import RecordingsPage
from ui.finetune.result_page import ResultPage
from ui.finetune.training_page import TrainingPage
from ui.widgets.common import IconButton, button, column, label, restyle, row
from ui.widgets.forms import InlineMessage, StatusIcon

_STEPS = ("Recordings", "Plan", "Training", "Result")


class FineTunePage(QWidget):
    """The start page, the four steps and the step indicator."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app
        self.start = _StartPage(app, self)
        self.recordings = RecordingsPage(app, self.show_start)
        self.plan = PlanPage(app, lambda: self._turn_to(self.recordings))
        self.training = TrainingPage(app, self._leave)
        self.result = ResultPage(app)
        self._stack = QStackedWidget()
        self._steps = [label(tr(name), "small", wrap=False) for name in _STEPS]
        strip = row(spacing=8)
        for number, step in enumerate(self._steps):
            if number:
                strip.addWidget(label("›", "small", wrap=False))
            strip.addWidget(step)
        strip.addStretch(1)
        strip.setContentsMargins(24, 12, 24, 0)
        self._strip = QWidget()
        self._strip.setLayout(strip)
        layout = column(self._strip, spacing=0)
        layout.addWidget(self._stack, 1)
        self.setLayout(layout)
        for page in (self.start, self.recordings, self.plan, self.training, self.result):
            self._stack.addWidget(page)
        self.recordings.confirmed.connect(self._plan)
        self.plan.started.connect(self._begin)
        self.training.finished.connect(self.show_result)
        self.result.closed.connect(self.show_start)
        sweep(app.runs)
        self.show_start()

    @property
    def page(self) -> QWidget:
        """The current page."""
        shown = self._stack.currentWidget()
        assert shown is not None
        return shown

    @property
    def busy(self) -> bool:
        """Whether a run trains or is being planned."""
        return self.training.busy or self.page in (self.recordings, self.plan)

    # ---- navigation

    def show_start(self) -> None:
        """Show the runs so far and ways to start one."""
        self.start.refresh()
        self._turn_to(self.start)

    def choose(self, source: str | Path) -> None:
        """Check recordings (a manifest, a folder, or the corrections), or open a run's folder."""
        path = Path(source)
        if (path / "run.toml").is_file():
            self.open_run(path)
            return
        self._turn_to(self.recordings)
        self.recordings.check(path)

    def open_run(self, folder: Path) -> None:
        """Show a run at its current stage."""
        try:
            run = TuningRun.open(folder)
        except ValueError as error:
            self._app.notify(str(error), error=True)
            return
        if run.stage is Stage.FINISHED:
            self.show_result(run)
        elif run.stage is Stage.PLANNED:
            self._app.notify(tr("This run was planned but never started. Choose its recordings again."))
        elif not self.training.busy or self.training.run is None or self.training.run.folder != folder:
            self.training.show_run(run)
            self._turn_to(self.training)
        else:
            self._turn_to(self.training)

    def show_result(self, run: TuningRun) -> None:
        """Show the result of a run."""
        self.result.show_run(run)
        self._turn_to(self.result)

    def _plan(self) -> None:
        if self.training.busy:
            self._app.notify(tr("A run is in progress. Wait for it to end or pause it first."))
            return
        name = self.recordings.name.replace(" ", "-")[:40]
        folder = self._app.runs / f"{datetime.now():%Y-%m-%d-%H%M%S}-{name}"
        self._turn_to(self.plan)
        self.plan.begin(self.recordings.rows, self.recordings.table.mapping, folder)

    def _begin(self, run: TuningRun, arguments: list[str]) -> None:
        self._turn_to(self.training)
        self.training.begin(run, arguments)

    def _leave(self) -> None:
        if self.training.busy:
            self.training.pause.click()
        self.show_start()

    def _turn_to(self, page: QWidget) -> None:
        self._stack.setCurrentWidget(page)
        at = self._stack.currentIndex() - 1
        self._strip.setVisible(at >= 0)
        for number, step in enumerate(self._steps):
            restyle(step, role="heading" if number == at else "small")
            step.setAccessibleDescription(tr("current step") if number == at else "")


class _StartPage(QWidget):
    """Sources of recordings, and the runs so far."""

    def __init__(self, app: App, wizard: FineTunePage) -> None:
        super().__init__()
        self._app, self._wizard = app, wizard
        self.message = InlineMessage()
        intro = tr(
            "A few dozen recordings of your voice in different moods help the assistant read it better. "
            "Everything stays on this computer, and you can undo it with one click."
        )
        self.folder = button(tr("Choose a folder…"), self._ask_folder, "primary", "folder")
        self.manifest = button(tr("Choose a list file…"), self._ask_manifest)
        self.corrected = button(tr("My corrections"), lambda: wizard.choose(app.corrections))
        self.other = button(tr("Open another run…"), self._ask_folder, "quiet")
        self.hint = label(tr("Subfolders or file names give the emotion: happy/01.wav, anna-sad-3.flac."), "small")
        self._list = QVBoxLayout()
        self._list.setContentsMargins(0, 0, 0, 0)
        self._list.setSpacing(8)
        self._heading = label(tr("Runs"), "heading")
        inner = QWidget()
        inner.setMaximumWidth(820)
        intro_label = label(intro, "muted")
        intro_label.setMaximumWidth(640)
        layout = column(label(tr("Fine-tune to your voice"), "display"), intro_label, spacing=12)
        layout.addSpacing(4)
        layout.addLayout(row(self.folder, self.manifest, self.corrected, None))
        layout.addWidget(self.hint)
        layout.addWidget(self.message)
        layout.addSpacing(16)
        layout.addWidget(self._heading)
        layout.addLayout(self._list)
        layout.addLayout(row(self.other, None))
        layout.addStretch(1)
        layout.setContentsMargins(24, 24, 24, 24)
        inner.setLayout(layout)
        scroll = QScrollArea()
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        scroll.setWidget(inner)
        scroll.setWidgetResizable(True)
        self.setLayout(column(scroll, spacing=0))

    def showEvent(self, event: QShowEvent) -> None:
        """Include corrections made in the meantime."""
        super().showEvent(event)
        self.refresh()

    def refresh(self) -> None:
        """Reload corrections and runs."""
        try:
            count = len(corrections(self._app.corrections))
        except OSError:
            count = 0
        self.corrected.setText(tr("My corrections ({n})").format(n=count))
        self.corrected.setEnabled(count > 0)
        self.corrected.setToolTip("" if count else tr("Corrections that you make while talking appear here."))
        while (item := self._list.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.deleteLater()
        found = [run for run in runs(self._app.runs) if run.stage is not Stage.PLANNED]
        self._heading.setVisible(bool(found))
        for run in found:
            self._list.addWidget(self._line(run))

    def _line(self, run: TuningRun) -> QWidget:
        box = QFrame()
        box.setProperty("role", "raised")
        used = in_use(run, self._app.settings)
        icon, colour, text, act = _run_status(run, used=used)
        facts = column(label(run.name, "heading", wrap=False), label(text, "small"), spacing=2)
        layout = row(StatusIcon(icon, colour), spacing=12)
        layout.addLayout(facts, 1)
        layout.addWidget(button(act, partial(self._wizard.open_run, run.folder)))
        if run.stage is not Stage.RUNNING and not used:
            name = tr("Delete {name}").format(name=run.name)
            layout.addWidget(IconButton("delete", name, partial(self._discard, run)))
        layout.setContentsMargins(16, 12, 12, 12)
        box.setLayout(layout)
        return box

    def _discard(self, run: TuningRun) -> None:
        try:
            kept = discard(run)
        except OSError as error:
            self.message.report(tr("Could not delete ({why}).").format(why=error.strerror), error=True)
            return

        def bring_back() -> None:
            restore(kept)
            self.refresh()

        self._app.notify(tr("Deleted {name}.").format(name=run.name), tr("Undo"), bring_back)
        self.refresh()

    def _ask_folder(self) -> None:
        self._ask(QFileDialog.FileMode.Directory, tr("Folder with recordings or a run"))

    def _ask_manifest(self) -> None:
        self._ask(QFileDialog.FileMode.ExistingFile, tr("List file: JSON lines with audio, text and emotion"))

    def _ask(self, mode: QFileDialog.FileMode, text: str) -> None:
        dialog = QFileDialog(self, text)
        dialog.setFileMode(mode)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self._wizard.choose)
        dialog.show()


def _run_status(run: TuningRun, *, used: bool) -> tuple[str, str, str, str]:
    """Return icon, colour, status text and button text of a run."""
    stage = run.stage
    if stage is Stage.FINISHED:
        why = str((run.summary or {}).get("why", ""))
        verdict = (run.summary or {}).get("verdict")
        icon = {"better": ("check", "accent"), "worse": ("warning", "danger")}.get(str(verdict), ("info", "muted"))
        return (*icon, f"{tr('In use.')} {why}" if used else why, tr("Open"))
    if stage is Stage.RUNNING:
        return "record", "accent", tr("Running."), tr("Open")
    if stage is Stage.FAILED:
        return "warning", "danger", run.why, tr("Continue…")
    return "pause", "muted", tr("Not finished. You can continue it."), tr("Continue…")
