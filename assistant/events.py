"""Values and events that travel between the parts of the program: frozen and slotted.

This is the one module of the core that `model` may import; it needs numpy and nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMOTIONS = ("neutral", "happy", "angry", "sad", "surprise")
"""The emotions in the order of the emotion head's rows (the original's label order)."""

UNSURE = "unsure"
"""The label of a reading whose confidence lies below the checkpoint's threshold."""

Samples = NDArray[np.float32]
"""Mono audio, float32 in [-1, 1]; its rate is named where it is used."""


@dataclass(frozen=True, slots=True, eq=False)
class EmotionReading:
    """How one utterance sounded. It describes the expression of the voice, not the inner state.

    logits = contributions.sum(0) + offset, exactly: the head is linear in the mean frame (its
    calibration temperature is folded into both terms), and probabilities = softmax(logits).

    Attributes:
        probabilities: float32 [5] in the order of `EMOTIONS`, summing to 1.
        label: one of `EMOTIONS`, or `UNSURE`.
        frame_seconds: the time one row of `contributions` covers.
        contributions: float32 [frames, 5], each frame's share of the logits.
        offset: float32 [5], the constant term of the logits.
    """

    probabilities: NDArray[np.float32]
    label: str
    frame_seconds: float
    contributions: NDArray[np.float32]
    offset: NDArray[np.float32]

    @property
    def strongest(self) -> str:
        """The most probable emotion, whether or not the reading is sure of it."""
        return EMOTIONS[int(self.probabilities.argmax())]

    @property
    def confidence(self) -> float:
        """The probability of `strongest`."""
        return float(self.probabilities.max())

    def as_dict(self) -> dict[str, Any]:
        """The reading as plain JSON values, in the form that `ask --json` prints."""
        return {
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": dict(zip(EMOTIONS, self.probabilities.tolist(), strict=True)),
            "frame_seconds": self.frame_seconds,
            "contributions": self.contributions.tolist(),
            "offset": self.offset.tolist(),
        }


@dataclass(frozen=True, slots=True)
class Typed:
    """Something the user typed."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """Something the user said: mono samples at 16 kHz. Equal recordings have equal keys."""

    samples: Samples
    key: bytes = b""

    def __post_init__(self) -> None:
        """Derive the key from the samples."""
        object.__setattr__(self, "key", hashlib.blake2b(self.samples.tobytes(), digest_size=16).digest())


Message = Typed | Spoken


@dataclass(frozen=True, slots=True)
class Exchange:
    """A past turn as the model is to remember it: what the user said, and what they *heard* of the reply."""

    message: Message
    heard: str
