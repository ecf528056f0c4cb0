"""Corrections of readings: how an utterance really sounded, kept with consent for fine-tuning.

One JSON line each, with the fields `audio`, `text`, `emotion`, `read_as`, `session`, `turn` and `consent`. `audio` is
a path relative to the file's folder where it lies below it: an utterance of a recorded session stays in its
session and is deleted with it; one of an unrecorded conversation is stored next to the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assistant.events import EMOTIONS, SAMPLE_RATE, Spoken, Turn
from assistant.files import write_atomically
from assistant.sessions.recorder import write_flac


@dataclass(frozen=True, slots=True)
class Correction:
    """One line of the file. `audio` is absolute after reading."""

    audio: str
    text: str
    emotion: str
    read_as: str | None
    session: str
    turn: int
    consent: bool = True


def corrections(path: Path) -> list[Correction]:
    """The corrections whose recordings still exist, oldest first; other lines are skipped.

    Raises:
        OSError: the file is there and cannot be read.
    """
    found = [_correction(line) for line in _lines(path)]
    whole = [Correction(**{**asdict(one), "audio": str(path.parent / one.audio)}) for one in found if one]
    return [one for one in whole if Path(one.audio).is_file()]


def keep(path: Path, turn: Turn, emotion: str | None, session: str, audio: Path | None = None) -> None:
    """Set the correction of a turn, or remove it (`emotion` None).

    Args:
        path: the file of all corrections.
        audio: where the session keeps the utterance; None: it is written next to the file.

    Raises:
        OSError: it cannot be written; the file stays as it was.
    """
    own = path.parent / "corrections" / f"{session}-{turn.number:04d}.flac"
    lines = [line for line in _lines(path) if (line.get("session"), line.get("turn")) != (session, turn.number)]
    if emotion is not None:
        if audio is None:
            assert isinstance(turn.message, Spoken), "what was typed has no sound"
            own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_flac(own, turn.message.samples, SAMPLE_RATE)
        whole = (audio or own).absolute()
        base = path.parent.absolute()
        name = whole.relative_to(base).as_posix() if whole.is_relative_to(base) else str(whole)
        read_as = turn.reading.label if turn.reading else None
        lines.append(asdict(Correction(name, turn.transcript or "", emotion, read_as, session, turn.number)))
    if lines or path.exists():
        _write(path, lines)
    if emotion is None:
        own.unlink(missing_ok=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        raw = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    lines = []
    for one in raw:
        try:
            line = json.loads(one)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _correction(line: dict[str, Any]) -> Correction | None:
    try:
        one = Correction(**line)
    except TypeError:
        return None
    sound = isinstance(one.audio, str) and isinstance(one.turn, int) and one.consent is True
    return one if sound and one.emotion in EMOTIONS else None


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
