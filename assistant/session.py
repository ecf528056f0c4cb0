"""Sessions read back, whatever a kill or a failing disk has left of them; and the folder of all sessions."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from assistant.corrections import keep
from assistant.errors import AssistantError, BadInput
from assistant.events import EMOTIONS, EmotionReading, Outcome, Samples, Spoken, Turn, Typed
from assistant.journal import Lines, read_journal, read_lines
from assistant.recorder import EVENTS, JOURNAL, LOCK, RATE, VERSION, write_flac


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTurn:
    """A turn as it was recorded.

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
    """A session read back.

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
    """What is known of a turn while its lines are read."""

    number: int
    at: float = 0.0
    text: str | None = None
    user: Path | None = None
    reply: Path | None = None
    ended: Mapping[str, Any] = field(default_factory=dict)
    words: str | None = None  # they can come after the turn's end
    corrected: str | None = None


def read_session(folder: Path) -> Session:
    """Read a session, whatever a kill, a full disk or a failing one has left of it. It changes nothing.

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
        if kind in ("utterance", "typed", "utterance_recovered"):
            half.at, half.text = float(line["t"]), line.get("text")
            half.user, bad = _sound_file(folder, line)
            damaged += bad
        elif kind == "turn_ended":
            half.ended = line
            half.reply, bad = _sound_file(folder, line)
            damaged += bad
        elif kind == "transcribed":
            half.words = line.get("text")
        elif kind == "correction":
            half.corrected = line.get("emotion")
        elif kind == "undone":
            undone.add(number)
    turns = tuple(_recorded(half) for half in halves.values() if half.number not in undone)
    return Session(folder, about, turns, damaged)


def _sound_file(folder: Path, line: Mapping[str, Any]) -> tuple[Path | None, int]:
    """The recording that a line names, if it is the one that was written; and 1 if it is not."""
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
    line = half.ended
    samples = read_flac(half.user)[0] if half.user else np.zeros(0, np.float32)
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
    """Samples and rate of a recording whose hash was checked."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32")
    return samples, rate


def reading_from(values: Mapping[str, Any] | None) -> EmotionReading | None:
    """The reading behind `EmotionReading.as_dict`."""
    if values is None:
        return None
    return EmotionReading(
        probabilities=np.array([values["probabilities"][emotion] for emotion in EMOTIONS], np.float32),
        label=values["label"],
        frame_seconds=values["frame_seconds"],
        contributions=np.array(values["contributions"], np.float32).reshape(-1, len(EMOTIONS)),
        offset=np.array(values["offset"], np.float32),
    )


# ---- the folder of all sessions


def recover(folder: Path) -> int:
    """Make utterances of the journals that a killed process left; returns how many.

    Raises:
        OSError: one cannot be written; its journal stays.
    """
    made = 0
    for path in _journals(folder):
        number = int(path.name.removesuffix(JOURNAL))
        lines, _ = read_lines(folder / EVENTS)
        named = {line.get("turn") for line in lines if str(line.get("type")).startswith("utterance")}
        samples = read_journal(path).astype(np.float32) / np.float32(32768)
        if number not in named and len(samples):
            name = f"{number:04d}-user.flac"
            digest = write_flac(folder / "audio" / name, samples, RATE)
            _append(folder, "utterance_recovered", turn=number, audio=f"audio/{name}", sha256=digest)
            made += 1
        path.unlink()
    return made


def _journals(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{JOURNAL}") if path.name.removesuffix(JOURNAL).isdecimal())


def _append(folder: Path, kind: str, **values: Any) -> None:
    """Write one more line into a session. Raises OSError."""
    started = next((line.get("started") for line in read_lines(folder / EVENTS)[0] if "started" in line), None)
    since = (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds() if started else 0.0
    lines = Lines(folder / EVENTS)
    try:
        lines.append({"v": VERSION, "t": round(since, 3), "type": kind, **values}, sync=True)
    finally:
        lines.close()


def correct(
    folder: Path, turn: int, emotion: str | None, *, consent: bool = False, corrections: Path | None = None
) -> None:
    """The user says how an utterance of a session really sounded, or takes that back (None).

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
        _append(folder, "correction", turn=turn, emotion=emotion)
        if corrections is not None:
            keep(corrections, recorded.turn, emotion if consent else None, folder.name, recorded.user_audio)
    except OSError as error:
        raise AssistantError(f"The correction cannot be kept ({error.strerror or error}): free space.") from error


def tidy(root: Path, keep_days: int | None = None) -> list[str]:
    """What is to be done at a start: recover what a killed process left, delete what is older than `keep_days`.

    Returns what to tell the user. A session that a running program records is left alone.
    """
    told = []
    for folder in sessions(root):
        if not _journals(folder):
            continue
        try:
            with FileLock(folder / LOCK, mode=0o600, timeout=0):
                if recover(folder):
                    told.append(f"What was being said when session {folder.name} was cut off has been recovered.")
            (folder / LOCK).unlink(missing_ok=True)
        except Timeout:
            pass
        except OSError as error:
            told.append(f"Session {folder.name} cannot be repaired ({error.strerror or error}): free space.")
    if keep_days is not None:
        try:
            gone = len(expire(root, keep_days))
        except AssistantError as error:
            told.append(str(error))
        else:
            if gone:
                told.append(f"{gone} session{'s' * (gone > 1)} older than {keep_days} days deleted, as you chose.")
    return told


def sessions(root: Path) -> list[Path]:
    """The folders of all sessions, newest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if (path / EVENTS).is_file()), reverse=True)


def delete(folder: Path) -> None:
    """Delete a session.

    Raises:
        BadInput: it is none.
        AssistantError: it cannot be deleted.
    """
    if not (folder / EVENTS).is_file():
        raise BadInput(f"{folder} holds no session: nothing was deleted.")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise AssistantError(f"{folder} cannot be deleted ({error.strerror}): close what uses it.") from error


def expire(root: Path, days: int, *, now: datetime | None = None) -> list[Path]:
    """Delete the sessions that are older than `days`; returns their folders."""
    oldest = (now or datetime.now(UTC).astimezone()) - timedelta(days=days)
    gone = [folder for folder in sessions(root) if folder.name < f"{oldest:%Y-%m-%d_%H-%M-%S}"]
    for folder in gone:
        delete(folder)
    return gone


def summary(session: Session) -> dict[str, Any]:
    """One line about a session, as `sessions list --json` prints it."""
    turns = [recorded.turn for recorded in session.turns]
    return {
        "name": session.folder.name,
        "started": session.started,
        "model": session.about.get("model"),
        "turns": len(turns),
        "emotions": sorted({turn.reading.label for turn in turns if turn.reading}),
        "first_words": next((text for turn in turns if (text := words_of(turn))), ""),
        "damaged": session.damaged,
        "bytes": sum(path.stat().st_size for path in session.folder.rglob("*") if path.is_file()),
    }


def words_of(turn: Turn) -> str:
    """What the user said or typed, as text."""
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
                "seconds": len(turn.message.samples) / RATE if isinstance(turn.message, Spoken) else None,
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
    """JSON for people and programs."""
    return json.dumps(values, ensure_ascii=False, indent=2)
