"""What the list knows about a session: read from its event lines, without the recordings."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from assistant.events import EMOTIONS, UNSURE
from assistant.sessions.journal import read_lines
from assistant.sessions.recorder import EVENTS, LOCK
from ui.core.untrusted_text import valid_unicode


@dataclass(frozen=True, slots=True)
class Summary:
    """A session in the list.

    Attributes:
        started: local start time, None if the first line is lost.
        seconds: from the start to the last line.
        emotions: of the spoken turns in order, with the user's corrections.
        first_words: of the first turn with text.
        text: all messages and replies, normalised for the search.
        running: whether it is being recorded.
        damaged: the number of unreadable lines and missing recordings.
        lines: the number of readable lines; it grows with the session.
    """

    folder: Path
    started: datetime | None
    seconds: float
    turns: int
    emotions: tuple[str, ...]
    first_words: str
    text: str
    model: str = ""
    running: bool = False
    damaged: int = 0
    lines: int = 0

    @property
    def day(self) -> date | None:
        """The day it started."""
        return self.started.date() if self.started else None


_KNOWN = (*EMOTIONS, UNSURE)
_LATER = ("correction", "utterance_recovered")
"""Lines that may be added long after the session ended."""


def summarise(folder: Path) -> Summary:
    """Summarise a session from its event lines.

    Raises:
        OSError: the lines cannot be read.
    """
    lines, damaged = read_lines(folder / EVENTS)
    about: Mapping[str, Any] = {}
    words: dict[int, str] = {}
    replies: dict[int, str] = {}
    sounded: dict[int, str] = {}
    corrected: dict[int, str] = {}
    for line in lines:
        kind, turn = line.get("type"), line.get("turn")
        if kind == "session_started":
            about = line
        elif not isinstance(turn, int):
            continue
        elif kind in ("utterance", "utterance_recovered", "typed"):
            words[turn] = str(line.get("text") or "")
        elif kind == "turn_ended":
            words[turn] = str(line.get("transcript") or words.get(turn, ""))
            replies[turn] = str(line.get("reply") or "")
            if isinstance(reading := line.get("reading"), dict):
                sounded[turn] = str(reading.get("label"))
        elif kind == "transcribed":
            words[turn] = words.get(turn) or str(line.get("text") or "")
        elif kind == "correction":
            corrected[turn] = str(line.get("emotion") or "")
        elif kind == "undone":
            for known in (words, replies, sounded):
                known.pop(turn, None)
    recordings = [name for line in lines if isinstance(name := line.get("audio"), str)]
    return Summary(
        folder=folder,
        started=_time(about.get("started")),
        seconds=max((_number(line.get("t")) for line in lines if line.get("type") not in _LATER), default=0.0),
        turns=len(words),
        emotions=tuple(felt for turn in words if (felt := corrected.get(turn) or sounded.get(turn)) in _KNOWN),
        first_words=valid_unicode(next((text for text in words.values() if text), "")[:500]),
        text=folded("\n".join((*words.values(), *replies.values()))),
        model=valid_unicode(str(about.get("model") or "")[:100]),
        running=_in_use(folder / LOCK),
        damaged=damaged + sum(not (folder / "audio" / Path(name).name).is_file() for name in recordings),
        lines=len(lines),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else 0.0


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone()
    except (ValueError, OverflowError):
        return None


def _in_use(lock: Path) -> bool:
    """Return whether a running program holds the lock. A killed one leaves only the file."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, mode=0o600, timeout=0):
            return False
    except Timeout:
        return True


def folded(text: str) -> str:
    """Normalise text for comparison: no case, accents or width variants."""
    if text.isascii():
        return text.casefold()
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.casefold()
