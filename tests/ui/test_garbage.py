"""How Qt's objects end: in the window's thread alone, and a window whole."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator

from PySide6.QtCore import QObject
from shiboken6 import isValid

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


def test_nothing_of_a_closed_window_is_left_for_python_to_take_apart(services: Services) -> None:
    def script(window: MainWindow) -> Generator[Wait, None, None]:
        window.show_page("talk")
        yield "the page", lambda: window.page == "talk"

    play(script, run=lambda: program.run(services))
    assert not [
        one
        for one in gc.get_objects()
        if issubclass(type(one), QObject) and isValid(one) and type(one).__module__.startswith("ui.")
    ]
