"""Maintenance of the sessions folder: repairs what a kill left, deletes what expired or is unwanted."""

from __future__ import annotations

import contextlib
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from assistant.errors import AssistantError, BadInput
from assistant.events import SAMPLE_RATE
from assistant.sessions.journal import read_journal, read_lines
from assistant.sessions.reader import MESSAGES, append, sessions
from assistant.sessions.recorder import EVENTS, JOURNAL, LOCK, write_flac

GONE, COMING = ".deleted-", ".import-"
"""Prefixes of folders that are being deleted or imported; no reader opens them."""
_ABANDONED_SECONDS = 3600.0  # an import that has not ended by then was killed


def recover(folder: Path) -> int:
    """Turn the journals that a killed process left into utterances; returns how many.

    Raises:
        OSError: one cannot be written; its journal stays.
    """
    made = 0
    for path in _journals(folder):
        number = int(path.name.removesuffix(JOURNAL))
        lines, _ = read_lines(folder / EVENTS)
        named = {line.get("turn") for line in lines if line.get("type") in MESSAGES}
        samples = read_journal(path).astype(np.float32) / np.float32(32768)
        if number not in named and len(samples):
            name = f"{number:04d}-user.flac"
            digest = write_flac(folder / "audio" / name, samples, SAMPLE_RATE)
            append(folder, "utterance_recovered", turn=number, audio=f"audio/{name}", sha256=digest)
            made += 1
        path.unlink()
    for path in (folder / "audio").glob("*.part"):
        path.unlink()
    return made


def _journals(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{JOURNAL}") if path.name.removesuffix(JOURNAL).isdecimal())


def tidy(root: Path, keep_days: int | None = None, *, as_promised: bool = False) -> list[str]:
    """Maintenance at start: recover what a killed process left, and delete expired sessions.

    Args:
        keep_days: sessions that are older are deleted; None keeps them all,
        as_promised: except, with this, each that is older than the days that it was recorded for.

    Returns what to tell the user. A session that a running program records is left alone.
    """
    messages = []
    try:
        _sweep(root)
        for folder in sessions(root):
            if (folder / LOCK).exists() or _journals(folder):
                messages += _repaired(folder)
        if keep_days is not None or as_promised:
            gone = len(expire(root, keep_days))
            if gone:
                age = f" older than {keep_days} days" if keep_days is not None else ""
                messages.append(f"{gone} session{'s' * (gone > 1)}{age} deleted: you chose to keep them that long.")
    except AssistantError as error:
        messages.append(str(error))
    return messages


def _sweep(root: Path) -> None:
    """Delete what a killed process was deleting or importing."""
    for folder in root.glob(f"{GONE}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in root.glob(f"{COMING}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(folder)


def _repaired(folder: Path) -> list[str]:
    """Repair a session that was cut off, and delete one without turns; returns messages for the user."""
    messages = []
    try:
        with FileLock(folder / LOCK, mode=0o600, timeout=0):
            if recover(folder):
                messages.append(f"The last words of session {folder.name}, which was cut off, were recovered.")
        (folder / LOCK).unlink(missing_ok=True)
        if not any("turn" in line for line in read_lines(folder / EVENTS)[0]):
            delete(folder)
    except Timeout:
        pass
    except OSError as error:
        messages.append(f"Session {folder.name} cannot be repaired ({error.strerror or error}): free space.")
    return messages


def delete(folder: Path) -> None:
    """Delete a session, as a whole, even if the process is killed meanwhile.

    Raises:
        BadInput: it is none, or is being recorded.
        AssistantError: it cannot be deleted.
    """
    if not (folder / EVENTS).is_file():
        raise BadInput(f"{folder} holds no session: nothing was deleted.")
    folder = folder.resolve()
    gone = folder.with_name(f"{GONE}{folder.name}")
    try:
        if (folder / LOCK).exists():
            FileLock(folder / LOCK, mode=0o600).acquire(timeout=0).lock.release()
        folder.rename(gone)
        shutil.rmtree(gone)
    except Timeout as error:
        raise BadInput(f"{folder} is being recorded: end the conversation first.") from error
    except OSError as error:
        raise AssistantError(f"{folder} cannot be deleted ({error.strerror}): close what uses it.") from error


def expire(root: Path, days: int | None, *, now: datetime | None = None) -> list[Path]:
    """Delete the sessions that are older than `days` (None: than the days that each was recorded for).

    Returns their folders. One that is being recorded stays.

    Raises:
        AssistantError: one cannot be deleted.
    """
    gone = []
    for folder in sessions(root):
        kept = _promised(folder) if days is None else days
        if kept is None:
            continue
        oldest = (now or datetime.now(UTC).astimezone()) - timedelta(days=kept)
        if folder.name < f"{oldest:%Y-%m-%d_%H-%M-%S}":
            with contextlib.suppress(BadInput):
                delete(folder)
                gone.append(folder)
    return gone


def _promised(folder: Path) -> int | None:
    """The days that a session was recorded for, or None."""
    try:
        lines, _ = read_lines(folder / EVENTS)
    except OSError:
        return None
    days = lines[0].get("keep_days") if lines else None
    return days if isinstance(days, int) and days > 0 else None
