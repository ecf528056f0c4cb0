"""Qt objects are destroyed on the window's thread only, and a window as a whole."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from PySide6.QtCore import QObject
from shiboken6 import isValid

from tests.ui.conftest import ScriptedTalk
from tests.ui.support.script import Wait, play
from ui import window as program
from ui.core.app import Services
from ui.main_window import MainWindow


def test_garbage_is_collected_in_the_windows_thread_alone(services: Services) -> None:
    """While the window opens, runs and closes, other threads allocate enough to trigger collections."""
    ended: list[threading.Thread] = []

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ended.append(threading.current_thread())

    def allocate() -> None:
        Cycle()
        kept = [[number] for number in range(100_000)]
        assert len(kept) == 100_000

    def elsewhere() -> threading.Thread:
        thread = threading.Thread(target=allocate)
        thread.start()
        return thread

    class Busy(ScriptedTalk):
        def start(self) -> None:
            elsewhere().join()

        def close(self) -> None:
            elsewhere().join()

    def script(_window: MainWindow) -> Generator[Wait, None, None]:
        thread = elsewhere()
        yield "the work of another thread", lambda: not thread.is_alive()
        yield "the garbage is collected", lambda: len(ended) == 2

    gc.enable()
    talk: Any = Busy
    play(script, run=lambda: program.run(replace(services, talk=talk)))
    assert gc.isenabled()
    gc.collect()
    assert ended == [threading.main_thread()] * 3


def test_nothing_of_a_closed_window_is_left_for_python_to_take_apart(services: Services) -> None:
    def script(window: MainWindow) -> Generator[Wait, None, None]:
        window.show_page("talk")
        yield "the page", lambda: window.page == "talk"

    def of_ours() -> dict[int, QObject]:
        found = (one for one in gc.get_objects() if issubclass(type(one), QObject) and isValid(one))
        return {id(one): one for one in found if type(one).__module__.startswith("ui.")}

    before = of_ours()
    play(script, run=lambda: program.run(services))
    assert not [one for name, one in of_ours().items() if name not in before]
