"""Append-only files that survive a kill at any instant: checked lines, and a checked stream of samples.

What `append` returned from has reached the system and outlives the process. Damage costs a line no other line,
and a stream of samples what follows; neither is ever read wrongly.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEAD = struct.Struct("<4sIII")  # magic, record number, bytes, crc of number and payload
_MAGIC = b"UTJ1"
_MOST_BYTES = 1 << 20


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _write(descriptor: int, data: bytes) -> None:
    """Write all of `data`, or raise OSError: a full disk can accept a part of it silently."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _crc(line: dict[str, Any]) -> str:
    text = json.dumps(line, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


class JsonLines:
    """A JSONL file whose lines carry a checksum in `crc`."""

    def __init__(self, path: Path) -> None:
        self._descriptor = _open(path)
        # A line torn by a kill must not join the next one.
        if path.stat().st_size and path.read_bytes()[-1:] != b"\n":
            _write(self._descriptor, b"\n")

    def append(self, line: dict[str, Any], *, sync: bool = False) -> None:
        """Write one line; with `sync` it also survives a power cut. Raises OSError."""
        text = json.dumps(line | {"crc": _crc(line)}, ensure_ascii=False, separators=(",", ":"))
        _write(self._descriptor, text.encode("utf-8", "backslashreplace") + b"\n")
        if sync:
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The intact lines of a file, and how many were damaged or torn. Raises OSError."""
    sound, damaged = [], 0
    for raw in path.read_bytes().split(b"\n"):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
            crc = line.pop("crc")
            if crc != _crc(line):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
        else:
            sound.append(line)
    return sound, damaged


class Journal:
    """The samples of an utterance in progress: int16, each chunk with its number and checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open(path)
        self._number = 0

    def append(self, samples: NDArray[np.int16]) -> None:
        """Write one chunk. Raises OSError."""
        payload = samples.astype("<i2").tobytes()
        crc = zlib.crc32(payload, zlib.crc32(self._number.to_bytes(4, "little")))
        _write(self._descriptor, _HEAD.pack(_MAGIC, self._number, len(payload), crc) + payload)
        self._number += 1

    def close(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        """Delete the file, once the samples are stored elsewhere. Raises OSError."""
        self.close()
        self.path.unlink(missing_ok=True)


def read_journal(path: Path) -> NDArray[np.int16]:
    """Every chunk up to the first that is torn, damaged or out of order. Raises OSError."""
    chunks = list(_chunks(path.read_bytes()))
    return np.frombuffer(b"".join(chunks), "<i2").astype(np.int16)


def _chunks(data: bytes) -> Iterator[bytes]:
    at = number = 0
    while at + _HEAD.size <= len(data):
        magic, given, size, crc = _HEAD.unpack_from(data, at)
        payload = data[at + _HEAD.size : at + _HEAD.size + size]
        whole = magic == _MAGIC and given == number and size <= _MOST_BYTES and size % 2 == 0 and len(payload) == size
        if not whole or crc != zlib.crc32(payload, zlib.crc32(number.to_bytes(4, "little"))):
            return
        yield payload
        at += _HEAD.size + size
        number += 1
