"""Resampling and echo cancellation: the microphone's chunks become mono 16 kHz without the assistant's voice.

The assistant hears itself through the room. WebRTC's audio processing (AEC3, from the livekit package) is told
what is played and takes it out of what is recorded, in frames of 10 ms. Only speech detection gets the result,
and only while the assistant speaks: cancelling costs the user's voice some of its colour, and the model is to hear
the microphone as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import soxr

from assistant.errors import AssistantError
from assistant.events import SAMPLE_RATE, AudioChunk, Samples

FRAME = 160
"""Samples of a frame, 10 ms: what the canceller takes."""

_HANGOVER_SECONDS = 0.5  # room and devices sound on for a moment after the last sample was played
_KEPT_BLOCKS = 3000  # of what is played, if nobody takes it
_SCORED_SECONDS = 1.0  # of the own voice that a score needs at least
_PLAYED_POWER = 1e-6  # -60 dBFS: below it the speaker is silent
_WINDOW_FRAMES = 50
_AUDIBLE_POWER = 1e-5  # -50 dBFS
_VOICED_POWER = 1e-3  # -30 dBFS: loud enough to learn from
_LOUDER = 40.0  # than the echo, by 16 dB: then it is somebody else
_SURE_FRAMES = 30
_COMPARED_FRAMES, _LATEST_FRAMES = 75, 60  # of sound that is compared; the latest that an echo may come
_COMPARE_FRAMES, _LEAST_FRAMES = 10, 10  # how often; and how much of it must be loud
_TRANSFORMED = 1 << 15
_VOICE_HZ = (200.0, 3500.0)
_FAINT_PEAK, _CLEAR_PEAK = 12.0, 16.0  # of the correlation, by its root mean square over all delays
_REMEMBERED = 80  # comparisons for which a clear echo is remembered, 8 s of the own voice


class Duplex(StrEnum):
    """How the assistant avoids hearing itself: cancel its voice, ignore the microphone while it speaks, or nothing."""

    CANCEL = "cancel"
    HALF = "half"
    OPEN = "open"


class Reference:
    """What was played, aligned with the microphone's chunks. Two threads fill it, one empties it.

    However late a chunk is processed, it is paired with what was played until it was recorded, and no more.
    """

    def __init__(self) -> None:
        self._blocks: deque[tuple[Samples, int] | float] = deque(maxlen=_KEPT_BLOCKS)

    def played(self, block: Samples, rate: int) -> None:
        """Mono samples were given to the speaker, silence included."""
        self._blocks.append((block, rate))

    def recorded(self, start: float) -> None:
        """The chunk with that start was recorded."""
        self._blocks.append(start)

    def until(self, start: float) -> Iterator[tuple[Samples, int]]:
        """What was played until the chunk with that start was recorded."""
        while self._blocks:
            block = self._blocks.popleft()
            if not isinstance(block, float):
                yield block
            elif block >= start:
                return


class Resampler:
    """Resamples a mono stream of any rate to 16 kHz, seamlessly across blocks."""

    def __init__(self) -> None:
        self._rate = SAMPLE_RATE
        self._stream: Any = None

    def __call__(self, samples: Samples, rate: int) -> Samples:
        """Resample the next samples. The filter works in blocks: it delays up to 40 ms, 120 ms at 8 kHz."""
        if rate != self._rate:
            self._rate = rate
            self._stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        if self._stream is None:
            return samples
        resampled: Samples = self._stream.resample_chunk(samples)
        return resampled


class Canceller:
    """WebRTC's echo canceller on frames of `FRAME` samples.

    Raises:
        AssistantError: the livekit package is missing or does not run here.
    """

    def __init__(self) -> None:
        try:
            from livekit.rtc.apm import AudioProcessingModule
            from livekit.rtc.audio_frame import AudioFrame
        except (ImportError, OSError) as error:
            raise AssistantError(f"Echo cancellation cannot be loaded ({error}): use headphones.") from error
        self._frame = AudioFrame
        self._module = AudioProcessingModule(echo_cancellation=True)

    def play(self, frame: Samples) -> None:
        """Take what goes to the speaker."""
        self._module.process_reverse_stream(self._coded(frame))

    def clean(self, frame: Samples) -> Samples:
        """The recorded frame without the echo of what was played."""
        coded = self._coded(frame)
        self._module.process_stream(coded)
        return np.frombuffer(coded.data, "<i2").astype(np.float32) / np.float32(32768)

    def _coded(self, frame: Samples) -> Any:
        integers = np.clip(np.round(frame * 32768), -32768, 32767).astype("<i2")
        return self._frame(integers.tobytes(), SAMPLE_RATE, 1, FRAME)


@dataclass(frozen=True, slots=True)
class Echo:
    """Echo return in decibels relative to what was played: before and after cancellation."""

    before: float
    after: float


class _Loudness:
    """Detects recorded sound that is too loud to be an echo.

    A canceller that does not know the room yet takes everything for echo: with headphones it would silence the
    user for seconds. How loud the echo gets is known sooner. What is played in half a second comes back within the
    next: by the loudest of both one learns the gain, and the least of the last gains is the echo's, for a user who
    speaks as well only adds to it.
    """

    def __init__(self) -> None:
        self._played: deque[float] = deque([0.0], maxlen=_WINDOW_FRAMES)  # powers by frame
        self._recorded: deque[float] = deque([0.0], maxlen=5)
        self._gains: deque[float] = deque(maxlen=8)
        self._loudest, self._before = 0.0, (0.0, 0.0)  # recorded in this window; played and recorded in the last
        self._frames = self._sure_frames = 0

    def play(self, power: float) -> None:
        """Take a played frame."""
        self._played.append(power)

    def exceeds(self, power: float) -> bool:
        """Whether a recorded frame is louder than an echo can be."""
        self._recorded.append(power)
        now, peak = sum(self._recorded) / len(self._recorded), max(self._played)
        if self._gains and peak > _PLAYED_POWER and now > max(_LOUDER * min(self._gains) * peak, _AUDIBLE_POWER):
            self._sure_frames = _SURE_FRAMES
        self._sure_frames -= 1
        self._loudest = max(self._loudest, now)
        self._frames += 1
        if self._frames == _WINDOW_FRAMES:
            played, loudest = self._before
            if played > _VOICED_POWER:
                self._gains.append(max(loudest, self._loudest) / played)
            self._before = (peak, self._loudest)
            self._loudest, self._frames = 0.0, 0
        return self._sure_frames > 0


class _Likeness:
    """Detects recorded sound that resembles nothing that was played: somebody else speaks.

    The loudness of an echo is learned in moments when the user is silent. With headphones, and a user who speaks from
    the first word of the first reply on, there are none. But an echo shows in the correlation with what was played,
    whose frequencies are made about equally strong first: at its delay that stands out from all others. What does not
    stand out is no echo, unless one was clear a little while ago: the user may just be louder.
    """

    def __init__(self) -> None:
        silence = np.zeros(FRAME, np.float32)
        self._played = deque([silence] * (_COMPARED_FRAMES + _LATEST_FRAMES), maxlen=_COMPARED_FRAMES + _LATEST_FRAMES)
        self._recorded = deque([silence] * _COMPARED_FRAMES, maxlen=_COMPARED_FRAMES)
        frequencies = np.fft.rfftfreq(_TRANSFORMED, 1 / SAMPLE_RATE)
        self._voice = (frequencies > _VOICE_HZ[0]) & (frequencies < _VOICE_HZ[1])
        self._frames = self._strange_frames = 0
        self._compared_since_echo = 1 << 30

    def play(self, frame: Samples) -> None:
        """Take a played frame."""
        self._played.append(frame)

    def strange(self, frame: Samples) -> bool:
        """Whether a recorded frame is somebody else's voice."""
        self._recorded.append(frame)
        self._frames += 1
        self._strange_frames -= 1
        if self._frames % _COMPARE_FRAMES == 0:
            played, recorded = np.array(self._played), np.array(self._recorded)
            if _loud(played, _VOICED_POWER) and _loud(recorded, _AUDIBLE_POWER):
                self._compare(played.ravel(), recorded.ravel())
        return self._strange_frames > 0

    def _compare(self, played: Samples, recorded: Samples) -> None:
        cross = np.fft.rfft(recorded, _TRANSFORMED) * np.fft.rfft(played, _TRANSFORMED).conj() * self._voice
        cross /= (np.abs(cross) + 1e-12) ** 0.8
        by_delay = np.fft.irfft(cross)[-_LATEST_FRAMES * FRAME :]
        peak = float(np.abs(by_delay).max() / (np.sqrt(np.mean(np.square(by_delay))) + 1e-12))
        self._compared_since_echo = 0 if peak > _CLEAR_PEAK else self._compared_since_echo + 1
        alike = peak > _FAINT_PEAK or self._compared_since_echo < _REMEMBERED
        self._strange_frames = 0 if alike else _SURE_FRAMES


