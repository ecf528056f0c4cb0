"""Playback of recordings through the reply's speaker: utterances, replies, whole sessions, at any speed.

A clip goes to the speaker in pieces, cut where it is quiet: each is stretched and resampled by itself, so a
long session is as cheap to begin as a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from assistant.events import SAMPLE_RATE, Failed, Samples
from assistant.speech.playback import Speaker

_AHEAD_SECONDS = 3.0  # of sound given to the speaker before it is needed
_PIECE_SECONDS = (5.0, 7.0)  # a piece ends at the quietest moment between the two
_QUIET_SECONDS = 0.01
_FRAME_SECONDS, _SEARCH_SECONDS = 0.04, 0.01
_SPEEDS = (0.5, 2.0)


def stretched(samples: Samples, rate: int, speed: float) -> Samples:
    """The samples in `len(samples) / speed`, at their own pitch (overlap-add of similar waveforms, WSOLA).

    Frames are taken at a pace of `speed` times that at which they are laid down; each is shifted a little, to
    where it goes on most like the one before would have.
    """
    if speed == 1.0 or not len(samples):
        return samples
    frame = 2 * int(rate * _FRAME_SECONDS / 2)
    hop, reach = frame // 2, int(rate * _SEARCH_SECONDS)
    length = round(len(samples) / speed)
    window = np.hanning(frame + 1)[:-1].astype(np.float32)  # half overlapping, they add up to one
    padded = np.concatenate([np.zeros(hop + reach, np.float32), samples, np.zeros(2 * frame + 2 * reach, np.float32)])
    out = np.zeros(length + 2 * frame, np.float32)
    natural = np.zeros(frame, np.float32)  # what would have followed the last frame
    for at in range(0, length + hop, hop):
        wanted = min(round(at * speed) + reach, len(padded) - frame - hop - reach)
        region = padded[wanted - reach : wanted + reach + frame]
        shift = int(np.correlate(region, natural, "valid").argmax()) if natural.any() else reach
        first = wanted - reach + shift
        out[at : at + frame] += window * padded[first : first + frame]
        natural = padded[first + hop : first + hop + frame]
    return out[hop : hop + length]


class ClipPlayer:
    """Plays one clip at a time. Its methods may be called from any thread; the work happens on the owner's thread.

    Args:
        put: hands a call to the owner's thread.
        report: called with a message when there is no speaker.
        free: whether nothing else is going on: a clip does not begin over a turn.
    """

    def __init__(
        self,
        put: Callable[[Callable[[], None]], None],
        report: Callable[[Failed], None],
        free: Callable[[], bool],
    ) -> None:
        self.speaker: Speaker | None = None
        self._put = put
        self._report = report
        self._free = free
        self._samples: Samples = np.zeros(0, np.float32)
        self._rate, self._speed = SAMPLE_RATE, 1.0
        self._pieces: Iterator[Samples] | None = None  # None: nothing is being played
        self._from = 0.0  # seconds of the clip at which the speaker's first sample was taken
        self._written = 0
        self._paused = False
        self._position = 0.0

    # ---- from any thread

    def play(self, samples: Samples, rate: int, at: float = 0.0, speed: float = 1.0) -> None:
        """Play a recording from `at` seconds on, in place of the current one; ignored during a turn."""
        self._put(lambda: self._begin(samples, rate, at, speed))

    def pause(self) -> None:
        """Pause."""
        self._put(lambda: self._pause(paused=True))

    def resume(self) -> None:
        """Resume."""
        self._put(lambda: self._pause(paused=False))

    def seek(self, seconds: float) -> None:
        """Jump to a position and play from there."""
        self._put(lambda: self._begin(self._samples, self._rate, seconds, self._speed))

    def stop(self) -> None:
        """Stop; the position stays."""
        self._put(self.end)

    @property
    def playing(self) -> bool:
        """Whether a clip plays: neither paused nor at its end."""
        return self._pieces is not None and not self._paused

    @property
    def duration(self) -> float:
        """Seconds of the clip, at its own speed."""
        return len(self._samples) / self._rate

    @property
    def position(self) -> float:
        """Seconds of the clip that were heard, at its own speed."""
        speaker = self.speaker
        if self._pieces is not None and speaker is not None:
            return min(self.duration, self._from + speaker.played() / speaker.rate * self._speed)
        return self._position

    # ---- on the owner's thread

    def pump(self) -> None:
        """Keep the speaker supplied, and notice the end."""
        speaker, pieces = self.speaker, self._pieces
        if pieces is None or speaker is None:
            return
        played = speaker.played()
        while self._written - played < _AHEAD_SECONDS * speaker.rate:
            piece = next(pieces, None)
            if piece is None:
                if played >= self._written:
                    self.end()
                    self._position = self.duration
                return
            speaker.write(piece)
            self._written += len(piece)

    def end(self) -> None:
        """Stop at once."""
        if self._pieces is not None:
            self._position = self.position
            self._pieces, self._paused = None, False
            if self.speaker is not None:
                self.speaker.abort()

    def start(self, samples: Samples, rate: int, at: float = 0.0, speed: float = 1.0) -> None:
        """Start playing, even during a turn."""
        self.end()
        if self.speaker is None:
            self._report(Failed(None, "Nothing can be played: plug in a speaker or choose another."))
            return
        self._samples, self._rate = samples, rate
        self._speed = min(max(speed, _SPEEDS[0]), _SPEEDS[1])
        self._from = self._position = min(max(at, 0.0), self.duration)
        self._pieces = _pieces(samples[round(self._from * rate) :], rate, self._speed, self.speaker.rate)
        self._written = 0
        self.pump()

    def _begin(self, samples: Samples, rate: int, at: float, speed: float) -> None:
        if self._free():
            self.start(samples, rate, at, speed)

    def _pause(self, *, paused: bool) -> None:
        if self._pieces is not None and self.speaker is not None:
            self._paused = paused
            self.speaker.pause() if paused else self.speaker.resume()


def _pieces(samples: Samples, rate: int, speed: float, speaker_rate: int) -> Iterator[Samples]:
    """The samples as the speaker takes them, in pieces that begin and end in quiet moments."""
    import soxr

    least, most = (round(seconds * rate) for seconds in _PIECE_SECONDS)
    quiet = round(_QUIET_SECONDS * rate)
    at = 0
    while at < len(samples):
        end = len(samples)
        if end - at > most:
            power = np.square(samples[at + least : at + most])
            end = at + least + int(np.convolve(power, np.ones(quiet), "valid").argmin()) + quiet // 2
        piece = stretched(samples[at:end], rate, speed)
        yield piece if rate == speaker_rate else soxr.resample(piece, rate, speaker_rate).astype(np.float32)
        at = end
