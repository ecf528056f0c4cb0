"""Folders of weights that are complete or absent: built in a temporary folder under a lock, stamped, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock

from model.errors import WeightsMissing
from model.files import sync
from model.weights import artifacts

STAMP = "fetched.json"


def home() -> Path:
    """The folder of all downloads, mode 0700: by default the user's cache.

    UNDERTONE_HOME names another, or else BLSP_HOME, the variable's earlier name.

    Returns:
        The folder, created if necessary.

    Raises:
        WeightsMissing: the folder cannot be created.
    """
    chosen = os.environ.get("UNDERTONE_HOME") or os.environ.get("BLSP_HOME")
    folder = Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("undertone")
    return private(folder)


def private(folder: Path) -> Path:
    """Create a folder with mode 0700 and return it.

    Raises:
        WeightsMissing: the folder cannot be created.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise explained(folder, error) from error
    return folder


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Hold the lock of `target` and yield an empty folder next to it, which is removed at the end.

    A second process waits until the first is done. What a killed process left is removed.
    """
    models = private(target.parent)
    try:
        with FileLock(models / f".{target.name}.lock"):
            for stale in models.glob(f".{target.name}.tmp*"):
                shutil.rmtree(stale)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp", dir=models))
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise explained(target, error) from error


def explained(path: Path, error: OSError) -> WeightsMissing:
    """The error to raise for an `OSError` while `path` is written: what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WeightsMissing(
            f"The disk is full at {path}: free about 2 GB and start again, or set UNDERTONE_HOME "
            "to a folder on another disk."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return WeightsMissing(f"{path} cannot be written: set UNDERTONE_HOME to a folder of yours and start again.")
    return WeightsMissing(f"{path} could not be made ({error}): remove what is in the way and start again.")


def complete(target: Path, accepted: list[list[str]]) -> bool:
    """Whether a folder is complete, built by this version from an accepted source.

    Checks the stamp and the sizes of the files.

    Args:
        target: the folder.
        accepted: the keys of accepted sources (`Source.key`).

    Returns:
        True if it can be used.
    """
    try:
        stamp = json.loads((target / STAMP).read_text("utf-8"))
        sizes = {file: (target / file).stat().st_size for file in stamp["files"]}
        return (
            stamp["version"] == artifacts.VERSION
            and stamp["source"] in accepted
            and all(sizes[file] == entry["size"] for file, entry in stamp["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def damaged(folder: Path) -> list[str]:
    """Verify a downloaded folder against its stamp by hash. This is slow and thorough.

    Args:
        folder: with a stamp.

    Returns:
        The names of files that differ; empty if all are intact.
    """
    files = json.loads((folder / STAMP).read_text("utf-8"))["files"]
    return [
        file
        for file, entry in files.items()
        if not (folder / file).is_file() or sha256(folder / file) != entry["sha256"]
    ]


def publish(out: Path, target: Path, source: list[str], about: dict[str, str]) -> None:
    """Stamp the finished folder `out`, flush it to the disk and rename it to `target`."""
    files = {
        path.relative_to(out).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    for file in files:
        sync(out / file)
    stamp = about | {"version": artifacts.VERSION, "source": source, "files": files}
    (out / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", "utf-8")
    sync(out / STAMP)
    if target.exists():
        target.rename(out.parent / "old")
    out.rename(target)
    if os.name == "posix":
        sync(target.parent)


def sha256(path: Path) -> str:
    """The SHA-256 of a file.

    Args:
        path: of the file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
