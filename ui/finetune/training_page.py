"""Fine-tuning, step 3: a run's progress, its curves, pausing and resuming."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QGridLayout, QLabel, QPlainTextEdit, QProgressBar, QWidget

from assistant.finetune.run_watcher import PLAN, Stage, TuningRun, command_of, read_object
from ui.core.app import App
from ui.core.jobs import Job
from ui.core.translations import tr
from ui.widgets.common import button, column, label, row
from ui.widgets.forms import InlineMessage, format_bytes
from ui.widgets.plots import Curves, ResponsivePair, Series

_LOOK_MS = 250
_LEAST_ROOM = 300_000_000  # bytes of disk beyond the planned size


class TrainingPage(QWidget):
    """One run, training or paused. The assistant's model is unloaded while it trains.

    Signals:
        finished: the run has a result.
    """

    finished = Signal(object)

    def __init__(self, app: App, leave: Callable[[], object]) -> None:
        super().__init__()
        self._app = app
        self.run: TuningRun | None = None
        self.job: Job | None = None
        self._plan: dict[str, Any] = {}
        self._pausing = False
        self._began = 0.0
        self._seen = ""
        self.title = label("", "title")
        self.phase = label("", "muted")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setFixedHeight(8)
        self.message = InlineMessage()
        self.facts: dict[str, QLabel] = {}
        self.loss = Curves(tr("Loss"))
        self.right = Curves(tr("Accuracy"), share=True)
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(2000)
        self.log.setAccessibleName(tr("Log"))
        self.log.setMaximumHeight(160)
        self.log.hide()
        self.fold = button(tr("Show the log"), self._fold, "quiet")
        self.pause = button(tr("Pause"), self._pause, "", "pause")
        self.resume = button(tr("Continue"), self.advance, "primary", "play")
        self.leave = button(tr("Close"), leave, "quiet")
        self._watch = QTimer(self)
        self._watch.setInterval(_LOOK_MS)
        self._watch.timeout.connect(self._inspect)
        curves = ResponsivePair(self.loss, self.right)
        layout = column(self.title, self.phase, self.bar, self.message, spacing=12)
        layout.addLayout(self._grid())
        layout.addWidget(curves, 1)
        layout.addLayout(row(self.fold, None))
        layout.addWidget(self.log)
        layout.addLayout(row(self.leave, None, self.pause, self.resume))
        layout.setContentsMargins(24, 20, 24, 20)
        self.setLayout(layout)

    def _grid(self) -> QGridLayout:
        grid = QGridLayout()
        grid.setHorizontalSpacing(24)
        grid.setVerticalSpacing(2)
        names = {
            "left": tr("Time left"),
            "pace": tr("Speed"),
            "memory": tr("Memory"),
            "disk": tr("Free disk space"),
        }
        for at, (name, title) in enumerate(names.items()):
            self.facts[name] = label("—", "lead", wrap=False)
            self.facts[name].setAccessibleName(title)
            grid.addWidget(label(title, "small", wrap=False), 0, at)
            grid.addWidget(self.facts[name], 1, at)
            grid.setColumnStretch(at, 1)
        return grid

    # ---- lifecycle

    def show_run(self, run: TuningRun) -> None:
        """Show a run without starting it."""
        self.run, self._seen = run, ""
        self._plan = read_object(run.folder / PLAN) or {}
        self.title.setText(tr("Training: {name}").format(name=run.name))
        self.log.clear()
        self._note(run.progress)
        self._draw()
        self._watch.start()

    def begin(self, run: TuningRun, arguments: list[str] | None = None) -> None:
        """Start a run, or resume it with its original options."""
        self.show_run(run)
        if arguments is None:
            try:
                arguments = command_of(run)
            except ValueError as error:
                self.message.report(str(error), error=True)
                return
        if self._app.talk is not None:
            self._app.talk.release_model()
        run.why = ""
        self._pausing = False
        self._began = time.monotonic()
        self.job = self._app.run_module("training", "tune", *arguments, "--json")
        self.job.ended.connect(self._ended)
        self._draw()

    def advance(self) -> None:
        """Resume the run that is shown."""
        if self.run is not None and self.job is None:
            self.begin(self.run)

    @property
    def busy(self) -> bool:
        """Whether this window's child process trains."""
        return self.job is not None

    def _pause(self) -> None:
        if self.run is None:
            return
        try:
            self.run.ask_to_stop()
        except OSError as error:
            self.message.report(tr("Could not pause ({why}).").format(why=error.strerror), error=True)
            return
        self._pausing = True
        self._draw()

    def _ended(self, code: int, message: str) -> None:
        run, self.job = self.run, None
        assert run is not None
        run.note_end(code, _last_sentence(message))
        run.refresh()
        self._app.load_model()
        self._inspect()
        if run.stage is Stage.FINISHED:
            self._watch.stop()
            self.finished.emit(run)

    # ---- display

    def _inspect(self) -> None:
        run = self.run
        if run is None:
            return
        new = run.refresh()
        self._note(new)
        self._check_disk(run)
        self._draw()
        if self.job is None and run.stage is Stage.FINISHED:
            self._watch.stop()
            self.finished.emit(run)

    def _check_disk(self, run: TuningRun) -> None:
        needed = min(float(self._plan.get("disk_bytes", 0)), 2e9) + _LEAST_ROOM
        if self.busy and not self._pausing and run.free_bytes() < needed:
            self._pause()
            self._app.notify(
                tr("The disk is almost full, so training is pausing. Free space, then continue."), error=True
            )

    def _note(self, reports: list[dict[str, Any]]) -> None:
        for line in reports:
            stage = str(line.get("stage", ""))
            if stage != self._seen:
                self._seen = stage
                self.log.appendPlainText(f"{_clock(line.get('seconds'))}  {_stage_name(stage)}")
            if line.get("loss") is not None:
                figures = {k: line[k] for k in ("step", "loss", "validation", "validation_accuracy") if line.get(k)}
                self.log.appendPlainText(f"{_clock(line.get('seconds'))}  {json.dumps(figures)}")

    def _draw(self) -> None:
        run = self.run
        if run is None:
            return
        last = run.progress[-1] if run.progress else {}
        working = self.busy or run.at_work
        self.pause.setVisible(working)
        self.pause.setEnabled(working and not self._pausing)
        self.resume.setVisible(not working)
        self.leave.setText(tr("Pause and close") if working else tr("Close"))
        stage = str(last.get("stage", ""))
        if working and not last:
            self.phase.setText(tr("Loading the model…"))
        elif working and self._pausing:
            self.phase.setText(tr("Pausing…"))
        elif working:
            counted = f" · {last.get('step')} / {last.get('of')}" if last.get("of", 1) > 1 else ""
            self.phase.setText(_stage_name(stage) + counted)
        self.bar.setRange(0, 0 if working and not last.get("of") else 1000)
        self.bar.setValue(round(1000 * self._share(run)))
        if not working:
            self._show_reason(run)
        else:
            self.message.report("")
        self._show_facts(run, last, working=working)
        self._curves(run)

    def _show_reason(self, run: TuningRun) -> None:
        if run.stage is Stage.FAILED:
            self.phase.setText(tr("Stopped early. Progress so far is kept."))
            self.message.report(run.why, error=True)
        else:
            self.phase.setText(tr("Paused. You can continue any time."))
            self.message.report("")

    def _share(self, run: TuningRun) -> float:
        """The share of the run that is done, by the planned times or else by the phase's steps."""
        last = run.progress[-1] if run.progress else {}
        seconds = self._left(last)
        done = float(last.get("seconds") or 0)
        if seconds is not None and done + seconds > 0:
            return min(0.995, done / (done + seconds))
        return float(last.get("step", 0)) / max(1, float(last.get("of", 1)))

    def _left(self, last: dict[str, Any]) -> float | None:
        """Seconds to the end: this phase at its own pace, later phases as planned."""
        parts: dict[str, float] = self._plan.get("parts", {})
        if not parts:
            eta = last.get("eta_seconds")
            return float(eta) if eta is not None else None
        names = list(parts)
        stage = _PHASES.get(str(last.get("stage", "")), str(last.get("stage", "")))
        if stage not in names:
            return sum(parts.values()) if not last else sum(parts[n] for n in names[1:]) if stage == "prepare" else 0.0
        later = sum(parts[name] for name in names[names.index(stage) + 1 :])
        share = 1 - float(last.get("step") or 0) / max(1, float(last.get("of") or 1))
        eta = last.get("eta_seconds")
        return later + (float(eta) if eta is not None else parts[stage] * share)

    def _show_facts(self, run: TuningRun, last: dict[str, Any], *, working: bool) -> None:
        left = self._left(last) if working else None
        self.facts["left"].setText("—" if left is None else _duration(left))
        pace = last.get("samples_per_second") or last.get("steps_per_second")
        unit = tr("recordings/s") if last.get("samples_per_second") else tr("steps/s")
        self.facts["pace"].setText(f"{pace:.1f} {unit}" if pace and working else "—")
        memory = last.get("memory_bytes")
        expected = self._plan.get("peak_bytes")
        used = format_bytes(memory) if memory and working else "—"
        self.facts["memory"].setText(f"{used} / {format_bytes(expected)}" if expected else used)
        try:
            self.facts["disk"].setText(format_bytes(run.free_bytes()))
        except OSError:
            self.facts["disk"].setText("—")

    def _curves(self, run: TuningRun) -> None:
        fits = [line for line in run.progress if line.get("loss") is not None]
        stage = fits[-1]["stage"] if fits else ""
        fits = [line for line in fits if line["stage"] == stage]

        def points(name: str) -> tuple[tuple[float, float], ...]:
            by_step = {float(line["step"]): float(line[name]) for line in fits if line.get(name) is not None}
            return tuple(sorted(by_step.items()))

        of = float(fits[-1]["of"]) if fits and run.progress[-1] is fits[-1] else 0.0
        held = Series(tr("validation"), points("validation"), dashed=True)
        self.loss.show_series([Series(tr("training"), points("loss")), held], of)
        self.right.show_series([Series(tr("validation"), points("validation_accuracy"), dashed=True)], of)

    def _fold(self) -> None:
        self.log.setVisible(self.log.isHidden())
        self.fold.setText(tr("Show the log") if self.log.isHidden() else tr("Hide the log"))


_PHASES = {"choose": "fit"}


def _stage_name(stage: str) -> str:
    known = {
        "prepare": tr("Loading the model"),
        "listen": tr("Processing the recordings"),
        "choose": tr("Choosing the training settings"),
        "fit": tr("Training"),
        "judge": tr("Comparing before and after"),
        "done": tr("Done"),
        "label": tr("Generating target replies"),
        "stage 1": tr("Training stage 1"),
        "stage 2": tr("Training stage 2"),
    }
    return known.get(stage, stage)


def _last_sentence(message: str) -> str:
    """Return the last line of a program's output if it is a sentence, not a traceback."""
    return message if message.endswith(".") else ""


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole >= 3600:
        return tr("{hours}:{minutes:02d} h").format(hours=whole // 3600, minutes=whole % 3600 // 60)
    return f"{whole // 60}:{whole % 60:02d}"


def _clock(seconds: Any) -> str:
    return _duration(float(seconds)) if isinstance(seconds, int | float) else "    "
