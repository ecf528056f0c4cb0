"""The application object that all pages share: settings, conversation, notifications, child processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtWidgets import QApplication

from assistant.backend.protocol import ModelChoice, Ready
from assistant.errors import AssistantError
from assistant.events import Event, ModelStatus
from assistant.settings import Settings, load, save
from assistant.speech.synthesizer import Synthesizer
from assistant.talk import Talk, TalkSettings
from ui.core import theme
from ui.core.event_bridge import EventBridge
from ui.core.jobs import Job
from ui.core.translations import tr
from ui.core.trash import Trash


@dataclass(frozen=True, slots=True)
class Services:
    """What main.py hands to the window.

    Attributes:
        home: the user's folder: settings.toml, sessions/, runs/, logs/, corrections.jsonl.
        command: our own command line, for child processes: `[*command, "doctor", "--json"]`.
        python: the interpreter, for `[*python, "-m", "training", ...]`.
        synthesizer: returns the synthesizer of an engine ("system", "kokoro"); raises AssistantError with the remedy.
        talk: makes the conversation. Tests and scripts pass file devices here.
    """

    home: Path
    command: tuple[str, ...]
    python: tuple[str, ...]
    synthesizer: Callable[[str], Synthesizer]
    talk: Callable[[TalkSettings, Synthesizer | None, Callable[[Event | Ready], None]], Talk]


@dataclass(frozen=True, slots=True)
class Notification:
    """A message for the user. `act` is the remedy or the undo; `seconds` is 0 to stay until dismissed."""

    text: str
    action: str = ""
    act: Callable[[], object] | None = None
    error: bool = False
    seconds: float = 0.0


class App(QObject):
    """The one application object.

    Signals:
        event_received: an event of the conversation, on Qt's thread, in order.
        settings_changed: the new `Settings`, after they are applied.
        notified: a `Notification`.

    Attributes:
        about: what the loaded model reported about itself (`Ready.about`); empty without a model.
        trash: holds deleted files until they can no longer be restored.
    """

    event_received = Signal(object)
    settings_changed = Signal(object)
    notified = Signal(object)

    def __init__(self, services: Services) -> None:
        super().__init__()
        self.services = services
        self.talk: Talk | None = None
        self.synthesizer: Synthesizer | None = None
        self.about: Mapping[str, Any] = {}
        self._bridge = EventBridge(self)
        self._bridge.event_received.connect(self._note)
        self._bridge.event_received.connect(self.event_received)
        self._path = services.home / "settings.toml"
        self.settings, self._error = load(self._path)
        self._jobs: list[Job] = []
        self.trash = Trash(services.home / "deleted", self)

    @property
    def sessions(self) -> Path:
        """The folder of all sessions."""
        return self.services.home / "sessions"

    @property
    def corrections(self) -> Path:
        """The file of corrected readings that the user allowed for fine-tuning."""
        return self.services.home / "corrections.jsonl"

    @property
    def runs(self) -> Path:
        """The folder of all training runs."""
        return self.services.home / "runs"

    # ---- lifecycle

    def start(self) -> None:
        """Start the conversation. The model loads in its own process."""
        if self._error:
            self.notify(self._error, error=True)
        self.synthesizer = self._synthesizer()
        try:
            self.talk = self.services.talk(self._talk_settings(), self.synthesizer, self._bridge)
        except AssistantError as error:
            self.notify(str(error), error=True)
            return
        self.talk.start()

    def close(self) -> None:
        """End the conversation and every child process."""
        for job in self._jobs:
            job.close()
        self.trash.empty()
        self._bridge.stop()
        try:
            if self.talk is not None:
                self.talk.close()
        except AssistantError as error:
            self.notify(str(error), error=True)
        finally:
            if self.synthesizer is not None:
                self.synthesizer.close()

    # ---- for pages

    def change(self, section: str, **values: Any) -> None:
        """Change settings, apply them and save them.

        Args:
            section: a section of `Settings`, such as "voice".
            values: the new values of that section.

        Raises:
            ValueError: a value is out of range.
        """
        before, self.settings = self.settings, self.settings.changed(section, **values)
        if self.settings != before:
            self._apply(before)
            self._save()

    def load_model(self) -> None:
        """Load the model of the settings. Until the first-run wizard is done, nothing else loads it."""
        if self.talk is not None:
            self.talk.replace_model(self.settings.model.choice)

    def finish_first_run(self) -> None:
        """Record that the first-run wizard is done."""
        self.settings = self.settings.model_copy(update={"started": True})
        self._save()

    def notify(
        self, text: str, action: str = "", act: Callable[[], object] | None = None, *, error: bool = False
    ) -> None:
        """Show a message in the window.

        Args:
            text: one or two sentences.
            action: the label of the button that calls `act`; the message then stays for 10 s instead of 5 s.
            act: the remedy or the undo.
            error: show it as an error, until it is dismissed.
        """
        self.notified.emit(Notification(text, action, act, error, 0.0 if error else 10.0 if act else 5.0))

    def delete(self, paths: Sequence[Path], text: str, back: Callable[[], object] = lambda: None) -> None:
        """Move files or folders to the trash and offer an undo.

        Args:
            paths: what to delete.
            text: the message with the undo.
            back: called after an undo.

        Raises:
            AssistantError: a file cannot be deleted. Nothing has moved.
        """
        try:
            moved = self.trash.put(paths)
        except OSError as error:
            raise AssistantError(tr("Could not delete ({why}).").format(why=error.strerror)) from error

        def undo() -> None:
            try:
                self.trash.restore(moved)
            except OSError as error:
                self.notify(tr("Could not restore ({why}).").format(why=error.strerror), error=True)
            else:
                back()

        self.notify(text, tr("Undo"), undo)

    def run(self, *args: str) -> Job:
        """Run one of our own commands in a child process: `run("plan", "--model", folder, "--json")`."""
        return self._begin((*self.services.command, *args))

    def run_module(self, module: str, *args: str) -> Job:
        """Run `python -m module ...` in a child process."""
        return self._begin((*self.services.python, "-m", module, *args))

    # ---- internal

    def _note(self, event: Event | Ready) -> None:
        if isinstance(event, Ready):
            self.about = event.about
        elif isinstance(event, ModelStatus) and event.status != "ready":
            self.about = {}

    def _begin(self, command: tuple[str, ...]) -> Job:
        job = Job(command, self)
        self._jobs.append(job)
        job.ended.connect(lambda *_: self._jobs.remove(job))
        return job

    def _save(self) -> None:
        try:
            save(self._path, self.settings)
        except AssistantError as error:
            self.notify(str(error), error=True)
        self.settings_changed.emit(self.settings)

    def _synthesizer(self) -> Synthesizer | None:
        engine = self.settings.voice.engine
        if engine == "none":
            return None
        try:
            return self.services.synthesizer(engine)
        except AssistantError as error:
            self.notify(str(error), error=True)
            return self.services.synthesizer("system") if engine != "system" else None

    def _talk_settings(self) -> TalkSettings:
        settings = self.settings
        sessions = None if settings.recording.mode == "off" else self.sessions
        chosen = TalkSettings.of(settings, sessions, self.corrections)
        return chosen if settings.started else replace(chosen, model=ModelChoice(""))

    def _apply(self, before: Settings) -> None:
        """Apply changed settings to the conversation and the window."""
        now, talk = self.settings, self.talk
        application = QApplication.instance()
        if now.looks != before.looks and isinstance(application, QApplication):
            theme.apply(application, now.looks.theme, now.looks.text_size)
        if talk is None:
            return
        if now.sound != before.sound:
            talk.choose_devices(now.sound.microphone, now.sound.speaker)
            talk.set_duplex(now.sound.echo)
        if now.turns != before.turns:
            talk.configure(now.turns.settings)
            talk.set_hands_free(now.turns.hands_free)
            talk.set_patience(now.turns.patience)
        if now.voice.engine != before.voice.engine:
            old, self.synthesizer = self.synthesizer, self._synthesizer()
            talk.set_synthesizer(self.synthesizer)
            if old is not None:
                QTimer.singleShot(0, old.close)
        if now.voice != before.voice:
            talk.set_voice(now.voice.settings)
        if now.model.choice != before.model.choice:
            talk.replace_model(now.model.choice)
        kept, kept_before = (one.recording.model_dump(exclude={"corrections"}) for one in (now, before))
        if kept != kept_before:
            talk.record(None if now.recording.mode == "off" else self.sessions, now.recording.keep_days)
