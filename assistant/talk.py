"""The whole conversation, composed: sound, ears, turns, model, voice and recording, for a terminal or a window.

It tells its listener of every event and prints nothing. What is missing (devices, PortAudio, the echo canceller)
is told as `Failed`, and the rest goes on: without sound one types and reads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from assistant.speech.playback import ReplyPlayer
from assistant.speech.synthesizer import Synthesizer, VoiceSettings
from assistant.turns.loop import ConversationLoop


@dataclass(frozen=True, slots=True)
class TalkSettings:
    """What the user chooses.

    Attributes:
        microphone, speaker: names of devices; None for the system's defaults.
        patience: a key of `PATIENCE`.
        sessions: the folder of all sessions; None records nothing. `keep_days`: older ones are deleted at the start.
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


Listener = Callable[[Event | Ready], None]


class Talk:
    """A conversation from its start to its end. Its methods may be called from any thread, and none of them waits.

    Args:
        settings: what the user chose; the setters below change it while it runs.
        synthesizer: the voice; None: replies are read. It belongs to the caller.
        listener: told of every event, on the conversation's thread; it must not block.
        sound: makes microphone and speaker; None: the devices that the settings name.
        earlier: where sessions lie that were recorded earlier: what they were promised holds, even if nothing is
            recorded now.

    Attributes:
        clips: plays recordings through the replies' speaker.

    Raises:
        AssistantError: the judge of speech is not installed, or a recording cannot be read.
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
        self._errands = ThreadPoolExecutor(1, "errands")  # what takes longer than a moment
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
        """Begin to listen."""
        self.loop.start()
        try:
            self.sound.start()
        except AssistantError as error:
            self.loop.put(Failed(None, str(error)))

    def close(self) -> None:
        """End everything, in the order in which nothing is lost. This one waits.

        Raises:
            AssistantError: the file in the speaker's place cannot be written.
        """
        try:
            self.sound.close()
        finally:
            self.loop.close()
            self.voice.close()
            self._errands.shutdown(cancel_futures=True)
            self.model.close()
            self._writer.close()

    @property
    def quiet(self) -> bool:
        """Whether no turn is under way."""
        conversation = self.loop.conversation
        return conversation.state is State.IDLE and not conversation.user_speaking

    @property
    def folder(self) -> Path | None:
        """Where the session is recorded, once that has begun."""
        recorder = self._writer.recorder
        return recorder.folder if recorder else None

    # ---- the conversation

    def type(self, text: str) -> None:
        """The user typed a message."""
        self.loop.put(MessageTyped(text))

    def press(self) -> None:
        """The talk key goes down."""
        self.loop.press()

    def release(self) -> None:
        """The talk key goes up."""
        self.loop.release()

    def stop(self) -> None:
        """Stop listening, thinking, speaking, a recording that is being played, and a check."""
        self.loop.stop()
        self.loop.put(self._end_others)

    def undo(self) -> None:
        """Forget the last turn: `TurnUndone` tells which."""
        self.loop.put(UndoRequested())

    def again(self, text: str | None = None) -> None:
        """Answer the last message once more, or `text` in its place; `TurnUndone` tells of the turn that goes."""
        self.loop.put(RegenerateRequested(text))

    def new(self) -> None:
        """Begin a new conversation, and with its first turn a new session."""
        self.loop.put(NewConversationRequested())
        self.loop.put(lambda: self._writer.begin_anew(self.loop.conversation.number))

    def correct(self, turn: int, emotion: str | None, *, consent: bool) -> None:
        """The user says how that spoken turn of this conversation really sounded, or takes it back (None).

        It stands in the session, if that is recorded; with consent also in `TalkSettings.corrections`.
        """

        def find() -> None:
            turns = self.loop.conversation.turns
            found = next((one for one in turns if one.number == turn and isinstance(one.message, Spoken)), None)
            if found is not None:
                self._writer.correct(found, emotion, consent=consent)

        self.loop.put(find)

    # ---- what can be chosen while it runs

    def set_hands_free(self, on: bool) -> None:
        """Whether the ears open by themselves."""
        self.loop.set_hands_free(on)

    def set_muted(self, on: bool) -> None:
        """Whether the microphone is ignored."""
        self.loop.set_muted(on)

    def configure(self, turns: TurnSettings) -> None:
        """Who may interrupt, empathy, ceilings."""
        self.loop.configure(turns)

    def set_patience(self, name: str) -> None:
        """A key of `PATIENCE`."""
        endpointer, patience = self.loop.endpointer, PATIENCE[name]
        self.loop.put(lambda: setattr(endpointer, "settings", replace(endpointer.settings, patience=patience)))

    def set_duplex(self, duplex: Duplex) -> None:
        """How it keeps from hearing itself; without a canceller it becomes deaf while it speaks, and says why."""
        self._errand(lambda: self._change_duplex(duplex))

    def choose_devices(self, microphone: str | None, speaker: str | None) -> None:
        """Devices by name, None for the system's default. The same names again look for devices that are new."""
        self.sound.choose(microphone, speaker)

    def set_voice(self, settings: VoiceSettings) -> None:
        """How replies are spoken, from the next sentence on."""
        self.loop.put(lambda: setattr(self.voice, "settings", settings))

    def set_synthesizer(self, synthesizer: Synthesizer | None) -> None:
        """Who speaks, from the next sentence on; the one before may be closed once no reply is being spoken."""
        self.loop.put(lambda: setattr(self.voice, "synthesizer", synthesizer))

    def replace_model(self, choice: ModelChoice) -> None:
        """Let the model go and load another one: `ModelStatus` and `Ready` tell how it goes."""
        self._errand(lambda: self.model.replace(choice))

    def release_model(self) -> None:
        """Let the model go: `ModelStatus` "stopped" comes once its memory is free."""
        self._errand(self.model.close)

    def record(self, sessions: Path | None, keep_days: int | None = None) -> None:
        """Record below that folder from now on, or nothing (None); sessions older than `keep_days` are deleted."""
        self._writer.record(sessions, keep_days)

    # ---- microphone and speaker tried out

    def listen_in(self, callback: Callable[[Samples], None] | None) -> None:
        """Hand every chunk of the microphone, mono 16 kHz, to `callback` on the conversation's thread; None ends it."""
        self.loop.put(lambda: setattr(self, "_listening_in", callback))

    def audio_check(self, notify: Callable[[CheckResult], None], *, seconds: float = 3.0, echo: bool = True) -> None:
        """Measure the echo with a soft noise, record the user for some seconds, and play that back.

        `notify` hears of every step on the conversation's thread, lastly of `Step.DONE`; `stop` ends it early. The
        turn under way is stopped; nothing said meanwhile becomes a turn. Without a microphone no step ends: offer
        a way out.
        """

        def begin() -> None:
            self.loop.endpointer.drop()
            self.loop.deaf = True
            self._check = AudioCheck(self.processor, self.clips, notify, seconds=seconds, echo=echo)

        self.stop()
        self.loop.put(begin)

    def _errand(self, work: Callable[[], None]) -> None:
        self._errands.submit(work).add_done_callback(_raise)

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
        """What is no turn makes way for one."""
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
        """On the errands' thread: a canceller takes a moment to be loaded."""
        canceller = None
        if duplex is Duplex.CANCEL:
            try:
                canceller = Canceller()
            except AssistantError as error:
                duplex = Duplex.HALF
                self.loop.put(Failed(None, _without(error)))
        self.loop.put(lambda: self.processor.use(duplex, canceller))


def _raise(errand: Future[None]) -> None:
    """Let what an errand did not expect be logged; that the end of the program came first is no trouble."""
    if not errand.cancelled():
        errand.result()


def _processor(reference: Reference, duplex: Duplex) -> tuple[MicrophoneProcessor, str]:
    """The line; without a canceller it is half-duplex, and the second value says why."""
    try:
        return MicrophoneProcessor(reference, duplex), ""
    except AssistantError as error:
        return MicrophoneProcessor(reference, Duplex.HALF), _without(error)


def _without(error: AssistantError) -> str:
    return f"{error} Until then nobody can interrupt by voice."
