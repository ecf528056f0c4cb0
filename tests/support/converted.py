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

from model.checkpoints import loader
from model.checkpoints.loader import Checkpoint
from model.commands.convert import main as convert
from tests import GOLDENS

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
        patch.setattr(loader.fetch, "ensure", lambda *_args, **_kwargs: Path(folder))
        patch.setattr(loader.Transcriber, "load", lambda *_args, **_kwargs: None)
        target = Path(folder) / "converted"
        assert convert([str(GOLDENS / "checkpoints" / variant), str(target)]) == 0
        return loader.load(str(target), device="cpu", quantize="none", threads=1)


@cache
def golden(name: str) -> Any:
    """A JSON file of the goldens, "numeric/a/generate"."""
    return json.loads((GOLDENS / f"{name}.json").read_text("utf-8"))
