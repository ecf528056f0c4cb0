"""Files and folders that appear complete or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it when the block ends without an exception.

    One writer at a time: the temporary file has a fixed name, so a later write overwrites what a killed one left.

    Args:
        path: the file to write; its folder exists.
        mode: permissions of a new file, before the umask.

    Yields:
        The temporary file, created and empty.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. `path` is unchanged.
    """
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write `content` (text as UTF-8) to `path`, complete or not at all.

    Args:
        path: the file to write; its folder exists.
        content: everything that the file will hold.
        mode: permissions of a new file, before the umask.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. `path` is unchanged.
    """
    with replacing(path, mode=mode) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder next to `path` that replaces it when the block ends without an exception.

    After a kill between its two renames, `path` is missing and its old content is in `.NAME.old`.

    Args:
        path: the folder to write, new or replaced; its parents are created.

    Yields:
        The temporary folder, created and empty.

    Raises:
        OSError: the folder cannot be written.
    """
    partial, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                sync(file)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file to the disk, or on POSIX a folder's entries.

    Args:
        path: a file or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
