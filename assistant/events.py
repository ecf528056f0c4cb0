"""Values and events that travel between the parts of the program: frozen and slotted.

This is the one module of the core that `model` may import; it needs numpy and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMOTIONS = ("neutral", "happy", "angry", "sad", "surprise")
"""The emotions in the order of the emotion head's rows (the original's label order)."""

UNSURE = "unsure"
"""The label of a reading whose confidence is below the checkpoint's threshold."""

Samples = NDArray[np.float32]
SAMPLE_RATE = 16_000
"""Mono audio, float32 in [-1, 1]; its rate is named where it is used."""


@dataclass(frozen=True, slots=True, eq=False)
class EmotionReading:
    """How one utterance sounded. It describes the expression of the voice, not the inner state.

    logits = contributions.sum(0) + offset, exactly: around the utterance's mean frame the head is linear
    (its calibration temperature is folded into both terms), and probabilities = softmax(logits).

    Attributes:
        probabilities: float32 [5] in the order of `EMOTIONS`, summing to 1.
        label: one of `EMOTIONS`, or `UNSURE`.
        frame_seconds: the time one row of `contributions` covers.
        contributions: float32 [frames, 5], each frame's share of the logits.
        offset: float32 [5], the term of the logits that is no frame's.
        candidates: what may be shown, likeliest first: the label alone where the reading is sure, two emotions
            that hold the truth with the checkpoint's stated coverage, or nothing: unsure.
    """

    probabilities: NDArray[np.float32]
    label: str
    frame_seconds: float
    contributions: NDArray[np.float32]
    offset: NDArray[np.float32]
    candidates: tuple[str, ...] = ()

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
            "candidates": list(self.candidates) or UNSURE,
            "frame_seconds": self.frame_seconds,
            "contributions": self.contributions.tolist(),
            "offset": self.offset.tolist(),
        }


@dataclass(frozen=True, slots=True)
class Typed:
    """A typed message."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """A spoken message: mono samples at 16 kHz. Equal recordings have equal keys."""

    samples: Samples
    key: bytes = b""

    def __post_init__(self) -> None:
        """Derive the key from the samples."""
        object.__setattr__(self, "key", hashlib.blake2b(self.samples.tobytes(), digest_size=16).digest())


Message = Typed | Spoken


@dataclass(frozen=True, slots=True)
class Exchange:
    """A past turn in the model's history: what the user said, and what they *heard* of the reply."""

    message: Message
    heard: str


@dataclass(frozen=True, slots=True, eq=False)
class AudioChunk:
    """A microphone's chunk at the device's own rate and channels.

    Attributes:
        samples: int16 [n] or [n, channels].
        rate: samples per second.
        start: seconds of its first sample since the microphone was opened, by its own clock.
    """

    samples: NDArray[np.int16]
    rate: int
    start: float


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """Speech between two silences, with its pre-roll: mono 16 kHz, times as `AudioChunk.start`."""

    samples: Samples
    started: float
    ended: float


class State(StrEnum):
    """The state of the conversation. Whether the user is speaking is a separate flag."""

    IDLE = "idle"
    LISTENING = "listening"
    THINKING = "thinking"
    SPEAKING = "speaking"


class Outcome(StrEnum):
    """How a turn ended."""

    ANSWERED = "answered"
    INTERRUPTED = "interrupted"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A message, its reply and the outcome.

    Attributes:
        number: 1, 2, ... ; it goes on rising when a new conversation is begun, so that no two turns share one.
        message: what the user said or typed.
        transcript: the words of a spoken message, or None where no recogniser wrote them.
        reading: how a spoken message sounded, or None.
        reply: everything that was generated; `heard`: the part that was heard, to the word.
        marks: times of its stages in seconds, by the conversation's clock ("asked", "read", "first_text",
            "first_sentence", "first_speech", "ended", "first_sound", "reply_finished", "finished"): it was asked at
            the speculative end of speech, and "ended" is the final end.
        figures: the model's own: milliseconds and counts by stage (`ModelDone.figures`).
    """

    number: int
    message: Message
    transcript: str | None = None
    reading: EmotionReading | None = None
    reply: str = ""
    heard: str = ""
    outcome: Outcome = Outcome.ANSWERED
    marks: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


# ---- events for window, terminal and session


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The conversation's state, and whether the user is speaking."""

    state: State
    user_speaking: bool


@dataclass(frozen=True, slots=True)
class InputLevel:
    """The microphone's level: RMS in decibels of full scale, -120 to 0."""

    decibels: float


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The user began to speak at `at` seconds."""

    turn: int
    at: float


@dataclass(frozen=True, slots=True, eq=False)
class UtteranceEnded:
    """The user's turn ended with this message."""

    turn: int
    message: Message


@dataclass(frozen=True, slots=True, eq=False)
class EmotionRead:
    """How the message sounded; None where the checkpoint has no emotion head."""

    turn: int
    reading: EmotionReading | None


@dataclass(frozen=True, slots=True)
class Transcribed:
    """The words of a spoken message."""

    turn: int
    text: str
    language: str = "en"


@dataclass(frozen=True, slots=True)
class ReplyText:
    """A piece of the reply."""

    turn: int
    text: str


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """The reply is complete; `text` is the whole reply."""

    turn: int
    text: str


@dataclass(frozen=True, slots=True)
class PlaybackStarted:
    """The first sound of the reply."""

    turn: int


@dataclass(frozen=True, slots=True)
class PlaybackProgressed:
    """What was heard of the reply so far, up to the last whole word."""

    turn: int
    heard: str


@dataclass(frozen=True, slots=True)
class PlaybackFinished:
    """The reply was heard to its end, or until it was stopped."""

    turn: int
    heard: str


@dataclass(frozen=True, slots=True, eq=False)
class TurnEnded:
    """A turn ended and is part of the history."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class TurnUndone:
    """A turn left the history: it was undone, or is being answered again under another number."""

    turn: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Status of the model process ("loading", "ready", "failed" or "stopped") and a message for the user."""

    status: str
    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Something went wrong; the message says what to do. `turn` is None if it belongs to no turn."""

    turn: int | None
    message: str


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """A line of a training run's progress file."""

    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingEnded:
    """A training run ended; `error` is None when it reached its end or was paused."""

    folder: str
    error: str | None


Event = (
    StateChanged | InputLevel | SpeechStarted | UtteranceEnded | EmotionRead | Transcribed | ReplyText | ReplyFinished
    | PlaybackStarted | PlaybackProgressed | PlaybackFinished | TurnEnded | TurnUndone | ModelStatus | Failed
    | TrainingProgress | TrainingEnded
)  # fmt: skip
