"""The microphone's last seconds, and the sound of the turn in progress as it comes.

Speech is recognised only after it began, so what a session keeps of a turn starts in the past.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from assistant.events import SAMPLE_RATE, Samples

_KEPT_SECONDS = 4.0  # a turn is known to begin up to this long after its first sample: a cut even 3 s after


class PreRollBuffer:
    """Keeps the last seconds of the microphone and passes on the turn in progress.

    Attributes:
        record: takes the number and the samples of the turn in progress, from its first sample on.
    """

    def __init__(self) -> None:
        self.record: Callable[[int, Samples], None] | None = None
        self._past: deque[Samples] = deque()
        self._turn: int | None = None

    def feed(self, samples: Samples) -> None:
        """Take the microphone's next samples, mono at `SAMPLE_RATE`."""
        self._past.append(samples)
        while sum(map(len, self._past)) - len(self._past[0]) > _KEPT_SECONDS * SAMPLE_RATE:
            self._past.popleft()
        if self._turn is not None and self.record is not None:
            self.record(self._turn, samples)

    def begin(self, turn: int, seconds: float) -> None:
        """Turn number `turn` has been going on for `seconds`."""
        self._turn = turn
        if self.record is not None and self._past:
            self.record(turn, np.concatenate(list(self._past))[-round(seconds * SAMPLE_RATE) :])

    def end(self) -> None:
        """The turn's sound is complete."""
        self._turn = None
