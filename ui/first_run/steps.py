"""The steps of the first-run wizard: model, sound, recording."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from PySide6.QtWidgets import (
    QLayout,
    QWidget,
)

from assistant.audio.devices import Devices
from assistant.events import ModelStatus
from ui.core.app import App
from ui.core.translations import tr
from ui.settings.checkpoint_source import CheckpointSource
from ui.settings.device_choice import DeviceChoice
from ui.settings.recording import Retention
from ui.settings.sound_check import SoundCheck
from ui.widgets.common import Switch, column, label
from ui.widgets.emotion_correction import remember_answer
from ui.widgets.forms import Choices, InlineMessage, JobProgress, format_bytes

_MINI = "mini"
_PRESETS = (_MINI, "mini-0.5b")


class Step(QWidget):
    """One question.

    Attributes:
        first: the widget that gets the focus.
    """

    first: QWidget

    def __init__(self, question: str, intro: str) -> None:
        super().__init__()
        self.question = question
        self.setAccessibleName(question)
        self._column = column(label(question, "display"), 4, label(intro, "lead"), 20)
        self.setLayout(self._column)

    def add(self, *parts: QWidget | QLayout | int) -> None:
        """Add widgets or layouts at the end; a number adds space."""
        for part in parts:
            if isinstance(part, int):
                self._column.addSpacing(part)
            elif isinstance(part, QWidget):
                self._column.addWidget(part)
            else:
                self._column.addLayout(part)

    def ready(self) -> str:
        """Return what is missing before the next step, "" for nothing."""
        return ""

    def leave(self) -> None:
        """Apply the choice when the user goes on."""


class ModelStep(Step):
    """Choose a small model, the original BLSP-Emo, or none yet."""

    def __init__(self, app: App) -> None:
        super().__init__(
            tr("Choose a model"),
            tr("It listens, reads the emotion in your voice and replies, all on this computer."),
        )
        self.app = app
        self.choices = Choices(
            [
                (
                    _MINI,
                    tr("mini (recommended)"),
                    tr("Small and fast, English only, runs on any computer. Its answers are often wrong, and its "
                       "emotion is only an estimate of how a voice sounds."),
                ),
                (
                    "mini-0.5b",
                    tr("mini with a larger language model"),
                    tr("Better answers, but slower and a larger download."),
                ),
                (
                    "released",
                    tr("BLSP-Emo (original)"),
                    tr("Much larger: needs a graphics card with 12 GB. You need its folder or its name on the model "
                       "hub."),
                ),
                ("later", tr("Choose later"), tr("Explore first and choose a model in the settings.")),
            ],
            _MINI,
            tr("Choose a model"),
        )  # fmt: skip
        self.choices.chosen.connect(self._choose)
        self.first = self.choices
        self.availability = label("", "muted")
        self.checkpoint_source = CheckpointSource(app)
        self.checkpoint_source.hide()
        self._about: dict[str, dict[str, Any]] = {}  # as reported for each preset
        self._unknown = ""
        self._fetching = _MINI
        self.add(self.choices, 8, self.availability, self.checkpoint_source)
        self.progress, self.message = JobProgress(), InlineMessage()  # shown below every step
        self.progress.ended.connect(self._fetched)
        self._loaded = ""
        job = app.run_module("model.manager", "list", *_PRESETS)
        job.printed.connect(self._notify)
        job.ended.connect(self._notified)

    def ready(self) -> str:
        """Require a folder for the original model."""
        if self.choices.value == "released" and not self.checkpoint_source.folder:
            return tr("Choose a model that fits into memory, or another option.")
        return ""

    @property
    def mini_available(self) -> bool | None:
        """Whether mini is on this computer; None while unknown."""
        return self._available(_MINI)

    def _available(self, preset: str) -> bool | None:
        about = self._about.get(preset)
        return None if about is None else about.get("state") == "ready"

    def leave(self) -> None:
        """Load the chosen model, or download it first."""
        value = self.choices.value
        if value in _PRESETS:
            self.use(value) if self._available(value) else self._fetch(value)
        elif self.choices.value == "released":
            self.use(self.checkpoint_source.folder)
        else:
            self.use("")

    def use(self, source: str) -> None:
        """Make a checkpoint the current model; "" for none."""
        model = self.app.settings.model
        folders = model.folders if source in ("", *_PRESETS, *model.folders) else (*model.folders, source)
        same = model.source == source
        self.app.change("model", source=source, folders=folders)
        if same and source and source != self._loaded:
            self.app.load_model()
        self._loaded = source

    def _choose(self, value: str) -> None:
        self.availability.setVisible(value in _PRESETS)
        self.checkpoint_source.setVisible(value == "released")
        self._explain()

    def _explain(self) -> None:
        """Say what the chosen preset requires."""
        name = self.choices.value
        about = self._about.get(name)
        if about is None:
            self.availability.setText(self._unknown or tr("Checking for {name}…").format(name=name))
        elif self._available(name):
            self.availability.setText(tr("{name} is already on this computer.").format(name=name))
        elif amount := about.get("download_bytes"):
            self.availability.setText(
                tr("Downloads {size} once. After that, no network is needed.").format(size=format_bytes(amount))
            )
        elif about.get("error"):
            self.availability.setText(str(about["error"]))

    def _notify(self, about: dict[str, Any]) -> None:
        if about.get("source") in _PRESETS:
            self._about[about["source"]] = about
            self._explain()

    def _notified(self, code: int, message: str) -> None:
        self._unknown = message or tr("Could not check for the model. It is downloaded if needed.")
        self._explain()

    def _fetch(self, preset: str) -> None:
        self.message.report("")
        if not self.progress.running:
            self._fetching = preset
            job = self.app.run("fetch", preset, "--json")
            job.printed.connect(self._report)
            self.progress.follow(job, tr("Downloading {name}…").format(name=preset))

    def _report(self, step: dict[str, Any]) -> None:
        """Show the download in the window's header, too."""
        if step.get("total"):
            text = tr("{what}: {share:.0%}").format(what=step["what"], share=step["done"] / step["total"])
            self.app.event_received.emit(ModelStatus("loading", text))

    def _fetched(self, code: int, message: str, _last: dict[str, Any]) -> None:
        preset = self._fetching
        if code == 0:
            self._notify({"source": preset, "state": "ready"})
            if self.choices.value == preset:
                self.use(preset)
            return
        again = partial(self._fetch, preset)
        why = message or tr("Could not download {name}. Check the network.").format(name=preset)
        self.message.report(why, error=code != 130, action=tr("Try again"), act=again)
        if not self.isVisibleTo(self.window()) and code != 130:
            self.app.notify(why, tr("Try again"), again, error=True)


