"""Scripted stand-ins at the true boundaries (microphone, model, speaker, synthesizer) and a clock that tests move."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from assistant.audio.clips import ClipPlayer
from assistant.audio.endpointing import BLOCK, Endpointer, EndpointingSettings
from assistant.events import AudioChunk, Event, Samples, Spoken, State
from assistant.messages import (
    Ask,
    InboxEvent,
    ModelDone,
    ModelReading,
    ModelText,
    ModelTranscript,
    Prepare,
    TurnSettings,
)
from assistant.speech.playback import ReplyPlayer
from assistant.speech.sentences import Sentence
from assistant.speech.synthesizer import Mood, Speech, Voice, VoiceSettings, Word
from assistant.turns.loop import ConversationLoop

RATE = 16_000
PLAIN, CALM = VoiceSettings(), Mood()


HANG_SECONDS = 300.0
"""What takes longer hangs, on however busy a machine."""


def eventually(happened: Callable[[], bool], seconds: float = HANG_SECONDS) -> None:
    """Wait until `happened()`, where a thread or the sound stack takes its time."""
    ceiling = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ceiling, "it did not happen"
        time.sleep(0.01)


class Clock:
    """Virtual time in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class LoudnessDetector:
    """Loud blocks are speech: scripts speak with tones."""

    def probability(self, block: Samples) -> float:
        return float(np.sqrt(np.mean(np.square(block))) > 0.05)

    def reset(self) -> None:
        pass


class PlainProcessor:
    """The chunk as it is: 16 kHz, no echo."""

    def take(self, chunk: AudioChunk, *, speaking: bool) -> tuple[Samples, Samples]:
        samples = chunk.samples.astype(np.float32) / 32768
        return samples, samples


class VirtualSpeaker:
    """Plays in virtual time; keeps every sample that was heard."""

    rate = RATE

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None  # playing since
        self._before = 0  # samples heard before that
        self.written: list[Samples] = []
        self.heard: list[Samples] = []
        self.held: list[tuple[float, float]] = []  # when it was paused, and when it went on

    def write(self, samples: Samples) -> None:
        if self._since is None:
            self._since = self._clock.now
        elif self.played() >= sum(map(len, self.written)):
            self._before, self._since = self.played(), self._clock.now
        self.written.append(samples)

    def played(self) -> int:
        elapsed = 0.0 if self._since is None else self._clock.now - self._since
        return min(self._before + round(elapsed * RATE), sum(map(len, self.written)))

    def pause(self) -> None:
        self._before, self._since = self.played(), None
        self._held_at = self._clock.now

    def resume(self) -> None:
        self._since = self._clock.now
        self.held.append((self._held_at, self._clock.now))

    def abort(self) -> int:
        played = self.played()
        if self.written:
            self.heard.append(np.concatenate(self.written)[:played])
        self.written, self._before, self._since = [], 0, None
        return played


class ToneSynthesizer:
    """Every word is 0.3 s of sound, so positions are easy to predict. It speaks within the call."""

    seconds_per_word = 0.3

    def __init__(self) -> None:
        self.spoken: list[str] = []

    def speak(self, sentence: Sentence, settings: VoiceSettings = PLAIN, mood: Mood = CALM) -> Speech:
        self.spoken.append(sentence.text)
        size, words, at = int(self.seconds_per_word * RATE), [], 0
        for number, word in enumerate(sentence.text.split()):
            start = sentence.text.index(word, at)
            at = start + len(word)
            words.append(Word(start, at, number * size))
        samples = np.full(size * len(words), 0.2, np.float32)
        return Speech(samples, RATE, tuple(words), sentence)

    def voices(self) -> list[Voice]:
        return []

    def close(self) -> None:
        pass


@dataclass(eq=False)
class ScriptedModel:
    """Answers ask number n with `replies[n - 1]` (the last one for all that follow), after `delay` virtual seconds."""

    replies: Sequence[str]
    clock: Clock
    put: Callable[[InboxEvent], None]
    delay: float = 0.3
    asks: list[Ask] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    prepared: int = 0
    _due: list[tuple[float, InboxEvent]] = field(default_factory=list)

    def ask(self, ask: Ask) -> None:
        self.asks.append(ask)
        reply = self.replies[min(len(self.asks), len(self.replies)) - 1]
        at = self.clock.now + self.delay
        if isinstance(ask.message, Spoken):
            self._due += [(at - self.delay / 2, ModelReading(ask.ask, None)), (at, ModelTranscript(ask.ask, "words"))]
        self._due += [(at + 0.02 * n, ModelText(ask.ask, f"{word} ")) for n, word in enumerate(reply.split())]
        self._due.append((self._due[-1][0], ModelDone(ask.ask, {"encode_ms": 1.0})))

    def prepare(self, prepare: Prepare) -> None:
        self.prepared += 1

    def cancel(self, ask: int) -> None:
        self.cancelled.add(ask)
        self._due = [(at, what) for at, what in self._due if getattr(what, "ask", 0) > ask]

    def close(self) -> None:
        pass

    def run(self) -> None:
        ready = [what for at, what in self._due if at <= self.clock.now]
        self._due = [(at, what) for at, what in self._due if at > self.clock.now]
        for what in ready:
            self.put(what)


class Stage:
    """A whole assistant in virtual time: `say` and `wait` move the clock, block by block."""

    def __init__(self, *replies: str, ear_settings: EndpointingSettings | None = None, **settings: Any) -> None:
        self.clock = Clock()
        self.events: list[Event] = []
        self.speaker = VirtualSpeaker(self.clock)
        self.loop = ConversationLoop(
            Endpointer(LoudnessDetector(), ear_settings),
            PlainProcessor(),
            self.events.append,
            settings=TurnSettings(**settings),
            clock=self.clock,
        )
        self.synthesizer = ToneSynthesizer()
        self.voice = ReplyPlayer(self.synthesizer, self.speaker, self.loop.put, threaded=False)
        self.model = ScriptedModel(replies or ("Yes.",), self.clock, self.loop.put)
        self.clips = ClipPlayer(self.loop.put, self.events.append, lambda: self.loop.conversation.state is State.IDLE)
        self.clips.speaker = self.speaker
        self.loop.attach(self.model, self.voice, self.clips)
        self._chunks = 0

    def sound(self, level: float, seconds: float) -> None:
        for _ in range(round(seconds * RATE / BLOCK)):
            tone = np.full(BLOCK, level * 32767, np.int16)
            self.loop.put(AudioChunk(tone, RATE, self._chunks * BLOCK / RATE))
            self._chunks += 1
            self.clock.now += BLOCK / RATE
            self.model.run()
            self.loop.empty()
            self.loop.tick()
            self.loop.empty()

    def say(self, seconds: float) -> None:
        self.sound(0.3, seconds)

    def wait(self, seconds: float) -> None:
        self.sound(0.0, seconds)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]
