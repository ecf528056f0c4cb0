"""PortAudio streams: a microphone that delivers chunks, a speaker that knows what was heard.

The callbacks only move samples in and out of queues. The output stream stays open and plays silence between
replies, so that no end of a reply is lost in the device's buffer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from assistant.audio.echo import Reference
from assistant.events import AudioChunk, Samples

RATE = 24_000
"""The speaker's rate for the program, whatever its device uses."""

_CHUNK_SECONDS = 0.02
_LATENCY_SECONDS = {"output": 0.1, "input": 0.05}  # less under-runs under load; more is heard after a stop
_FROZEN_SECONDS = 2.0  # without a callback for this long the stream is dead
_AWAY_SECONDS = 3.0  # how long a reply waits for its speaker
_OTHER_RATES = (48_000, 44_100, 32_000, 16_000)
_RATE_REFUSED = -9997  # paInvalidSampleRate


class Stream:
    """What microphone and speaker share: a stream that is opened, watched and closed."""

    kind = ""
    _direction = ""
    _sample_type = ""

    def __init__(self) -> None:
        self.alive = False
        """Whether the stream is open and its callbacks keep coming."""
        self.works = False
        """Whether it is alive and had a callback since it was opened."""
        self.device_rate = 0
        self.trouble = ""
        """Why it could not be opened, in one line."""
        self.reported = False  # whether its failure was reported
        self.missed: str | None = None  # the device that was asked for and is not there
        self.told_missed: str | None = None
        self._stream: Any = None
        self._failure: type[Exception] = OSError  # PortAudio's own, once it is known
        self._opened_at = self._called_at = 0.0

    def open(self, sound: Any, name: str | None) -> None:
        """Open the device called `name`, else the system's default; an error message goes to `trouble`."""
        self.trouble = ""
        self._failure = sound.PortAudioError
        try:
            index = self._index(sound, name)
            self.missed = name if name is not None and index is None else None
            about = sound.query_devices(index, self._direction)
            self._open_at_a_rate(sound, index, about)
        except (sound.PortAudioError, ValueError) as error:
            self.close()
            self.trouble = str(error).splitlines()[0]

    def _index(self, sound: Any, name: str | None) -> int | None:
        key = f"max_{self._direction}_channels"
        found = enumerate(sound.query_devices())
        return next((index for index, one in found if name == one["name"] and one[key] > 0), None)

    def _open_at_a_rate(self, sound: Any, index: int | None, about: Any) -> None:
        """At the device's own rate, or at the first other one that it does not refuse. Raises PortAudioError."""
        kind = sound.OutputStream if self._direction == "output" else sound.InputStream
        rates = [round(about["default_samplerate"]), *_OTHER_RATES]
        for rate in rates:
            self._prepare(rate)
            try:
                self._stream = kind(
                    samplerate=rate,
                    channels=min(2, about[f"max_{self._direction}_channels"]),
                    dtype=self._sample_type,
                    device=index,
                    latency=_LATENCY_SECONDS[self._direction],
                    blocksize=round(rate * _CHUNK_SECONDS),
                    callback=self._callback,
                )
                break
            except sound.PortAudioError as error:
                if rate == rates[-1] or _RATE_REFUSED not in error.args:
                    raise
        self._opened_at = self._called_at = time.monotonic()
        self._stream.start()

    def close(self) -> None:
        """Close the device."""
        stream, self._stream = self._stream, None
        self.alive = self.works = False
        if stream is not None:
            stream.abort()
            stream.close()

    def poll(self) -> None:
        """Update `alive`. On the watch's thread, like every call into PortAudio."""
        late = time.monotonic() - self._called_at > _FROZEN_SECONDS
        try:
            self.alive = self._stream is not None and self._stream.active and not late
        except self._failure:
            self.alive = False
        self.works = self.alive and self._called_at > self._opened_at

    def _prepare(self, rate: int) -> None:
        self.device_rate = rate

    def _callback(self, data: Any, frames: int, times: Any, status: Any) -> None:
        raise NotImplementedError


