"""Files that appear complete or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, mode: int | None = 0o600) -> Iterator[Path]:
    """A temporary file next to `path` that takes its place when the block ends without an exception.

    Args:
        path: the file to write or replace; its folder exists.
        mode: permissions of a new file; None leaves them to the umask, for files that the user exports.

    Yields:
        The temporary file, created and empty.

    Raises:
        OSError: the disk is full, or forbids it. `path` is as it was.
    """
    partial = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode))
    try:
        yield partial
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: str | bytes, *, mode: int | None = 0o600) -> None:
    """Write `data` (text as UTF-8) to `path`, complete or not at all.

    Raises:
        OSError: the disk is full, or forbids it. `path` is as it was.
    """
    with replacing(path, mode=mode) as partial:
        partial.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