def _loud(frames: Samples, power: float) -> bool:
    """Whether there is enough above that power to compare."""
    return int(np.sum(np.mean(np.square(frames), 1) > power)) >= _LEAST_FRAMES


class _Frames:
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)

    def __call__(self, samples: Samples) -> list[Samples]:
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:]
        return [samples[at : at + FRAME] for at in range(0, whole, FRAME)]


class MicrophoneProcessor:
    """Turns the microphone's chunks into samples for the model and for speech detection; an `InputProcessor`.

    Args:
        reference: what is played.
        duplex: how echo is dealt with.

    Raises:
        AssistantError: the duplex mode needs a canceller, and it is missing.
    """

    def __init__(self, reference: Reference, duplex: Duplex = Duplex.CANCEL) -> None:
        self.duplex = duplex
        self._reference = reference
        self._canceller: Canceller | None = Canceller() if duplex is Duplex.CANCEL else None
        self._recorded, self._played = (Resampler(), _Frames()), (Resampler(), _Frames())
        self._loudness, self._likeness = _Loudness(), _Likeness()
        self._quiet_frames = 1 << 30  # since the assistant spoke
        self._unplayed_frames = 1 << 30  # since anything was given to the speaker
        self.forget_echo()

    def use(self, duplex: Duplex, canceller: Canceller | None = None) -> None:
        """Change the duplex mode; `Duplex.CANCEL` needs a `canceller` if there was none before."""
        self._canceller = self._canceller or canceller
        assert self._canceller or duplex is not Duplex.CANCEL, "without a canceller nothing can be cancelled"
        self.duplex = duplex

    def take(self, chunk: AudioChunk, *, speaking: bool) -> tuple[Samples, Samples]:
        """The chunk as mono 16 kHz, as recorded and with the echo cancelled, equally long: whole frames of 10 ms."""
        for block, rate in self._reference.until(chunk.start):
            self._play(block, rate)
        samples = chunk.samples if chunk.samples.ndim == 1 else chunk.samples.mean(1)
        resample, cut = self._recorded
        raw = cut(resample(samples.astype(np.float32) / np.float32(32768), chunk.rate))
        if not raw:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._quiet_frames = 0 if speaking else self._quiet_frames + len(raw)
        cleaned = [self._clean(frame) for frame in raw]
        whole = np.concatenate(raw)
        if self._quiet_frames * FRAME > _HANGOVER_SECONDS * SAMPLE_RATE or self.duplex is Duplex.OPEN:
            return whole, whole
        return whole, np.zeros_like(whole) if self.duplex is Duplex.HALF else np.concatenate(cleaned)

    def _play(self, block: Samples, rate: int) -> None:
        resample, cut = self._played
        for frame in cut(resample(block, rate)):
            if self._canceller is not None:
                self._canceller.play(frame)
            power = _power(frame)
            self._loudness.play(power)
            self._likeness.play(frame)
            self._unplayed_frames = 0 if power > _PLAYED_POWER else self._unplayed_frames + 1
            if power > _PLAYED_POWER:
                self._voice += (power, 1.0)

    def _clean(self, frame: Samples) -> Samples:
        """The frame for speech detection while the assistant speaks."""
        cleaned = frame if self._canceller is None else self._canceller.clean(frame)
        power = _power(frame)
        powers = (power, _power(cleaned), 1.0)
        if self._unplayed_frames * FRAME <= _HANGOVER_SECONDS * SAMPLE_RATE:
            self._back += powers
        else:
            self._room += powers
        louder, strange = self._loudness.exceeds(power), self._likeness.strange(frame)
        return frame if louder or strange else cleaned

    # ---- echo measurement

    def forget_echo(self) -> None:
        """Restart the measurement."""
        self._voice = np.zeros(2)  # power and frames of what was played
        self._back = np.zeros(3)  # power before and after cancelling while it was played, and frames
        self._room = np.zeros(3)  # the same while nothing was played

    @property
    def echo(self) -> Echo | None:
        """Echo since `forget_echo`, without the room's noise; None while too little was played."""
        if self._voice[1] * FRAME < _SCORED_SECONDS * SAMPLE_RATE or not self._back[2]:
            return None
        noise = self._room[:2] / max(1.0, self._room[2])
        back = np.maximum(self._back[:2] / self._back[2] - noise, noise / 10 + 1e-12)  # the measurement's limit
        before, after = 10 * np.log10(back / (self._voice[0] / self._voice[1]))
        return Echo(float(before), float(after))


def _power(frame: Samples) -> float:
    return float(np.mean(np.square(frame)))
