"""Sound files in place of microphone and speaker, for tests and scripts: in real time or as fast as possible."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from assistant.audio.echo import Reference
from assistant.audio.sound import OpenSound
from assistant.errors import AssistantError
from assistant.events import SAMPLE_RATE, AudioChunk, Failed, Samples

RATE = 24_000
_CHUNK_SECONDS = 0.02


class FileSpeaker:
    """A `Speaker` that plays into memory, silence included. Time passes with `render`."""

    rate = RATE

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sound = np.zeros(0, np.float32)
        self._at = 0
        self._held = False

    def write(self, samples: Samples) -> None:
        with self._lock:
            self._sound = np.concatenate([self._sound, samples])

    def played(self) -> int:
        return self._at

    def pause(self) -> None:
        self._held = True

    def resume(self) -> None:
        self._held = False

    def abort(self) -> int:
        with self._lock:
            played, self._at, self._held = self._at, 0, False
            self._sound = self._sound[:0]
        return played

    def render(self, samples: int) -> Samples:
        """The next samples, as heard."""
        block = np.zeros(samples, np.float32)
        with self._lock:
            part = self._sound[:0] if self._held else self._sound[self._at : self._at + samples]
            block[: len(part)] = part
            self._at += len(part)
        return block


class FileSound:
    """A microphone that plays files and then silence, and a speaker that writes a file.

    `start` runs it in real time; a script calls `step` to advance by one chunk. `clock` is the time that has passed,
    for a `ConversationLoop` in virtual time.

    Args:
        sink: takes the microphone's chunks.
        report, changed: never called; see `assistant.audio.sound.OpenSound`.
        reference: takes what is played and when something is recorded.
        heard: recordings in any format that libsndfile reads, all of one rate.
        spoken: the WAV that `close` writes.

    Raises:
        AssistantError: a recording cannot be read.
    """

    def __init__(
        self,
        sink: Callable[[AudioChunk], None],
        report: Callable[[Failed], None] = lambda _: None,
        *,
        changed: Callable[[], None] = lambda: None,
        reference: Reference | None = None,
        heard: Sequence[Path] = (),
        spoken: Path | None = None,
    ) -> None:
        self.speaker = FileSpeaker()
        self._sink = sink
        self._reference = reference or Reference()
        self._heard, self._rate = _recordings(heard)
        self._spoken = spoken
        self._output: list[Samples] = []
        self._at = 0
        self.began = 0.0
        """When `clock` was 0, by the monotonic clock, once it runs in real time."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def clock(self) -> float:
        """Seconds that have passed."""
        return self._at / self._rate

    @property
    def output(self) -> FileSpeaker:
        """The speaker."""
        return self.speaker

    def choose(self, microphone: str | None, speaker: str | None) -> None:
        """Files have no devices to choose."""

    def input_ended(self, seconds: float) -> bool | None:
        """Whether the recordings ended `seconds` ago; None without recordings."""
        return self._at >= len(self._heard) + seconds * self._rate if len(self._heard) else None

    def speak(self, samples: Samples) -> float:
        """Put samples into the microphone next, at the recordings' rate; returns their start time by `clock`."""
        at = max(self._at, len(self._heard)) + round(self._rate * _CHUNK_SECONDS)  # too late for the current chunk
        said = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)[:, None]
        silence = np.zeros((at - len(self._heard), 1), np.int16)
        self._heard = np.concatenate(
            [self._heard, *(np.repeat(one, self._heard.shape[1], 1) for one in (silence, said))]
        )
        return at / self._rate

    def start(self) -> None:
        """Run in real time."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="file sound")
        self._thread.start()

    def step(self) -> None:
        """Advance by 20 ms: play and record."""
        frames = round(self._rate * _CHUNK_SECONDS)
        block = self.speaker.render(round(RATE * _CHUNK_SECONDS))
        if self._spoken is not None:
            self._output.append(block)
        part = self._heard[self._at : self._at + frames]
        if len(part) < frames:
            part = np.concatenate([part, np.zeros((frames - len(part), *part.shape[1:]), np.int16)])
        start = self.clock()
        self._at += frames
        self._reference.played(block, RATE)
        self._reference.recorded(start)
        self._sink(AudioChunk(part, self._rate, start))

    def close(self) -> None:
        """Stop, and write what was played.

        Raises:
            AssistantError: the file cannot be written.
        """
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._spoken is None:
            return
        try:
            samples = np.concatenate([np.zeros(0, np.float32), *self._output])
            soundfile.write(self._spoken, np.clip(samples, -1, 1), RATE, subtype="PCM_16", format="WAV")
        except (OSError, soundfile.LibsndfileError) as error:
            raise AssistantError(f"{self._spoken} cannot be written ({error}): choose another file.") from error

    def _run(self) -> None:
        self.began = time.monotonic() - self.clock()
        while not self._ended.wait(max(0.0, self.began + self.clock() + _CHUNK_SECONDS - time.monotonic())):
            self.step()


def file_sound(heard: Sequence[Path], spoken: Path | None) -> OpenSound | None:
    """For `Talk`: recordings in place of the microphone, a WAV in place of the speaker; None for neither."""
    return partial(FileSound, heard=heard, spoken=spoken) if heard or spoken else None


def _recordings(paths: Sequence[Path]) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int16]], int]:
    """The recordings one after the other, int16 [n, channels], and their rate; silence for none."""
    parts, rates = [], set()
    for path in paths:
        try:
            samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        except (OSError, soundfile.LibsndfileError) as error:
            raise AssistantError(f"{path} cannot be read as sound ({error}): choose a WAV or FLAC file.") from error
        parts.append(samples)
        rates.add(rate)
    if len(rates) > 1 or len({part.shape[1] for part in parts}) > 1:
        raise AssistantError("The recordings differ in rate or channels: convert them to one.")
    if not parts:
        return np.zeros((0, 1), np.int16), SAMPLE_RATE
    return np.concatenate(parts), rates.pop()
