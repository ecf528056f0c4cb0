"""The turn in the making, the turns that are over with what may still be learned of them, and messages joined."""

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

_JOIN_SECONDS = 0.3  # of silence between two parts of a message that was taken up again
_REVISABLE = 16  # turns that may still learn their transcript or what was heard of them


@dataclass(slots=True, eq=False)
class LiveTurn:
    """The turn in the making. `held` is what will be told once the turn is certain."""

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
        """What is remembered of it."""
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
    """The turns that are over. Their last ones are known by their asks: words and hearing may still come.

    Attributes:
        turns: oldest first.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._over: dict[int, Turn] = {}
        self._closing: set[int] = set()  # silenced; the final word on what was heard is still to come
        self._undone: set[int] = set()  # of these, the ones that are to be told as undone after it

    def add(self, ask: int, turn: Turn, *, closing: bool) -> None:
        """A turn is over; with `closing`, what was heard of it is still to be settled."""
        self.turns.append(turn)
        self._over[ask] = turn
        if closing:
            self._closing.add(ask)
        if len(self._over) > _REVISABLE:
            oldest = min(self._over)
            del self._over[oldest]
            self._closing.discard(oldest)

    def closing(self, ask: int) -> bool:
        """Whether the final word on what was heard of that turn is still to come."""
        return ask in self._closing

    def revise(self, ask: int, **learned: Any) -> Turn | None:
        """A turn that is over learned something more; after an undo it is not in the history any more."""
        before = self._over.get(ask)
        if before is None:
            return None
        final = self._over[ask] = replace(before, **learned)
        self.turns = [final if turn is before else turn for turn in self.turns]
        return final

    def settle(self, ask: int, heard: str) -> Iterator[Event]:
        """This is what was heard of a turn that was closing."""
        final = self.revise(ask, heard=heard)
        assert final is not None, "callers look first"
        self._closing.discard(ask)
        yield PlaybackFinished(final.number, heard)
        yield TurnEnded(final)
        if ask in self._undone:
            self._undone.discard(ask)
            yield TurnUndone(final.number)

    def undo(self) -> Iterator[Event]:
        """Take the last turn out of the history: told once it has ended."""
        if not self.turns:
            return
        turn = self.turns.pop()
        closing = next((ask for ask in self._closing if self._over[ask] is turn), None)
        if closing is None:
            yield TurnUndone(turn.number)
        else:
            self._undone.add(closing)


def joined(first: Message, second: Message) -> Message:
    """Two parts of one message; of a spoken and a typed part the second alone."""
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
