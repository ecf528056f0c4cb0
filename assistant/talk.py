"""The whole conversation, composed: sound, ears, turns, model, voice and recording, for a terminal or a window.

It tells its listener of every event and prints nothing. What is missing (devices, PortAudio, the echo canceller)
is told as `Failed`, and the rest goes on: without sound one types and reads.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from assistant.assistant import Assistant
from assistant.ears import PATIENCE, RATE, Ears, EarSettings, SpeechJudge
from assistant.errors import AssistantError
from assistant.events import (
    AudioChunk,
    Event,
    Failed,
    Samples,
    SpeechStarted,
    State,
    StateChanged,
    Transcribed,
    TurnEnded,
    UtteranceEnded,
)
from assistant.inference import ModelProcess
from assistant.line import Duplex, MicrophoneLine, Reference
from assistant.recorder import Recorder
from assistant.signals import ModelChoice, Ready, TurnSettings, TypedIn
from assistant.sound import SoundSystem
from assistant.speech import Synthesizer, VoiceSettings
from assistant.voice import ReplyVoice, Speaker
from assistant.wav import FileSound

_RECALLED_SECONDS = 1.5  # of sound kept for the journal: speech is known to be speech only after it began


@dataclass(frozen=True, slots=True)
class TalkSettings:
    """What the user chooses.

    Attributes:
        microphone, speaker: names of devices; None for the system's defaults.
        patience: a key of `PATIENCE`.
        sessions: the folder of all sessions; None records nothing.
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
    server: str = "model.server"


Listener = Callable[[Event | Ready], None]


class Talk:
    """A conversation from its start to its end.

    Args:
        settings: what the user chose.
        synthesizer: the voice; None: replies are read. It belongs to the caller.
        listener: told of every event, on the conversation's thread; it must not block.
        heard, spoken: recordings in the microphone's place, and a WAV in the speaker's; with either, no device is
            opened.

    Raises:
        AssistantError: the judge of speech is not installed, or a recording cannot be read.
    """

    def __init__(
        self,
        settings: TalkSettings,
        synthesizer: Synthesizer | None,
        listener: Listener,
        *,
        heard: Iterable[Path] = (),
        spoken: Path | None = None,
    ) -> None:
        self.settings = settings
        self._listener = listener
        self._reference = Reference()
        ears = Ears(SpeechJudge(), EarSettings(patience=PATIENCE[settings.patience]))
        ears.hands_free = settings.hands_free
        self.line, trouble = _line(self._reference, settings.duplex)
        self._tape = _Tape(self.line)
        self.assistant = Assistant(ears, self._tape, self._hear, settings=settings.turns)
        put: Callable[[Any], None] = self.assistant.put  # calls, too: they are made on the conversation's thread
        heard = tuple(heard)
        self.sound: SoundSystem | FileSound
        if heard or spoken:
            self.sound = FileSound(put, reference=self._reference, heard=heard, spoken=spoken)
        else:
            names = {"microphone": settings.microphone, "speaker": settings.speaker}
            changed = partial(put, self._take_what_speaker_there_is)
            self.sound = SoundSystem(put, put, changed=changed, reference=self._reference, **names)
        self.voice = ReplyVoice(
            synthesizer, self._speaker(), put, settings=settings.voice, wake=lambda: put(self.voice.pump)
        )
        self._scribe = None if settings.sessions is None else _Scribe(settings, put)
        self._tape.record = self._scribe.sound if self._scribe else None
        self.model = ModelProcess(settings.model, put, server=settings.server)
        self.assistant.attach(self.model, self.voice)
        if trouble:
            put(Failed(None, trouble))

    def start(self) -> None:
        """Begin to listen."""
        self.assistant.start()
        try:
            self.sound.start()
        except AssistantError as error:
            self.assistant.put(Failed(None, str(error)))

    def type(self, text: str) -> None:
        """The user typed a message."""
        self.assistant.put(TypedIn(text))

    def close(self) -> None:
        """End everything, in the order in which nothing is lost.

        Raises:
            AssistantError: the file in the speaker's place cannot be written.
        """
        try:
            self.sound.close()
        finally:
            self.assistant.close()
            self.voice.close()
            self.model.close()
            if self._scribe is not None:
                self._scribe.close()

    @property
    def quiet(self) -> bool:
        """Whether no turn is under way."""
        conversation = self.assistant.conversation
        return conversation.state is State.IDLE and not conversation.user_speaking

    @property
    def folder(self) -> Path | None:
        """Where the session is recorded."""
        return self._scribe.recorder.folder if self._scribe else None

    # ---- on the conversation's thread

    def _hear(self, event: Event | Ready) -> None:
        if isinstance(event, SpeechStarted):
            ears = self.assistant.ears
            self._tape.begin(event.turn, ears.seconds - event.at + ears.settings.pre_roll)
        elif isinstance(event, StateChanged) and not event.user_speaking:
            self._tape.end()
        if self._scribe is not None:
            self._scribe.note(event, self.voice)
        self._listener(event)

    def _speaker(self) -> Speaker | None:
        """The speaker, unless its device is away: then replies are read."""
        if isinstance(self.sound, FileSound):
            return self.sound.speaker
        return None if self.sound.speaker.away else self.sound.speaker

    def _take_what_speaker_there_is(self) -> None:
        before, self.voice.speaker = self.voice.speaker, self._speaker()
        if before is not None and self.voice.speaker is None:
            before.abort()


