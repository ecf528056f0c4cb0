"""The original's tiny checkpoints, converted and loaded once for all tests that use them."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from model import checkpoint
from model.checkpoint import Checkpoint
from model.convert import main as convert

GOLDENS = Path(__file__).parent / "goldens"
VARIANTS = "abcd"


@cache
def converted(variant: str) -> Checkpoint:
    """Variant a, b, c or d in float32, without a recogniser."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(checkpoint.fetch, "ensure", lambda *_args, **_kwargs: Path(folder))
        patch.setattr(checkpoint.Transcriber, "load", lambda *_args, **_kwargs: None)
        target = Path(folder) / "converted"
        assert convert([str(GOLDENS / "checkpoints" / variant), str(target)]) == 0
        return checkpoint.load(str(target), device="cpu", quantize="none", threads=1)


@cache
def golden(name: str) -> Any:
    """A JSON file of the goldens, "numeric/a/generate"."""
    return json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
