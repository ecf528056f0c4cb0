"""What a model's backend offers, and what crosses the pipe between the assistant and the model process.

The process (`model.commands.server`) loads a `Backend` and serves it. Any model can stand behind this protocol: see
`model.inference.backends.LOADERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from assistant.events import EmotionReading, Exchange, Message, Spoken


class Backend(Protocol):
    """A loaded model. One thread calls it; the history comes with every call, so it need not remember anything."""

    transcribes_first: bool
    """Whether the transcript is needed before the reply, and so should be sent before it."""

    def about(self) -> Mapping[str, Any]:
        """Facts for the user interface.

        Returns:
            At least `name`, `device`, `quantize`, `path` ("speech" or "transcript"), `reads_emotion` and
            `frame_seconds`; see `Ready`.
        """

    def hear(self, message: Spoken) -> EmotionReading | None:
        """Encode an utterance (mono, float32 in [-1, 1], 16 kHz); the reading of its emotion, or None without one."""

    def transcribe(self, message: Spoken) -> tuple[str, str] | None:
        """The words of an utterance and their language ("en"), or None where nothing transcribes."""

    def reply(
        self, history: Sequence[Exchange], message: Message, *, empathy: bool, cancelled: Callable[[], bool]
    ) -> Iterator[str]:
        """Stream the reply as pieces of text.

        Args:
            history: past turns, oldest first, each with what was heard of its reply.
            message: the new message.
            empathy: whether to take the emotion into account.
            cancelled: asked before every token; true ends the reply there.
        """

    def figures(self) -> Mapping[str, float]:
        """Milliseconds and counts of the last `hear` and `reply`, for the event `ModelDone`."""

    def prepare(self, history: Sequence[Exchange], *, empathy: bool, cancelled: Callable[[], bool]) -> None:
        """Take in the history ahead of the next message."""

    def forget(self) -> None:
        """Drop every cache. Replies stay the same; the next one takes longer."""


# ---- messages between the assistant and the model process


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What to load: the arguments of `model.checkpoints.loader.load`."""

    source: str = "mini"
    device: str = "auto"
    quantize: str = "auto"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Loading:
    """From the child: how the loading goes, in words."""

    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """From the child: the model stands; `about` says name, device, quantize, path, frame_seconds, head, load_ms."""

    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """From the child: the model cannot be loaded; the message says what to do."""

    message: str
