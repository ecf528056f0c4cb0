"""The session facade: composes sound, endpointing, turns, model, voice and recording for a terminal or a window.

It sends every event to its listener and prints nothing. What is missing (devices, PortAudio, the echo canceller) is
reported as `Failed`, and the rest works: without sound the user types and reads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from assistant.audio.audio_check import AudioCheck, CheckResult
from assistant.audio.clips import ClipPlayer
from assistant.audio.devices import SoundSystem
from assistant.audio.echo import Canceller, Duplex, MicrophoneProcessor, Reference
from assistant.audio.endpointing import PATIENCE, Endpointer, EndpointingSettings, SileroDetector
from assistant.audio.preroll import PreRollBuffer
from assistant.audio.sound import OpenSound, Sound
from assistant.backend.model_process import ModelProcess
from assistant.backend.protocol import ModelChoice, Ready
from assistant.errors import AssistantError
from assistant.events import (
    Event,
    Failed,
    Samples,
    SpeechStarted,
    Spoken,
    State,
    StateChanged,
    UtteranceEnded,
)
from assistant.messages import MessageTyped, NewConversationRequested, RegenerateRequested, TurnSettings, UndoRequested
from assistant.sessions.writer import SessionWriter
from assistant.settings import Settings
from assistant.speech.playback import ReplyPlayer
from assistant.speech.synthesizer import Synthesizer, VoiceSettings
from assistant.turns.loop import ConversationLoop


@dataclass(frozen=True, slots=True)
class TalkSettings:
    """The user's choices.

    Attributes:
        microphone, speaker: names of devices; None for the system's defaults.
        patience: a key of `PATIENCE`.
        sessions: the folder of all sessions; None records nothing. `keep_days`: older ones are deleted at start.
        corrections: the file of all corrections of readings; None keeps them in the sessions alone.
        server: the module that the model's process runs.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    turns: TurnSettings = field(default_factory=TurnSettings)
    voice: VoiceSettings = field(default_factory=VoiceSettings)
    microphone: str | None = None
    speaker: str | None = None
    hands_free: bool = True
    patience: str = "normal"
    duplex: Duplex = Duplex.CANCEL
    sessions: Path | None = None
    keep_days: int | None = None
    corrections: Path | None = None
    server: str = "model.commands.server"

    @classmethod
    def of(cls, settings: Settings, sessions: Path | None, corrections: Path | None) -> Self:
        """Make them from the user's settings.

        Args:
            settings: of window or command line.
            sessions: the folder to record in, or None.
            corrections: the file of all corrections, or None.

        Returns:
            The settings of a conversation.
        """
        return cls(
            model=settings.model.choice,
            turns=settings.turns.settings,
            voice=settings.voice.settings,
            microphone=settings.sound.microphone,
            speaker=settings.sound.speaker,
            hands_free=settings.turns.hands_free,
            patience=settings.turns.patience,
            duplex=settings.sound.echo,
            sessions=sessions,
            keep_days=settings.recording.keep_days,
            corrections=corrections,
        )


Listener = Callable[[Event | Ready], None]


