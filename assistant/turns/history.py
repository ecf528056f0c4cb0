"""The live turn, the finished turns, and joined messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from assistant.events import (
    SAMPLE_RATE,
    EmotionReading,
    Event,
    Message,
    Outcome,
    PlaybackFinished,
    Spoken,
    Turn,
    TurnEnded,
    TurnUndone,
    Typed,
)

_JOIN_SECONDS = 0.3  # of silence between the two parts of a joined message
_REVISABLE = 16  # finished turns whose transcript or heard text may still come


@dataclass(slots=True, eq=False)
class LiveTurn:
    """The live turn. `held` are the events to emit once its end is final."""

    ask: int
    number: int
    message: Message
    certain: bool = False
    reading: EmotionReading | None = None
    transcript: str | None = None
    reply: str = ""
    heard: str = ""
    done: bool = False
    sounding: bool = False
    broke: str | None = None
    held: list[Event] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def turn(self, outcome: Outcome) -> Turn:
        """The turn as a value."""
        return Turn(
            number=self.number,
            message=self.message,
            transcript=self.transcript,
            reading=self.reading,
            reply=self.reply.strip(),
            heard=self.heard,
            outcome=outcome,
            marks=dict(self.marks),
            figures=self.figures,
        )


class History:
    """The finished turns. The last ones are kept by their asks: transcript and heard text may still come.

    Attributes:
        turns: oldest first.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._over: dict[int, Turn] = {}
        self._closing: set[int] = set()  # stopped; the player has not confirmed yet what was heard
        self._undone: set[int] = set()  # of these, the ones to report as undone afterwards

    def add(self, ask: int, turn: Turn, *, closing: bool) -> None:
        """Add a finished turn; with `closing`, the player has not confirmed yet what was heard."""
        self.turns.append(turn)
        self._over[ask] = turn
        if closing:
            self._closing.add(ask)
        if len(self._over) > _REVISABLE:
            oldest = min(self._over)
            del self._over[oldest]
            self._closing.discard(oldest)

    def closing(self, ask: int) -> bool:
        """Whether the player has not confirmed yet what was heard of that turn."""
        return ask in self._closing

    def revise(self, ask: int, **learned: Any) -> Turn | None:
        """Update a finished turn; None after an undo."""
        before = self._over.get(ask)
        if before is None:
            return None
        final = self._over[ask] = replace(before, **learned)
        self.turns = [final if turn is before else turn for turn in self.turns]
        return final

    def settle(self, ask: int, heard: str) -> Iterator[Event]:
        """Set what was heard of a closing turn."""
        final = self.revise(ask, heard=heard)
        assert final is not None, "callers look first"
        self._closing.discard(ask)
        yield PlaybackFinished(final.number, heard)
        yield TurnEnded(final)
        if ask in self._undone:
            self._undone.discard(ask)
            yield TurnUndone(final.number)

    def undo(self) -> Iterator[Event]:
        """Remove the last turn from the history; it is reported once it has ended."""
        if not self.turns:
            return
        turn = self.turns.pop()
        closing = next((ask for ask in self._closing if self._over[ask] is turn), None)
        if closing is None:
            yield TurnUndone(turn.number)
        else:
            self._undone.add(closing)


def joined(first: Message, second: Message) -> Message:
    """Join two parts of one message; of a spoken and a typed part only the second remains."""
    if isinstance(first, Spoken) and isinstance(second, Spoken):
        gap = np.zeros(int(_JOIN_SECONDS * SAMPLE_RATE), np.float32)
        return Spoken(np.concatenate([first.samples, gap, second.samples]))
    if isinstance(first, Typed) and isinstance(second, Typed):
        return Typed(f"{first.text}\n{second.text}")
    return second


def same(one: Message, other: Message) -> bool:
    """Whether two messages are equal, sample for sample."""
    if isinstance(one, Spoken) and isinstance(other, Spoken):
        return one.key == other.key
    return one == other
