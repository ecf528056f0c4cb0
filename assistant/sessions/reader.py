"""Reads sessions, however a kill or a failing disk left them, and lists the sessions folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import AssistantError, BadInput
from assistant.events import EMOTIONS, SAMPLE_RATE, UNSURE, EmotionReading, Outcome, Samples, Spoken, Turn, Typed
from assistant.sessions.corrections import keep
from assistant.sessions.journal import JsonLines, read_lines
from assistant.sessions.recorder import EVENTS, VERSION

MESSAGES = ("utterance", "typed", "utterance_recovered")
"""The types of lines that hold the user's message."""
_LONGEST_SECONDS = 3600.0  # of a recording: an imported file may claim to be years long


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTurn:
    """A recorded turn.

    Attributes:
        turn: with an empty recording as its message where the audio is missing or damaged.
        at: seconds since the session began, of the end of the message.
        user_audio, reply_audio: files below the session's folder, or None.
        corrected: the emotion that the user said it was, if they corrected the reading.
    """

    turn: Turn
    at: float
    user_audio: Path | None
    reply_audio: Path | None
    corrected: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A session.

    Attributes:
        about: the first line: when it started, with which model.
        damaged: lines and recordings that could not be used.
    """

    folder: Path
    about: Mapping[str, Any]
    turns: tuple[RecordedTurn, ...]
    damaged: int = 0

    @property
    def started(self) -> str:
        """ISO 8601 time of its start, or ""."""
        return str(self.about.get("started", ""))


@dataclass(slots=True)
class _Half:
    """A turn while its lines are read. `whole`: there is more than a late line."""

    number: int
    whole: bool = False
    at: float = 0.0
    text: str | None = None
    user: Path | None = None
    reply: Path | None = None
    ended: Mapping[str, Any] = field(default_factory=dict)
    words: str | None = None  # they can come after the turn's end
    corrected: str | None = None
    damaged: int = 0


def read_session(folder: Path) -> Session:
    """Read a session, however a kill or a failing disk left it. Changes nothing.

    Raises:
        BadInput: there is no session in the folder.
    """
    try:
        lines, damaged = read_lines(folder / EVENTS)
    except OSError as error:
        raise BadInput(f"{folder} holds no session: choose a folder with an {EVENTS} in it.") from error
    about: Mapping[str, Any] = {}
    halves: dict[int, _Half] = {}
    undone: set[int] = set()
    for line in lines:
        kind, number = line.get("type"), line.get("turn")
        if kind == "session_started":
            about = line
        if not isinstance(number, int):
            continue
        half = halves.setdefault(number, _Half(number))
        half.whole |= kind in MESSAGES or kind == "turn_ended"
        if kind in MESSAGES:
            half.at, half.text = float(line["t"]), line.get("text")
            half.user, bad = _sound_file(folder, line)
            half.damaged += bad
        elif kind == "turn_ended":
            half.ended = line
            half.reply, bad = _sound_file(folder, line)
            half.damaged += bad
        elif kind == "transcribed":
            half.words = line.get("text")
        elif kind == "correction":
            half.corrected = line.get("emotion")
        elif kind == "undone":
            undone.add(number)
    turns = tuple(_recorded(half) for half in halves.values() if half.whole and half.number not in undone)
    return Session(folder, about, turns, damaged + sum(half.damaged for half in halves.values()))


def _sound_file(folder: Path, line: Mapping[str, Any]) -> tuple[Path | None, int]:
    """The recording that a line names, if its hash matches; and 1 if it does not."""
    name = line.get("audio")
    if not isinstance(name, str):
        return None, 0
    path = folder / "audio" / Path(name).name
    try:
        sound = hashlib.sha256(path.read_bytes()).hexdigest() == line.get("sha256")
    except OSError:
        sound = False
    return (path, 0) if sound else (None, 1)


def _recorded(half: _Half) -> RecordedTurn:
    line, samples = half.ended, np.zeros(0, np.float32)
    if half.user is not None:
        try:
            samples, _ = read_flac(half.user)
        except AssistantError:
            half.user, half.damaged = None, half.damaged + 1
    turn = Turn(
        number=half.number,
        message=Spoken(samples) if half.text is None else Typed(half.text),
        transcript=line.get("transcript") or half.words,
        reading=reading_from(line.get("reading")),
        reply=line.get("reply", ""),
        heard=line.get("heard", ""),
        outcome=Outcome(line.get("outcome", Outcome.FAILED)),
        marks=line.get("marks", {}),
        figures=line.get("figures", {}),
    )
    return RecordedTurn(turn, half.at, half.user, half.reply, half.corrected)


def read_flac(path: Path) -> tuple[Samples, int]:
    """Samples (mono) and rate of a session's recording.

    Raises:
        AssistantError: it is damaged, or not there any more.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if file.channels == 1 and file.frames <= _LONGEST_SECONDS * file.samplerate:
                return file.read(dtype="float32"), file.samplerate
    except (OSError, soundfile.LibsndfileError) as error:
        raise AssistantError(f"{path} cannot be read ({error}): export the session as text instead.") from error
    raise AssistantError(f"{path} is no recording of a voice: export the session as text instead.")


