"""The conversation corpus: JSON lines under training/replies/corpus, one record (a dialogue or one exchange) each.

    id       kind and number, e.g. "memory-0012"
    kind     what it teaches (`KINDS`)
    tone     how the voice sounded: one of EMOTIONS, two of them ("sad/neutral", the likelier first), or null
    history  earlier turns, each {"tone", "said", "reply"}
    said     what was said, as speech recognition writes it
    reply    what is answered

`read_plain` reads the form in which people write: `tone | said | reply` a line, tones by their first letter ("u" for
surprise, "-" for none), a blank line between records, and `# kind: KIND` first.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from assistant.events import EMOTIONS
from model.errors import BadInput

CORPUS = Path(str(files("training"))) / "replies" / "corpus"

KINDS = (
    "advice",
    "commands",
    "crisis",
    "everyday",
    "facts",
    "feelings",
    "groups",
    "itself",
    "limits",
    "lookalike",
    "manners",
    "memory",
    "unclear",
)
"""groups: the same words in several tones. lookalike: what sounds like a crisis and is none. itself: about the
assistant and privacy. manners: thanks, rudeness, goodbyes. The others say what they are."""

_LETTERS = {"n": "neutral", "h": "happy", "a": "angry", "s": "sad", "u": "surprise"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange.

    Attributes:
        tones: the labels that the voice may have had, the likeliest first; none: not read, typed, or unsure.
    """

    tones: tuple[str, ...]
    said: str
    reply: str


@dataclass(frozen=True, slots=True)
class Record:
    """A dialogue, or one exchange."""

    id: str
    kind: str
    turns: tuple[Turn, ...]

    @property
    def held_out(self) -> bool:
        """Whether it is for validation: one in twenty, all records that begin with the same words together."""
        words = self.turns[0].said.lower().strip(" .?!")
        return hashlib.sha256(words.encode()).digest()[0] * 20 < 256


def as_row(record: Record) -> dict[str, Any]:
    """The record as its JSON line holds it."""
    *history, last = ({"tone": "/".join(t.tones) or None, "said": t.said, "reply": t.reply} for t in record.turns)
    return {"id": record.id, "kind": record.kind, "tone": last["tone"], "history": history} | last


def of_row(row: dict[str, Any]) -> Record:
    """The record of a JSON line.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    if row["kind"] not in KINDS:
        raise ValueError(f"unknown kind {row['kind']!r}")
    return Record(row["id"], row["kind"], tuple(_turn(one) for one in (*row["history"], row)))


def _turn(row: dict[str, Any]) -> Turn:
    tones = tuple(row["tone"].split("/")) if row["tone"] is not None else ()
    if len(tones) > 2 or len(set(tones)) != len(tones) or not set(tones) <= set(EMOTIONS):
        raise ValueError(f"unknown tone {row['tone']!r}")
    if not row["said"].strip() or not row["reply"].strip():
        raise ValueError("nothing said or replied")
    return Turn(tones, row["said"], row["reply"])


def read_corpus(folder: Path = CORPUS) -> list[Record]:
    """Read a corpus.

    Args:
        folder: of *.jsonl files.

    Returns:
        All records, in the order of their files.

    Raises:
        BadInput: there are none, or a line is no record.
    """
    records = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            try:
                records.append(of_row(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadInput(f"{file}:{number}: no record of the corpus ({error}): correct the line.") from error
    if not records:
        raise BadInput(f"{folder} holds no *.jsonl: name the folder of the corpus.")
    return records


def write_corpus(folder: Path, records: Iterable[Record]) -> None:
    """Write KIND.jsonl for each kind.

    Args:
        folder: to write to.
        records: of the corpus.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for record in records:
        lines.setdefault(record.kind, []).append(json.dumps(as_row(record), ensure_ascii=False) + "\n")
    for kind, rows in lines.items():
        (folder / f"{kind}.jsonl").write_text("".join(rows), "utf-8")


def read_plain(paths: Iterable[Path]) -> list[Record]:
    """Read files in the plain form.

    Args:
        paths: of the files.

    Returns:
        The records, numbered by kind.

    Raises:
        BadInput: a line is not in that form.
    """
    records, counts = [], Counter[str]()
    for path in paths:
        for kind, turns in _plain_records(path):
            counts[kind] += 1
            records.append(Record(f"{kind}-{counts[kind]:04}", kind, tuple(turns)))
    return records


def _plain_records(path: Path) -> Iterator[tuple[str, list[Turn]]]:
    kind, turns = "", list[Turn]()
    for number, line in enumerate([*path.read_text("utf-8").splitlines(), ""], 1):
        if line.startswith("#"):
            kind = line.partition(":")[2].strip()
        elif line.strip():
            parts = [part.strip() for part in line.split("|")]
            letters = [] if parts[0] == "-" else parts[0].split("/")
            if len(parts) != 3 or not all(parts) or kind not in KINDS or not set(letters) <= set(_LETTERS):
                raise BadInput(f"{path}:{number}: not `tone | said | reply` of a known kind: correct the line.")
            turns.append(Turn(tuple(_LETTERS[one] for one in letters), parts[1], parts[2]))
        elif turns:
            yield kind, turns
            turns = []
