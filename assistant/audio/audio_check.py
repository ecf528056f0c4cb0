"""The audio check: how much of the assistant's voice the microphone picks up, and how the user sounds.

A soft noise is played and looked for in what the microphone hears; then the user speaks, and hears it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from assistant.audio.clips import ClipPlayer
from assistant.audio.echo import Echo, MicrophoneProcessor
from assistant.events import SAMPLE_RATE, Samples

_ROOM_SECONDS, _NOISE_SECONDS, _AFTER_SECONDS = 1.0, 2.5, 0.5
_NOISE_LEVEL = 0.1  # RMS: about as loud as a reply
_NONE_DB, _STRONG_DB = -40.0, -30.0
_CEILING_SECONDS = 10.0  # the check goes on when a speaker does not play


class EchoStrength(StrEnum):
    """Strength of the echo: none (headphones), cancelled, or too strong."""

    NONE = "none"
    SOME = "some"
    STRONG = "strong"


class Step(StrEnum):
    """Steps of the check: measure the room, play noise, record the user, play the recording, done."""

    ROOM = "room"
    NOISE = "noise"
    SPEAK = "speak"
    LISTEN = "listen"
    DONE = "done"


@dataclass(frozen=True, slots=True, eq=False)
class CheckResult:
    """Result so far.

    Attributes:
        seconds_left: of this step, as far as that is known.
        echo: decibels before and after cancelling; None until measured, or where nothing could be played.
        recording: what the user said, mono 16 kHz.
        level: its RMS in decibels of full scale; below -60 the microphone is as good as silent.
    """

    step: Step
    seconds_left: float = 0.0
    echo: Echo | None = None
    recording: Samples | None = None

    @property
    def strength(self) -> EchoStrength | None:
        """The echo as a category."""
        if self.echo is None:
            return None
        if self.echo.before < _NONE_DB:
            return EchoStrength.NONE
        return EchoStrength.STRONG if self.echo.after > _STRONG_DB else EchoStrength.SOME

    @property
    def level(self) -> float | None:
        """See above."""
        if self.recording is None or not len(self.recording):
            return None
        return float(max(-120.0, 10 * np.log10(np.mean(np.square(self.recording)) + 1e-12)))


class AudioCheck:
    """One check. Its owner feeds it the microphone's chunks until `over`; endpointing is off meanwhile.

    Args:
        line: measures the echo.
        clips: plays.
        told: told of every step and, while one lasts, of the time that is left.
        seconds: of the recording; 0 records nothing.
        echo: whether to measure it.
    """

    def __init__(
        self,
        processor: MicrophoneProcessor,
        clips: ClipPlayer,
        notify: Callable[[CheckResult], None],
        *,
        seconds: float = 3.0,
        echo: bool = True,
    ) -> None:
        self.over = False
        self._processor, self._clips, self._notified = processor, clips, notify
        self._wanted_seconds, self._wanted_echo = seconds, echo
        self._echo: Echo | None = None
        self._recording: Samples | None = None
        self._chunk: Samples = np.zeros(0, np.float32)
        self._steps = self._walk()

    def feed(self, chunk: Samples) -> None:
        """Take the microphone's samples, mono 16 kHz."""
        self._chunk = chunk
        if next(self._steps, None) is None:
            self.end()

    def end(self) -> None:
        """End the check, finished or not."""
        if not self.over:
            self.over = True
            self._notify(Step.DONE)

    def _notify(self, step: Step, left: float = 0.0) -> None:
        self._notified(CheckResult(step, left, self._echo, self._recording))

    def _walk(self) -> Iterator[bool]:
        """One yield for every chunk."""
        if self._wanted_echo:
            self._processor.forget_echo()
            for _ in self._hear(Step.ROOM, _ROOM_SECONDS):
                yield True
            self._clips.start(_noise(), SAMPLE_RATE)
            yield from self._while_playing(Step.NOISE)
            for _ in self._hear(Step.NOISE, _AFTER_SECONDS):
                yield True
            self._echo = self._processor.echo
        if self._wanted_seconds:
            parts = []
            for chunk in self._hear(Step.SPEAK, self._wanted_seconds):
                parts.append(chunk)
                yield True
            self._recording = np.concatenate(parts)
            self._clips.start(self._recording, SAMPLE_RATE)
            yield from self._while_playing(Step.LISTEN)

    def _hear(self, step: Step, seconds: float) -> Iterator[Samples]:
        heard = 0
        while heard < seconds * SAMPLE_RATE:
            self._notify(step, seconds - heard / SAMPLE_RATE)
            yield self._chunk
            heard += len(self._chunk)

    def _while_playing(self, step: Step) -> Iterator[bool]:
        waited = 0
        while self._clips.playing and waited < (self._clips.duration + _CEILING_SECONDS) * SAMPLE_RATE:
            self._notify(step, self._clips.duration - self._clips.position)
            yield True
            waited += len(self._chunk)
        self._clips.end()


def _noise() -> Samples:
    """Pink noise that swells and fades like speech."""
    rng = np.random.default_rng(0)
    length = round(_NOISE_SECONDS * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    shape = np.where((frequencies > 100) & (frequencies < 7000), 1 / np.sqrt(np.maximum(frequencies, 100)), 0)
    noise = np.fft.irfft(spectrum * shape, length)
    noise *= 0.2 + np.sin(np.pi * 2 * np.arange(length) / SAMPLE_RATE) ** 2
    noise *= np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.1 * SAMPLE_RATE))
    loud: Samples = (noise * _NOISE_LEVEL / np.sqrt(np.mean(np.square(noise)))).astype(np.float32)
    return np.clip(loud, -1, 1)