class Talk:
    """A conversation from start to end. Its methods may be called from any thread, and none of them blocks.

    Args:
        settings: the user's choices; the setters below change them while it runs.
        synthesizer: reads replies aloud; None: they are shown only. It belongs to the caller.
        listener: receives every event, on the conversation's thread; it must not block.
        sound: makes microphone and speaker; None: the devices that the settings name.
        earlier: the folder of earlier sessions: they are repaired, and expire as promised, even if nothing is
            recorded now.

    Attributes:
        clips: plays recordings through the replies' speaker.

    Raises:
        AssistantError: the speech detector is not installed, or a recording cannot be read.
    """

    def __init__(
        self,
        settings: TalkSettings,
        synthesizer: Synthesizer | None,
        listener: Listener,
        *,
        sound: OpenSound | None = None,
        earlier: Path | None = None,
    ) -> None:
        self.settings = settings
        self._listener = listener
        self._reference = Reference()
        self._background = ThreadPoolExecutor(1, "background")  # work that takes longer than a moment
        self._check: AudioCheck | None = None
        self._listening_in: Callable[[Samples], None] | None = None
        endpointer = Endpointer(SileroDetector(), EndpointingSettings(patience=PATIENCE[settings.patience]))
        endpointer.hands_free = settings.hands_free
        self.processor, trouble = _processor(self._reference, settings.duplex)
        self._pre_roll = PreRollBuffer()
        self.loop = ConversationLoop(
            endpointer, self.processor, self._hear, tap=self._take_input, settings=settings.turns
        )
        put: Callable[[Any], None] = self.loop.put  # calls, too: they are made on the conversation's thread
        devices = partial(SoundSystem, microphone=settings.microphone, speaker=settings.speaker)
        opened = (sound or devices)(
            put, put, changed=partial(put, self._take_available_speaker), reference=self._reference
        )
        self.sound: Sound = opened
        self.voice = ReplyPlayer(
            synthesizer, opened.output, put, settings=settings.voice, wake=lambda: put(self.voice.pump)
        )
        self.clips = ClipPlayer(put, put, free=lambda: self.quiet and self._check is None)
        self.clips.speaker = opened.output
        self._writer = SessionWriter(put, self._about, settings.corrections)
        self._pre_roll.record = self._writer.sound
        self.model = ModelProcess(settings.model, put, server=settings.server)
        if settings.sessions is None and earlier is not None:
            self._writer.maintain(earlier)
        self.record(settings.sessions, settings.keep_days)
        self.loop.attach(self.model, self.voice, self.clips)
        if trouble:
            put(Failed(None, trouble))

    def start(self) -> None:
        """Start listening."""
        self.loop.start()
        try:
            self.sound.start()
        except AssistantError as error:
            self.loop.put(Failed(None, str(error)))

    def close(self) -> None:
        """End everything, in an order that loses nothing. This one blocks.

        Raises:
            AssistantError: the file in place of the speaker cannot be written.
        """
        try:
            self.sound.close()
        finally:
            self.loop.close()
            self.voice.close()
            self._background.shutdown(cancel_futures=True)
            self.model.close()
            self._writer.close()

    @property
    def quiet(self) -> bool:
        """Whether no turn is in progress."""
        conversation = self.loop.conversation
        return conversation.state is State.IDLE and not conversation.user_speaking

    @property
    def folder(self) -> Path | None:
        """The session's folder, once recording has begun."""
        recorder = self._writer.recorder
        return recorder.folder if recorder else None

    # ---- the conversation

    def type(self, text: str) -> None:
        """The user typed a message."""
        self.loop.put(MessageTyped(text))

    def press(self) -> None:
        """The talk key went down."""
        self.loop.press()

    def release(self) -> None:
        """The talk key went up."""
        self.loop.release()

    def stop(self) -> None:
        """Stop listening, thinking, speaking, playback of a recording, and an audio check."""
        self.loop.stop()
        self.loop.put(self._end_others)

    def undo(self) -> None:
        """Forget the last turn; `TurnUndone` says which."""
        self.loop.put(UndoRequested())

    def again(self, text: str | None = None) -> None:
        """Answer the last message again, or `text` in its place; `TurnUndone` names the replaced turn."""
        self.loop.put(RegenerateRequested(text))

    def new(self) -> None:
        """Begin a new conversation, and with its first turn a new session."""
        self.loop.put(NewConversationRequested())
        self.loop.put(lambda: self._writer.begin_anew(self.loop.conversation.number))

    def correct(self, turn: int, emotion: str | None, *, consent: bool) -> None:
        """The user says how a spoken turn of this conversation really sounded, or takes it back (None).

        It goes into the session, if that is recorded, and with consent into `TalkSettings.corrections`.
        """

        def find() -> None:
            turns = self.loop.conversation.turns
            found = next((one for one in turns if one.number == turn and isinstance(one.message, Spoken)), None)
            if found is not None:
                self._writer.correct(found, emotion, consent=consent)

        self.loop.put(find)

    # ---- changes while it runs

    def set_hands_free(self, on: bool) -> None:
        """Switch hands-free listening."""
        self.loop.set_hands_free(on)

    def set_muted(self, on: bool) -> None:
        """Mute or unmute the microphone."""
        self.loop.set_muted(on)

    def configure(self, turns: TurnSettings) -> None:
        """Change who may interrupt, empathy, and timeouts."""
        self.loop.configure(turns)

    def set_patience(self, name: str) -> None:
        """Choose a key of `PATIENCE`."""
        endpointer, patience = self.loop.endpointer, PATIENCE[name]
        self.loop.put(lambda: setattr(endpointer, "settings", replace(endpointer.settings, patience=patience)))

    def set_duplex(self, duplex: Duplex) -> None:
        """Change the duplex mode; without a canceller it becomes half-duplex, and a `Failed` says why."""
        self._in_background(lambda: self._change_duplex(duplex))

    def choose_devices(self, microphone: str | None, speaker: str | None) -> None:
        """Choose devices by name; None is the system's default. The same names again look for new devices."""
        self.sound.choose(microphone, speaker)

    def set_voice(self, settings: VoiceSettings) -> None:
        """Change how replies are spoken, from the next sentence on."""
        self.loop.put(lambda: setattr(self.voice, "settings", settings))

    def set_synthesizer(self, synthesizer: Synthesizer | None) -> None:
        """Change the synthesizer, from the next sentence on; close the old one once no reply is being spoken."""
        self.loop.put(lambda: setattr(self.voice, "synthesizer", synthesizer))

    def replace_model(self, choice: ModelChoice) -> None:
        """Release the model and load another one; `ModelStatus` and `Ready` report progress."""
        self._in_background(lambda: self.model.replace(choice))

    def release_model(self) -> None:
        """Release the model; `ModelStatus` "stopped" comes once its memory is free."""
        self._in_background(self.model.close)

    def record(self, sessions: Path | None, keep_days: int | None = None) -> None:
        """Record in that folder from now on, or nothing (None); sessions older than `keep_days` are deleted."""
        self._writer.record(sessions, keep_days)

    # ---- audio check

    def listen_in(self, callback: Callable[[Samples], None] | None) -> None:
        """Pass every chunk of the microphone, mono 16 kHz, to `callback` on the conversation's thread; None ends it."""
        self.loop.put(lambda: setattr(self, "_listening_in", callback))

    def audio_check(self, notify: Callable[[CheckResult], None], *, seconds: float = 3.0, echo: bool = True) -> None:
        """Measure the echo with a soft noise, record the user for some seconds, and play that back.

        `notify` is called with every step on the conversation's thread, last with `Step.DONE`; `stop` ends it early.
        The turn in progress is stopped; nothing said meanwhile becomes a turn. Without a microphone no step ends:
        offer a way out.
        """

        def begin() -> None:
            self.loop.endpointer.drop()
            self.loop.deaf = True
            self._check = AudioCheck(self.processor, self.clips, notify, seconds=seconds, echo=echo)

        self.stop()
        self.loop.put(begin)

    def _in_background(self, work: Callable[[], None]) -> None:
        self._background.submit(work).add_done_callback(_raise)

    # ---- on the conversation's thread

    def _hear(self, event: Event | Ready) -> None:
        if isinstance(event, SpeechStarted | UtteranceEnded):
            self._end_others()
        if isinstance(event, SpeechStarted):
            endpointer = self.loop.endpointer
            self._pre_roll.begin(event.turn, endpointer.seconds - event.at + endpointer.settings.pre_roll)
        elif isinstance(event, StateChanged) and not event.user_speaking:
            self._pre_roll.end()
        self._writer.note(event, self.voice)
        self._listener(event)

    def _take_input(self, chunk: Samples) -> None:
        self._pre_roll.feed(chunk)
        if self._listening_in is not None:
            self._listening_in(chunk)
        if self._check is not None:
            self._check.feed(chunk)
            if self._check.over:
                self._end_others()

    def _end_others(self) -> None:
        """A turn ends playback of recordings and an audio check."""
        self.clips.end()
        if self._check is not None:
            check, self._check = self._check, None
            self.loop.deaf = False
            check.end()

    def _about(self) -> dict[str, Any]:
        choice = self.model.choice
        return {"model": choice.source, "device": choice.device, "quantize": choice.quantize}

    def _take_available_speaker(self) -> None:
        before, now = self.voice.speaker, self.sound.output
        if now is None:
            self.clips.end()
        self.voice.speaker = self.clips.speaker = now
        if before is not None and now is None:
            before.abort()

    def _change_duplex(self, duplex: Duplex) -> None:
        """On the background thread: loading a canceller takes a moment."""
        canceller = None
        if duplex is Duplex.CANCEL:
            try:
                canceller = Canceller()
            except AssistantError as error:
                duplex = Duplex.HALF
                self.loop.put(Failed(None, _without(error)))
        self.loop.put(lambda: self.processor.use(duplex, canceller))


def _raise(work: Future[None]) -> None:
    """Raise an unexpected error, so that it is logged; work cancelled at the end of the program is fine."""
    if not work.cancelled():
        work.result()


def _processor(reference: Reference, duplex: Duplex) -> tuple[MicrophoneProcessor, str]:
    """The input processor; without a canceller it is half-duplex, and the second value says why."""
    try:
        return MicrophoneProcessor(reference, duplex), ""
    except AssistantError as error:
        return MicrophoneProcessor(reference, Duplex.HALF), _without(error)


def _without(error: AssistantError) -> str:
    return f"{error} Until then you cannot interrupt by voice."
