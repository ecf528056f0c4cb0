"""A recording process to be killed: prints the number of every chunk that was acknowledged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from assistant.events import Outcome, Spoken, Turn, TurnEnded
from assistant.sessions.recorder import Recorder


def chunk(turn: int, number: int) -> np.ndarray:
    """Samples that tell where they belong."""
    return np.full(160, (turn * 100 + number) / 32768, np.float32)


def main(root: Path) -> None:
    recorder = Recorder(root, lambda failed: sys.exit(failed.message))
    for turn in range(1, 1000):
        for number in range(20):
            recorder.sound(turn, chunk(turn, number))
            sys.stdout.write(f"{turn} {number}\n")
            sys.stdout.flush()
        message = Spoken(np.concatenate([chunk(turn, number) for number in range(20)]))
        recorder.utterance(turn, message)
        sys.stdout.write(f"{turn} 20\n")
        sys.stdout.flush()
        recorder.ended(TurnEnded(Turn(turn, message, "words", None, "a reply", "a reply", Outcome.ANSWERED)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
