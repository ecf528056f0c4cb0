"""Fixtures that several modules of these tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from model.checkpoints import loader
from tests.support.tiny import tiny_checkpoint


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fails when a library prints a warning while a folder is loaded."""
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()
    captured = capfd.readouterr()
    assert captured.err == ""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, without a shared folder of downloads."""
    monkeypatch.setenv("UNDERTONE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BLSP_DOWNLOADS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def without_recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are loaded without the recogniser, which would be downloaded."""
    monkeypatch.setattr(loader.fetch, "ensure", lambda *_args, **_kwargs: tmp_path)
    monkeypatch.setattr(loader.Transcriber, "load", lambda *_args, **_kwargs: None)


@pytest.fixture
def folder(tmp_path: Path, without_recogniser: None) -> Path:
    """A saved tiny checkpoint."""
    tiny_checkpoint().save(tmp_path / "tiny")
    return tmp_path / "tiny"
