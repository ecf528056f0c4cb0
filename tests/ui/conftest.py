"""Fixtures for the window without devices or models: a scripted conversation that records its calls."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QtMsgType, qInstallMessageHandler
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from assistant.backend.protocol import Ready
from assistant.events import Event
from assistant.speech.synthesizer import Synthesizer
from assistant.talk import TalkSettings
from tests.support.fakes import HANG_SECONDS, ToneSynthesizer
from ui import window
from ui.core import theme
from ui.core.app import App, Services


class ScriptedTalk:
    """Replaces `Talk`. Records every call in `calls` as (name, arguments); `happen` sends events to the window."""

    def __init__(self, settings: TalkSettings, synthesizer: Synthesizer | None, listener: Callable[..., None]) -> None:
        self.settings = settings
        self.listener = listener
        self.calls: list[tuple[Any, ...]] = []
        self.clips = Noting(self.calls, "clips.")
        self.folder: Path | None = None

    def happen(self, *events: Event | Ready) -> None:
        for event in events:
            self.listener(event)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: self.calls.append((name, *arguments, *([named] if named else [])))


class Noting:
    """Records the calls to one part of `Talk`. Tests may set its attributes."""

    def __init__(self, calls: list[tuple[Any, ...]], prefix: str) -> None:
        self._calls, self._prefix = calls, prefix
        self.position, self.duration, self.playing = 0.0, 0.0, False

    def __getattr__(self, name: str) -> Callable[..., None]:
        prefix, calls = self._prefix, self._calls
        return lambda *arguments, **named: calls.append((prefix + name, *arguments, *([named] if named else [])))


@pytest.fixture(scope="session")
def qapp() -> QApplication:
    return window.application()


class PatientBot(QtBot):
    """Waits longer than pytest-qt's 5 s, because child processes are slow on a busy machine."""

    def waitUntil(self, callback: Callable[[], bool | None], *, timeout: float = HANG_SECONDS * 1000) -> None:
        super().waitUntil(callback, timeout=int(timeout))

    def waitSignal(self, signal: Any, *, timeout: float = HANG_SECONDS * 1000, **options: Any) -> Any:
        return super().waitSignal(signal, timeout=int(timeout), **options)


@pytest.fixture
def qtbot(qapp: QApplication, request: pytest.FixtureRequest) -> QtBot:
    return PatientBot(request)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    python = (sys.executable,)
    return Services(tmp_path, (*python, "-m", "main"), python, lambda _engine: ToneSynthesizer(), ScriptedTalk)  # type: ignore[arg-type]


@pytest.fixture
def app(qapp: QApplication, services: Services) -> Iterator[App]:
    """An `App` with a scripted conversation: `app.talk` is a `ScriptedTalk`."""
    theme.apply(qapp, "light")
    made = App(services)
    made.start()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def garbage_in_this_thread() -> Iterator[None]:
    """Collect garbage as the program does: see `window.run`."""
    gc.disable()
    yield
    gc.collect(1)
    gc.enable()


@pytest.fixture(autouse=True)
def no_qt_warnings() -> Iterator[None]:
    """Fail on any Qt warning, except that the offscreen platform cannot raise windows."""
    said: list[str] = []
    before = qInstallMessageHandler(
        lambda kind, _context, text: said.append(text) if kind is not QtMsgType.QtDebugMsg else None
    )
    yield
    qInstallMessageHandler(before)
    assert not [one for one in said if not one.startswith("This plugin does not support ")]
