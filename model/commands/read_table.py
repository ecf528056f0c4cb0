"""The CSV file of `read`: one row per recording, written as readings are made, and resumed after a stop."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

from filelock import FileLock, Timeout

from assistant.events import EMOTIONS, UNSURE
from model.errors import BadInput
from model.files import write_atomically
from model.inference.emotion_reader import EmotionReader

COLUMNS = (
    "file", "duration_seconds", "label", "confidence", *EMOTIONS, "candidates", "why", "size", "mtime_ns", "read_with",
)  # fmt: skip
"""`candidates`: labels separated by spaces, or "unsure". `size`, `mtime_ns`: the file's, when it was read."""

Row = list[str]


def digest(reader: EmotionReader, quantize: str) -> str:
    """Eight hexadecimal digits that identify the head, the baseline and the quantization, on which readings depend."""
    total = hashlib.blake2b(quantize.encode(), digest_size=4)
    head = reader.model.emotion_head
    tensors = dict(head.state_dict()) if head is not None else {}
    tensors |= {} if reader.baseline is None else {"baseline": reader.baseline}
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


class ReadTable:
    """A CSV file of readings, open for appending.

    An incomplete last line, left by a kill, is removed. A row is removed when its recording is to be read and has
    changed since, or was read with another head or baseline.

    Args:
        path: the file, new or existing.
        read_with: identifies the model, from `digest`.

    Raises:
        BadInput: it is something else, another process writes it, or it cannot be written.
    """

    def __init__(self, path: Path, read_with: str) -> None:
        self._path = path
        self._read_with = read_with
        self._rows: dict[str, Row] = {}
        self._file: IO[str]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            try:
                lock = FileLock(f"{self._path}.lock", timeout=0)
                stack.enter_context(lock)
                if os.name == "posix":  # on other systems the lock removes its file itself
                    stack.callback(Path(lock.lock_file).unlink, missing_ok=True)
                found = self._path.read_bytes() if self._path.exists() else b""
                self._rows = {row[0]: row for row in self._valid_rows(found)}
                if self._text(self._rows.values()).encode("utf-8", "surrogateescape") != found:
                    self._rewrite()
                self._file = stack.enter_context(self._open())
            except Timeout as error:
                raise BadInput(f"{self._path} is being written by another process: wait for it.") from error
            except OSError as error:
                raise self._unwritable(error) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def unread(self, files: Sequence[Path]) -> list[Path]:
        """The recordings to read, each once; their outdated rows are removed.

        Raises:
            BadInput: the file cannot be written.
        """
        left = [path for path in dict.fromkeys(files) if not self._holds(path)]
        stale = [self._rows.pop(str(path)) for path in left if str(path) in self._rows]
        if stale:
            self._file.close()
            try:
                self._rewrite()
                self._file = self._stack.enter_context(self._open())
            except OSError as error:
                raise self._unwritable(error) from error
        return left

    def failed(self, files: Sequence[Path]) -> int:
        """Number of the recordings whose row says that they could not be read."""
        found = (self._rows.get(name) for name in {str(path) for path in files})
        return sum(row is not None and not row[COLUMNS.index("duration_seconds")] for row in found)

    def add(self, result: Mapping[str, Any]) -> None:
        """Write the row of a result at once.

        Raises:
            BadInput: the disk is full.
        """
        row = self._row(result)
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self._rows[row[0]] = row

    def _row(self, result: Mapping[str, Any]) -> Row:
        reading = result["reading"]
        values: list[Any] = [result["file"], result["duration_seconds"]]
        if reading is None:
            values += [""] * (3 + len(EMOTIONS)) + [result["why"]]
        else:
            candidates = reading["candidates"]
            values += [reading["label"], f"{reading['confidence']:.6f}"]
            values += [f"{reading['probabilities'][name]:.6f}" for name in EMOTIONS]
            values += [UNSURE if candidates == UNSURE else " ".join(candidates), ""]
        values += [*_state(Path(result["file"])), self._read_with]
        return ["" if value is None else str(value) for value in values]

    def _holds(self, path: Path) -> bool:
        row = self._rows.get(str(path))
        return row is not None and row[-3:] == [*_state(path), self._read_with]

    def _valid_rows(self, found: bytes) -> list[Row]:
        text = found.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        if _line(COLUMNS).startswith(text):  # empty, or its first line is incomplete
            return []
        try:
            rows = list(csv.reader(io.StringIO(text, newline="")))
        except csv.Error:
            rows = []
        if not rows or tuple(rows[0]) != COLUMNS:
            raise BadInput(f"{self._path} is not a table of readings: choose another file.")
        whole = rows[1:] if text.endswith("\n") else rows[1:-1]
        return [row for row in whole if len(row) == len(COLUMNS)]

    def _text(self, rows: Iterable[Row]) -> str:
        return _line(COLUMNS) + "".join(map(_line, rows))

    def _rewrite(self) -> None:
        write_atomically(self._path, self._text(self._rows.values()).encode("utf-8", "surrogateescape"))

    def _open(self) -> IO[str]:
        return self._path.open("a", encoding="utf-8", errors="surrogateescape", newline="")

    def _unwritable(self, error: OSError) -> BadInput:
        return BadInput(f"{self._path} cannot be written ({error.strerror}): make room or choose another folder.")


def _line(row: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()


def _state(path: Path) -> list[str]:
    """Size and modification time, both empty if there is no such file."""
    try:
        about = path.stat()
    except OSError:
        return ["", ""]
    return [str(about.st_size), str(about.st_mtime_ns)]
