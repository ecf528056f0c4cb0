"""Simulated rooms in virtual time: a whole assistant that hears its own voice come back from the walls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from assistant.audio.clips import ClipPlayer
from assistant.audio.echo import Duplex, MicrophoneProcessor, Reference
from assistant.audio.endpointing import Endpointer, SileroDetector
from assistant.audio.file_devices import FileSpeaker
from assistant.events import AudioChunk, Samples, SpeechStarted, State, StateChanged
from assistant.messages import MessageTyped
from assistant.speech.playback import ReplyPlayer
from assistant.speech.synthesizer import Synthesizer
from assistant.turns.loop import ConversationLoop
from tests.support.fakes import Clock, ScriptedModel

RATE = 16_000
BLOCK = 320
NOISE = 10 ** (-60 / 20)


@dataclass(frozen=True)
class Room:
    """How loud and how late the speaker comes back to the microphone, devices' latencies included."""

    echo_db: float
    delay_ms: int

    def impulses(self) -> tuple[np.ndarray, Samples]:
        """A direct path and forty reflections that die away (60 dB in 0.3 s): delays in samples, and gains."""
        rng = np.random.default_rng(self.delay_ms)
        late = np.sort(rng.integers(30, 2400, 40))
        gains = 0.5 * rng.choice([-1.0, 1.0], 40) * 10 ** (-3 * late / (0.3 * RATE)) * rng.uniform(0.3, 1, 40)
        taps = np.concatenate([[0], late]) + self.delay_ms * RATE // 1000
        return taps, (10 ** (self.echo_db / 20) * np.concatenate([[1.0], gains])).astype(np.float32)


class _Speaker(FileSpeaker):
    rate = RATE
    holds = 0

    def pause(self) -> None:
        super().pause()
        self.holds += 1


class RoomStage:
    """An assistant with real ears, a real voice and a scripted model in such a room."""

    def __init__(self, room: Room, synthesizer: Synthesizer, reply: str, duplex: Duplex = Duplex.CANCEL) -> None:
        self.clock = Clock()
        self.started: list[float] = []
        self.spoken_seconds = 0.0
        self.state = State.IDLE
        self.speaker = _Speaker()
        self.reference = Reference()
        self.line = MicrophoneProcessor(self.reference, duplex)
        self.endpointer = Endpointer(SileroDetector())
        self.tap: Callable[[Samples], None] = lambda _: None
        self.loop = ConversationLoop(
            self.endpointer, self.line, self._notified, tap=lambda samples: self.tap(samples), clock=self.clock
        )
        voice = ReplyPlayer(synthesizer, self.speaker, self.loop.put, threaded=False)
        self._model = ScriptedModel([reply], self.clock, self.loop.put, delay=0.1)
        self.clips = ClipPlayer(self.loop.put, self.loop.put, lambda: self.state is State.IDLE)
        self.clips.speaker = self.speaker
        self.loop.attach(self._model, voice, self.clips)
        self._taps, self._gains = room.impulses()
        self._past = np.zeros(self._taps[-1] + BLOCK, np.float32)
        self._noise = np.random.default_rng(1)

    def _notified(self, event: object) -> None:
        if isinstance(event, SpeechStarted):
            self.started.append(self.clock.now)
        elif isinstance(event, StateChanged):
            self.state = event.state

    def run(self, seconds: float, user: Samples | None = None) -> None:
        """Let time pass while the user says something; with nothing to say the assistant is kept talking."""
        said = np.zeros(round(seconds * RATE), np.float32)
        if user is not None:
            said[: len(user)] = user[: len(said)]
        for at in range(0, len(said) - BLOCK + 1, BLOCK):
            if self.state is State.IDLE and user is None:
                self.loop.put(MessageTyped("Go on."))
            self._step(said[at : at + BLOCK])

    def _step(self, said: Samples) -> None:
        played = self.speaker.render(BLOCK)
        self.spoken_seconds += BLOCK / RATE if self.state is State.SPEAKING else 0.0
        self._past = np.concatenate([self._past[BLOCK:], played])
        first = len(self._past) - BLOCK - self._taps
        echo = self._gains @ self._past[first[:, None] + np.arange(BLOCK)]
        noise = NOISE * self._noise.standard_normal(BLOCK)
        heard = np.clip((said + echo + noise) * 32768, -32768, 32767).astype(np.int16)
        self.reference.played(played, RATE)
        self.reference.recorded(self.clock.now)
        self.loop.put(AudioChunk(heard, RATE, self.clock.now))
        self.clock.now += BLOCK / RATE
        self._model.run()
        self.loop.empty()
        self.loop.tick()
        self.loop.empty()
