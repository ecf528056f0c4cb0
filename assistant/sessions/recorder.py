"""Records a session. A write error is reported once and ends the recording; the conversation continues.

A session is a folder: `events.jsonl` and one FLAC per utterance and reply below `audio/`. A recording is written
under a temporary name, moved into place, and only then named, with its hash, by a line. The utterance in
progress is a journal; `assistant.sessions.maintenance.recover` makes an utterance of one that a killed process left.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from assistant.events import SAMPLE_RATE, Failed, Samples, Spoken, TurnEnded, Typed
from assistant.files import write_atomically
from assistant.sessions.journal import Journal, JsonLines

VERSION = 1
EVENTS = "events.jsonl"
JOURNAL = "-user.journal"
LOCK = "in-use.lock"
"""Held while a session is recorded; the system releases it when the process is killed."""


class Recorder:
    """Writes one session.

    Args:
        root: the folder of all sessions.
        report: called once when something cannot be written.
        about: what the session's first line says besides: model, device and so on.
        clock: seconds; lines carry the time since the recorder was made.
    """

    def __init__(
        self,
        root: Path,
        report: Callable[[Failed], None],
        *,
        about: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder: Path | None = None
        self._report = report
        self._clock = clock
        self._started = clock()
        self._journal: Journal | None = None
        self._lines: JsonLines | None = None
        self._notified: set[int] = set()  # turns whose message was written
        self._in_use: FileLock | None = None
        with self._guard():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            now = datetime.now(UTC).astimezone()
            folder = root / new_name(now)
            (folder / "audio").mkdir(mode=0o700, parents=True)
            folder.chmod(0o700)
            self.folder = folder
            self._in_use = FileLock(folder / LOCK, mode=0o600, thread_local=False)
            self._in_use.acquire()
            self._lines = JsonLines(folder / EVENTS)
            self._line("session_started", started=now.isoformat(timespec="seconds"), **(about or {}), sync=True)

    @property
    def recording(self) -> bool:
        """Whether it still records; False after a write error."""
        return self._lines is not None

    def sound(self, turn: int, samples: Samples) -> None:
        """Record a chunk of the turn in progress, mono 16 kHz."""
        if self._lines is None or self.folder is None:
            return
        with self._guard():
            self._journal = self._journal or Journal(self.folder / f"{turn:04d}{JOURNAL}")
            self._journal.append(coded(samples))

    def dropped(self) -> None:
        """Drop the journal of an utterance that was discarded."""
        if self._journal is not None:
            journal, self._journal = self._journal, None
            with self._guard():
                journal.remove()

    def utterance(self, turn: int, message: Spoken | Typed) -> None:
        """Record the complete message of a turn."""
        if self._lines is None:
            return
        self._notified.add(turn)
        with self._guard():
            if isinstance(message, Typed):
                self._line("typed", turn=turn, text=message.text)
            else:
                self._line("utterance", turn=turn, **self._audio(f"{turn:04d}-user.flac", message.samples, SAMPLE_RATE))
        self.dropped()

    def ended(self, event: TurnEnded, audio: Samples | None = None, rate: int = SAMPLE_RATE) -> None:
        """Record the end of a turn; `audio` is what was heard of its reply."""
        turn = event.turn
        if turn.number not in self._notified:  # recording began during the turn
            self.utterance(turn.number, turn.message)
        if self._lines is None:
            return
        with self._guard():
            spoken = {}
            if audio is not None and len(audio):
                spoken = self._audio(f"{turn.number:04d}-reply.flac", audio, rate)
            self._line(
                "turn_ended",
                turn=turn.number,
                outcome=turn.outcome.value,
                transcript=turn.transcript,
                reading=turn.reading.as_dict() if turn.reading else None,
                reply=turn.reply,
                heard=turn.heard,
                marks=dict(turn.marks),
                figures=dict(turn.figures),
                sync=True,
                **spoken,
            )

    def note(self, kind: str, **values: Any) -> None:
        """Record any other line, such as a correction or an undo."""
        if self._lines is not None:
            with self._guard():
                self._line(kind, **values)

    def close(self) -> None:
        """End the session; an empty one is deleted."""
        if self._lines is None or self.folder is None:
            return
        self.dropped()
        with self._guard():
            self._line("session_ended", sync=True)
        if self._lines is None:
            return
        lines, self._lines = self._lines, None
        with self._guard():
            lines.close()
            self._release()
            if not self._notified:
                shutil.rmtree(self.folder)

    def _release(self) -> None:
        """Release the session's lock."""
        if self._in_use is not None and self.folder is not None:
            self._in_use.release()
            (self.folder / LOCK).unlink(missing_ok=True)

    def _line(self, kind: str, *, sync: bool = False, **values: Any) -> None:
        assert self._lines is not None, "callers look first"
        at = round(self._clock() - self._started, 3)
        self._lines.append({"v": VERSION, "t": at, "type": kind, **values}, sync=sync)

    def _audio(self, name: str, samples: Samples, rate: int) -> dict[str, Any]:
        assert self.folder is not None, "callers look first"
        return {"audio": f"audio/{name}", "sha256": write_flac(self.folder / "audio" / name, samples, rate)}

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """The conversation goes on without the disk: report the error once and stop recording."""
        try:
            yield
        except OSError as error:
            for file in (self._lines, self._journal):
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.close()
            self._lines = self._journal = None
            with contextlib.suppress(OSError):
                self._release()
            why = error.strerror or str(error)
            self._report(Failed(None, f"Recording stopped ({why}): free space or choose another folder; talk on."))


def new_name(now: datetime | None = None) -> str:
    """A folder name for a session that begins, or is imported, now. Sessions are sorted and expire by name."""
    return f"{now or datetime.now(UTC).astimezone():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(2)}"


def coded(samples: Samples) -> NDArray[np.int16]:
    """Convert samples to 16-bit integers."""
    integers: NDArray[np.int16] = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
    return integers


def write_flac(path: Path, samples: Samples, rate: int) -> str:
    """Write a 16-bit FLAC, complete or not at all; returns its SHA-256.

    Raises:
        OSError: the disk is full or forbids it.
    """
    import soundfile

    memory = io.BytesIO()
    soundfile.write(memory, coded(samples), rate, subtype="PCM_16", format="FLAC")
    data = memory.getvalue()
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()