class SoundStep(Step):
    """Choose microphone and speaker, and test them."""

    def __init__(self, app: App, devices: Callable[[], Devices]) -> None:
        super().__init__(
            tr("Check your microphone"), tr("Say something and watch the bar move. Without a microphone, you can type.")
        )
        self.devices, self.check = DeviceChoice(app, devices), SoundCheck(app)
        self.first = self.devices.microphone
        note = tr("Takes eight seconds: you hear a soft noise, speak, then hear yourself. Nothing is saved.")
        self.add(self.devices, 4, self.check, label(note, "small"))


class RecordingStep(Step):
    """Choose whether conversations and corrections are kept."""

    def __init__(self, app: App) -> None:
        super().__init__(tr("Keep conversations?"), tr("They stay in a folder on this computer."))
        self.app = app
        self.keep = Retention(app)
        self.first = self.keep
        self.corrections = Switch(tr("Keep my corrections for fine-tuning"))
        self.corrections.setChecked(app.settings.recording.corrections)
        self.corrections.clicked.connect(lambda on: app.change("recording", corrections=on))
        note = tr("When you correct an emotion, the recording and your correction are kept as an example.")
        self.add(self.keep, 12, self.corrections, label(note, "small"))

    def leave(self) -> None:
        """Note that the question about corrections was answered."""
        remember_answer(self.app)