class SoundSpeaker(Stream):
    """The output stream. See `assistant.speech.playback.Speaker`; positions count since the last `abort`, at `RATE`.

    A reply outlives its device: when another one is opened, it goes on where it was last heard.
    """

    kind, _direction, _sample_type = "speaker", "output", "float32"
    rate = RATE

    def __init__(self, reference: Reference, wake: Callable[[], None]) -> None:
        super().__init__()
        self._reference = reference
        self._wake = wake
        self._lock = threading.Lock()
        self._flush_wanted = False
        self._held = False
        self._parts: list[tuple[Samples, int]] = []  # as they were written, and their lengths at the device's rate
        self._gone = 0  # samples of parts that were heard to their end and are forgotten
        self._written = 0
        self._sound = np.zeros(0, np.float32)  # the parts, joined and at the device's rate
        self._at = 0  # the next sample to be given to the device
        self._heard = 0  # what has surely been heard; below the next two, which tell the rest
        self._block_at, self._block_heard_at = 0, 0.0

    # ---- called by the program

    def write(self, samples: Samples) -> None:
        with self._lock:
            sound = self._for_device(samples)
            self._forget()
            self._parts.append((samples, len(sound)))
            self._written += len(samples)
            self._sound = np.concatenate([self._sound, sound])

    def _forget(self) -> None:
        """Drop what was heard: a long recording is played in many parts."""
        heard = self._device_heard()
        while self._parts and self._parts[0][1] <= heard:
            samples, length = self._parts.pop(0)
            self._gone += len(samples)
            self._sound = self._sound[length:]
            heard -= length
            self._at -= length
            self._heard -= length
            self._block_at -= length

    def played(self) -> int:
        with self._lock:
            heard = self._device_heard()
            if heard >= len(self._sound):
                return self._written
            return min(self._written, self._gone + int(heard * RATE / self.device_rate))

    def pause(self) -> None:
        with self._lock:
            self._held = True

    def resume(self) -> None:
        with self._lock:
            self._held = False

    def abort(self) -> int:
        played = self.played()
        with self._lock:
            self._flush_wanted |= self._at > self._heard
            self._parts.clear()
            self._sound = self._sound[:0]
            self._written = self._gone = self._at = self._heard = self._block_at = 0
            self._held = False
        self._wake()
        return played

    # ---- called for the device

    @property
    def away(self) -> bool:
        """Whether the speaker has been missing for a while, so that replies can only be read."""
        return bool(self.trouble) and time.monotonic() - self._called_at > _AWAY_SECONDS

    @property
    def idle(self) -> bool:
        """Whether nothing is left to play."""
        with self._lock:
            return self._at >= len(self._sound)

    def flush(self) -> None:
        """After an `abort`: drop the device's own buffer. On the watch's thread."""
        stream = self._stream
        if not self._flush_wanted or stream is None:
            return
        stream.abort()
        with self._lock:
            self._flush_wanted = False
            self._at = self._heard
        with contextlib.suppress(self._failure):  # a stream that does not start is not active: the watch sees it
            stream.start()

    def close(self) -> None:
        super().close()
        with self._lock:  # what the device had not yet played will be given to the next one
            self._at = self._device_heard()
            self._flush_wanted = False

    def _prepare(self, rate: int) -> None:
        with self._lock:
            if rate != self.device_rate:
                share = rate / self.device_rate if self.device_rate else 1.0
                self.device_rate = rate
                sounds = [self._for_device(samples) for samples, _ in self._parts]
                self._parts = [(samples, len(s)) for (samples, _), s in zip(self._parts, sounds, strict=True)]
                self._sound = np.concatenate([np.zeros(0, np.float32), *sounds])
                self._at = self._heard = self._block_at = min(len(self._sound), round(self._at * share))

    def _for_device(self, samples: Samples) -> Samples:
        if self.device_rate in (0, RATE):
            return samples
        resampled: Samples = soxr.resample(samples, RATE, self.device_rate).astype(np.float32)
        return resampled

    def _device_heard(self) -> int:
        """The samples heard, at the device's rate, estimated from the last block's output time."""
        since = int((time.monotonic() - self._block_heard_at) * self.device_rate)
        self._heard = max(self._heard, min(self._at, self._block_at + since))
        return self._heard

    def _callback(self, data: NDArray[np.float32], frames: int, times: Any, status: Any) -> None:
        now = self._called_at = time.monotonic()
        block = np.zeros(frames, np.float32)
        with self._lock:
            part = self._sound[self._at : self._at + frames] if not self._held else block[:0]
            if len(part):
                block[: len(part)] = part
                self._block_at = self._at
                self._block_heard_at = now + max(0.0, times.outputBufferDacTime - times.currentTime)
                self._at += len(part)
        data[:] = block[:, None]
        self._reference.played(block, self.device_rate)


class SoundMicrophone(Stream):
    """The input stream; chunks go to `sink` on PortAudio's thread, which must not block."""

    kind, _direction, _sample_type = "microphone", "input", "int16"

    def __init__(self, reference: Reference, sink: Callable[[AudioChunk], None]) -> None:
        super().__init__()
        self._reference = reference
        self._sink = sink
        self._taken = 0.0

    def _callback(self, data: NDArray[np.int16], frames: int, times: Any, status: Any) -> None:
        self._called_at = time.monotonic()
        chunk = AudioChunk(data.copy(), self.device_rate, self._taken)
        self._taken += frames / self.device_rate
        self._reference.recorded(chunk.start)
        self._sink(chunk)
