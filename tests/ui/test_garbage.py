"""Cyclic garbage ends in the window's thread: Qt's objects must not end in another one."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator

from tests.ui.script import Wait, play
from ui import window as program
from ui.app import Services
from ui.main_window import MainWindow


def test_garbage_is_collected_in_the_windows_thread_alone(services: Services) -> None:
    ended: list[threading.Thread] = []

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ended.append(threading.current_thread())

    def allocate() -> None:
        Cycle()
        kept = [[number] for number in range(100_000)]  # many times what makes Python collect
        assert len(kept) == 100_000

    def script(_window: MainWindow) -> Generator[Wait, None, None]:
        thread = threading.Thread(target=allocate)
        thread.start()
        yield "the work of another thread", lambda: not thread.is_alive()
        yield "the garbage is collected", lambda: bool(ended)

    gc.enable()
    play(script, run=lambda: program.run(services))
    assert ended == [threading.main_thread()]
    assert gc.isenabled()