def _line(reference: Reference, duplex: Duplex) -> tuple[MicrophoneLine, str]:
    """The line; without a canceller it is half-duplex, and the second value says why."""
    try:
        return MicrophoneLine(reference, duplex), ""
    except AssistantError as error:
        return MicrophoneLine(reference, Duplex.HALF), f"{error} Until then nobody can interrupt by voice."


class _Tape:
    """Remembers the last moments of the line, and hands on what the user says while they say it."""

    def __init__(self, line: MicrophoneLine) -> None:
        self.record: Callable[[int, Samples], None] | None = None
        self._line = line
        self._past: deque[Samples] = deque()
        self._turn: int | None = None

    def take(self, chunk: AudioChunk, *, speaking: bool) -> tuple[Samples, Samples]:
        raw, judged = self._line.take(chunk, speaking=speaking)
        self._past.append(raw)
        while sum(map(len, self._past)) - len(self._past[0]) > _RECALLED_SECONDS * RATE:
            self._past.popleft()
        if self._turn is not None and self.record is not None:
            self.record(self._turn, raw)
        return raw, judged

    def begin(self, turn: int, seconds: float) -> None:
        """The user has been speaking for so long."""
        self._turn = turn
        if self.record is not None and self._past:
            self.record(turn, np.concatenate(list(self._past))[-round(seconds * RATE) :])

    def end(self) -> None:
        """The user has stopped."""
        self._turn = None


class _Scribe:
    """Writes the session on a thread of its own: a slow disk keeps nobody waiting."""

    def __init__(self, settings: TalkSettings, report: Callable[[Failed], None]) -> None:
        assert settings.sessions is not None, "the caller looks first"
        model = settings.model
        about = {"model": model.source, "device": model.device, "quantize": model.quantize}
        self.recorder = Recorder(settings.sessions, report, about=about)
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scribe")
        self._thread.start()

    def sound(self, turn: int, samples: Samples) -> None:
        self._orders.put(lambda: self.recorder.sound(turn, samples))

    def note(self, event: Event | Ready, voice: ReplyVoice) -> None:
        """What of an event belongs on disk."""
        recorder = self.recorder
        if isinstance(event, UtteranceEnded):
            self._orders.put(lambda: recorder.utterance(event.turn, event.message))
        elif isinstance(event, TurnEnded):
            audio, rate = (voice.heard_audio, voice.heard_rate) if event.turn.heard else (None, RATE)
            self._orders.put(lambda: recorder.ended(event, audio, rate))
        elif isinstance(event, Transcribed):
            # It may come after the turn's end.
            values = {"turn": event.turn, "text": event.text, "language": event.language}
            self._orders.put(lambda: recorder.note("transcribed", **values))
        elif isinstance(event, StateChanged) and not event.user_speaking:
            self._orders.put(recorder.dropped)
        elif isinstance(event, Ready):
            self._orders.put(lambda: recorder.note("model_ready", **event.about))
        elif isinstance(event, Failed):
            self._orders.put(lambda: recorder.note("failed", turn=event.turn, message=event.message))

    def close(self) -> None:
        self._orders.put(None)
        self._thread.join()
        self.recorder.close()

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()
