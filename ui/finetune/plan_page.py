"""Fine-tuning, step 2: what to train, from which checkpoint, and the time and memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import QLocale, Qt, QTimer, Signal
from PySide6.QtGui import QDoubleValidator, QIntValidator
from PySide6.QtWidgets import QFormLayout, QLineEdit, QScrollArea, QWidget

from assistant.finetune.run_watcher import MANIFEST, PLAN, TuningRun, runs, write_plan
from assistant.finetune.tuning_data import Recording, write_manifest
from ui.core.app import App
from ui.core.jobs import Job
from ui.core.translations import tr
from ui.widgets.common import Picker, button, column, label, line, row
from ui.widgets.forms import Choices, InlineMessage, JobProgress, format_bytes
from ui.widgets.model_text import presets

_SETTLE_MS = 500
_OF_THE_HEAD = ("folds", "judged")
_OF_STAGES = ("batch-size", "rows-at-once", "learning-rate", "validation")


def format_estimate(seconds: float) -> str:
    """Format a duration: About 40 seconds, About 14 minutes, About 3.5 hours."""
    if seconds < 90:
        return tr("About {n} seconds").format(n=max(5, round(seconds / 5) * 5))
    if seconds < 5400:
        return tr("About {n} minutes").format(n=round(seconds / 60))
    return tr("About {n} hours").format(n=f"{seconds / 3600:.1f}")


class PlanPage(QWidget):
    """The choice of what to train, and its measured cost. Training starts only when the user says so.

    Signals:
        started: the run, with its folder and manifest written, and its command-line arguments.
    """

    started = Signal(object, object)

    def __init__(self, app: App, back: Callable[[], object]) -> None:
        super().__init__()
        self._app = app
        self._rows: list[Recording] = []
        self._mapping: dict[str, str] = {}
        self.folder: Path | None = None
        self.plan: dict[str, Any] | None = None
        self._probe: Job | None = None
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(_SETTLE_MS)
        self._settle.timeout.connect(self._measure)
        self.source = Picker()
        self.source.picked.connect(lambda _: self._changed())
        self.what = Choices(_targets(), "head", tr("What to learn"))
        self.what.chosen.connect(lambda _: self._changed())
        self.no_adapter = label("", "small")
        self.why = label(
            tr(
                "Not offered: learning new replies from emotion labels alone. A label says how you sound, not what a "
                "good reply is, and models trained that way reply worse. Instead, replies are learned from what the "
                "language model would say to your words."
            ),
            "small",
        )
        self.values = _TrainingOptions()
        self.values.changed.connect(self._changed)
        self.values.hide()
        self.fold = button(tr("Advanced"), self._fold, "quiet", "down")
        self.progress = JobProgress()
        self.forecast = label("", "lead")
        self.details = label("", "muted")
        self.message = InlineMessage()
        self.start = button(tr("Start"), self._begin, "primary")
        self.start.setEnabled(False)
        inner = QWidget()
        inner.setMaximumWidth(720)
        layout = column(label(tr("What should it learn?"), "title"), spacing=10)
        for part in (self.what, self.no_adapter, self.why):
            layout.addWidget(part)
        layout.addSpacing(8)
        layout.addWidget(label(tr("Start from"), "heading"))
        layout.addWidget(self.source)
        layout.addLayout(row(self.fold, None))
        layout.addWidget(self.values)
        layout.addStretch(1)
        layout.setContentsMargins(24, 20, 24, 8)
        inner.setLayout(layout)
        scroll = QScrollArea()
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        scroll.setWidget(inner)
        scroll.setWidgetResizable(True)
        below = column(line(), self.progress, self.forecast, self.details, self.message, spacing=8)
        below.addLayout(row(button(tr("Back"), back), None, self.start))
        below.setContentsMargins(24, 0, 24, 20)
        outer = column(scroll, spacing=0)
        outer.addLayout(below)
        self.setLayout(outer)
        self.progress.ended.connect(self._measured)

    def begin(self, rows: list[Recording], mapping: dict[str, str], folder: Path) -> None:
        """Plan a run on these recordings in a new folder."""
        self._rows, self._mapping, self.folder = rows, mapping, folder
        self._fill_sources()
        self._changed()

    def options(self, folder: Path) -> list[str]:
        """Return the command-line arguments."""
        chosen = ["--manifest", str(folder / MANIFEST), "--model", str(self.source.currentData())]
        return [str(folder), *chosen, "--what", self.what.value, *self.values.arguments(self.what.value)]

    # ---- choices

    def _fill_sources(self) -> None:
        now, folders = self._app.settings.model.source, self._app.settings.model.folders
        tuned = [str(run.checkpoint) for run in runs(self._app.runs) if run.summary is not None]
        found = dict.fromkeys([now, *presets(), *folders, *tuned])
        options = [(one, _named(one) + (tr(" (in use)") if one == now else "")) for one in found if one]
        self.source.show_options(options, now or "mini")

    def _changed(self) -> None:
        preset = str(self.source.currentData()) in presets() or _is_tuned(Path(str(self.source.currentData())))
        for name, radio in self.what.buttons.items():
            radio.setEnabled(name == "head" or not preset)
        if preset and self.what.value != "head":
            self.what.choose("head")
        self.no_adapter.setText(
            tr("This model comes with the program, so it can only learn how you sound.") if preset else ""
        )
        self.no_adapter.setVisible(preset)
        self.values.show_for(self.what.value)
        self.plan = None
        self.start.setEnabled(False)
        self._settle.start()

    def _fold(self) -> None:
        self.values.setVisible(self.values.isHidden())
        self.fold.setText(tr("Advanced") if self.values.isHidden() else tr("Hide advanced"))

    # ---- the measured plan

    def _measure(self) -> None:
        if self.folder is None or not self.isVisible():
            return
        if self._probe is not None:
            self._probe.close()
        try:
            transcripts = self.what.value != "head"
            count = write_manifest(self.folder / MANIFEST, self._rows, self._mapping, words=transcripts)
        except OSError as error:
            self.message.report(
                tr("Could not write {path} ({why}).").format(path=self.folder, why=error.strerror), error=True
            )
            return
        self.message.report("")
        self.forecast.setText("")
        self.details.setText("")
        self._probe = self._app.run_module("training", "tune", *self.options(self.folder), "--plan", "--json")
        self.progress.follow(self._probe, tr("Measuring on a few of {n} recordings…").format(n=count))

    def _measured(self, code: int, message: str, last: dict[str, Any]) -> None:
        self._probe = None
        if code or "seconds" not in last:
            self.message.report(
                message or tr("The measurement failed."), error=True, action=tr("Try again"), act=self._measure
            )
            return
        self.plan = last
        device = tr("the graphics card") if last["device"] == "cuda" else tr("this CPU")
        memory, free = format_bytes(last["peak_bytes"]), format_bytes(last["free_bytes"])
        estimate = tr("{time} and {memory} of memory, on {device}.")
        self.forecast.setText(estimate.format(time=format_estimate(last["seconds"]), memory=memory, device=device))
        disk, room = format_bytes(last["disk_bytes"]), format_bytes(last["free_disk_bytes"])
        self.details.setText(
            tr("{free} of memory is free. Needs {disk} of {room} free disk space. Measured just now.").format(
                free=free, disk=disk, room=room
            )
        )
        if last["fits"]:
            self.start.setEnabled(True)
        else:
            remedies = tr(", or ").join(last["remedies"])
            self.message.report(tr("Does not fit on this computer: {remedies}.").format(remedies=remedies), error=True)

    def _begin(self) -> None:
        assert self.folder is not None
        assert self.plan is not None
        try:
            write_plan(self.folder / PLAN, self.plan)
        except OSError as error:
            self.message.report(
                tr("Could not write {path} ({why}).").format(path=self.folder, why=error.strerror), error=True
            )
            return
        self.started.emit(TuningRun.open(self.folder), self.options(self.folder))


def _named(source: str) -> str:
    path = Path(source)
    if source in presets():
        return source
    return tr("{name}, fine-tuned").format(name=path.parent.name) if path.name == "model" else path.name


def _is_tuned(folder: Path) -> bool:
    """Return whether the folder is a preset with its own emotion head."""
    return (folder / "reading.json").is_file()


def _targets() -> list[tuple[str, str, str]]:
    return [
        (
            "head",
            tr("How you sound"),
            tr("Improves how it reads your voice. Replies stay the same. Best place to start."),
        ),
        (
            "stage2",
            tr("How you sound and how it replies"),
            tr(
                "Improves its replies, too. Needs transcripts and more time. Stage 2: adapter, emotion head, partial "
                "LoRA."
            ),
        ),
        ("stage1", tr("What you say"), tr("For an accent or a microphone that it mishears. Stage 1: adapter.")),
        ("both", tr("Both, one after the other"), tr("Stage 1, then stage 2.")),
    ]


class _TrainingOptions(QWidget):
    """The advanced options; `changed` when one changes. An invalid value counts as the default."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._form = QFormLayout()
        self._form.setContentsMargins(0, 0, 0, 0)
        self._form.setVerticalSpacing(8)
        self._form.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        self.fields: dict[str, QLineEdit] = {}
        self._usual: dict[str, str] = {}
        for name, title, check, usual in (
            ("folds", tr("Cross-validation folds"), QIntValidator(2, 20), "5"),
            ("steps", tr("Steps"), QIntValidator(1, 100_000), "60"),
            ("batch-size", tr("Batch size"), QIntValidator(1, 512), "8"),
            ("rows-at-once", tr("Micro-batch size (smaller needs less memory)"), QIntValidator(1, 64), "2"),
            ("learning-rate", tr("Learning rate"), QDoubleValidator(1e-7, 1.0, 8), "0.0001"),
            ("validation", tr("Validation share"), QDoubleValidator(0.05, 0.8, 3), "0.2"),
            ("judged", tr("Neutral recordings for the reply check"), QIntValidator(0, 200), "8"),
            ("replies", tr("Recordings with replies before and after"), QIntValidator(0, 50), "4"),
            ("seed", tr("Random seed"), QIntValidator(0, 10**6), "0"),
        ):
            field = QLineEdit(usual)
            check.setLocale(QLocale.c())
            check.setParent(field)
            field.setValidator(check)
            field.setMaximumWidth(140)
            field.setAccessibleName(title)
            field.textChanged.connect(lambda _: self.changed.emit())
            self.fields[name], self._usual[name] = field, usual
            self._form.addRow(title, field)
        self.setLayout(self._form)

    def show_for(self, what: str) -> None:
        """Show the options that apply."""
        for name, field in self.fields.items():
            self._form.setRowVisible(field, self._counts(name, what))

    def _counts(self, name: str, what: str) -> bool:
        """Return whether an option applies to this kind of training."""
        return name not in (_OF_STAGES if what == "head" else _OF_THE_HEAD)

    def arguments(self, what: str) -> list[str]:
        """Return the command-line arguments of the options that apply."""
        found = []
        for name, field in self.fields.items():
            if self._counts(name, what):
                found += [f"--{name}", field.text() if field.hasAcceptableInput() else self._usual[name]]
        return found
