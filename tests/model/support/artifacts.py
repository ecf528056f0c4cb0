"""What the tests of the converters share."""

from __future__ import annotations

from pathlib import Path

from model.weights.artifacts import convert


def ignore(_: int) -> None:
    pass


def converted(form: str, raw: Path, name: str = "out") -> Path:
    out = raw.parent / name
    out.mkdir()
    convert(form, raw, out, ignore)
    return out