def reading_from(values: Mapping[str, Any] | None) -> EmotionReading | None:
    """The inverse of `EmotionReading.as_dict`."""
    if values is None:
        return None
    return EmotionReading(
        probabilities=np.array([values["probabilities"][emotion] for emotion in EMOTIONS], np.float32),
        label=values["label"],
        frame_seconds=values["frame_seconds"],
        contributions=np.array(values["contributions"], np.float32).reshape(-1, len(EMOTIONS)),
        offset=np.array(values["offset"], np.float32),
        candidates=_candidates(values),
    )


def _candidates(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What a recorded reading may show; sessions of before hold its label alone."""
    label = values["label"]
    shown = values.get("candidates", [label] if label != UNSURE else [])
    return tuple(shown) if isinstance(shown, list) else ()


# ---- later lines, and lists


def append(folder: Path, kind: str, **values: Any) -> None:
    """Append a line to a session. Raises OSError."""
    started = next((line.get("started") for line in read_lines(folder / EVENTS)[0] if "started" in line), None)
    since = (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds() if started else 0.0
    lines = JsonLines(folder / EVENTS)
    try:
        lines.append({"v": VERSION, "t": round(since, 3), "type": kind, **values}, sync=True)
    finally:
        lines.close()


def correct(
    folder: Path, turn: int, emotion: str | None, *, consent: bool = False, corrections: Path | None = None
) -> None:
    """Record how an utterance of a session really sounded, or remove that (None).

    Args:
        consent: whether the utterance may be used for fine-tuning: then it is named in `corrections`.
        corrections: the file of all corrections; None leaves it alone.

    Raises:
        BadInput: there is no such spoken turn, or no such emotion.
        AssistantError: it cannot be written.
    """
    recorded = next((one for one in read_session(folder).turns if one.turn.number == turn), None)
    if recorded is None or recorded.user_audio is None:
        raise BadInput(f"{folder.name} holds no recording of turn {turn}: choose another one.")
    if emotion is not None and emotion not in EMOTIONS:
        raise BadInput(f"{emotion!r} is no emotion: choose one of {', '.join(EMOTIONS)}.")
    try:
        append(folder, "correction", turn=turn, emotion=emotion)
        if corrections is not None:
            keep(corrections, recorded.turn, emotion if consent else None, folder.name, recorded.user_audio)
    except OSError as error:
        raise AssistantError(f"The correction cannot be kept ({error.strerror or error}): free space.") from error


def sessions(root: Path) -> list[Path]:
    """The folders of all sessions, newest first.

    Raises:
        AssistantError: they cannot be listed.
    """
    try:
        return sorted((path for path in root.glob("[!.]*") if (path / EVENTS).is_file()), reverse=True)
    except OSError as error:
        raise AssistantError(f"{root} cannot be read ({error.strerror}): make it yours.") from error


def summary(session: Session) -> dict[str, Any]:
    """A session's entry in `sessions list --json`."""
    turns = [recorded.turn for recorded in session.turns]
    return {
        "name": session.folder.name,
        "started": session.started,
        "model": session.about.get("model"),
        "turns": len(turns),
        "emotions": sorted({turn.reading.label for turn in turns if turn.reading}),
        "first_words": next((text for turn in turns if (text := words_of(turn))), ""),
        "damaged": session.damaged,
        "bytes": sum(map(_size, session.folder.rglob("*"))),
    }


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # a journal disappears when its utterance is complete
        return path.stat().st_size if path.is_file() else 0
    return 0


def words_of(turn: Turn) -> str:
    """The user's message as text."""
    return turn.message.text if isinstance(turn.message, Typed) else (turn.transcript or "")


def as_json(session: Session) -> dict[str, Any]:
    """A session as plain JSON values: what `sessions show --json` and the JSON export hold."""
    turns = []
    for recorded in session.turns:
        turn = recorded.turn
        turns.append(
            {
                "turn": turn.number,
                "at_seconds": recorded.at,
                "words": words_of(turn),
                "typed": isinstance(turn.message, Typed),
                "seconds": len(turn.message.samples) / SAMPLE_RATE if isinstance(turn.message, Spoken) else None,
                "reading": turn.reading.as_dict() if turn.reading else None,
                "corrected": recorded.corrected,
                "reply": turn.reply,
                "heard": turn.heard,
                "outcome": turn.outcome.value,
                "marks": dict(turn.marks),
                "figures": dict(turn.figures),
                "audio": [str(p.relative_to(session.folder)) for p in (recorded.user_audio, recorded.reply_audio) if p],
            }
        )
    return {"name": session.folder.name, "about": dict(session.about), "turns": turns, "damaged": session.damaged}


def as_text(values: Mapping[str, Any]) -> str:
    """Indented JSON text."""
    return json.dumps(values, ensure_ascii=False, indent=2)
