"""Texts that try to be more than text, and traps that notice when one of them succeeds."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PySide6.QtCore import QEvent
from PySide6.QtWidgets import QApplication

SLOWEST = 0.2
"""Seconds of the main thread's own time that one text may take. A page full of them takes about 0.08 to paint, and
half as much again where other work shares the processor's caches."""


class Traps:
    """A picture whose opening is noticed, by whatever part of the process opens it (Linux's inotify), and a port."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret.png"
        self.secret.write_bytes(b"x")
        libc = ctypes.CDLL(None)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(folder), 0x20) >= 0  # IN_OPEN
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.port = self._listening.getsockname()[1]

    def opened(self) -> bool:
        try:
            return bool(os.read(self._descriptor, 4096))
        except BlockingIOError:
            return False

    def called(self) -> bool:
        try:
            self._listening.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._descriptor)
        self._listening.close()


@contextmanager
def traps(folder: Path) -> Iterator[Traps]:
    """Set the traps; at the end nothing must be in them, and they must have been able to catch."""
    folder.mkdir(exist_ok=True)
    made = Traps(folder)
    try:
        yield made
        assert not made.opened()
        assert not made.called()
        made.secret.read_bytes()
        socket.create_connection(("127.0.0.1", made.port)).close()
        assert made.opened()
        assert made.called()
    finally:
        made.close()


def hostile(trap: Traps, count: int) -> list[str]:
    """So many texts, each with its number at the end."""
    file, net = f"file://{trap.secret}", f"http://127.0.0.1:{trap.port}/x.png"
    kinds = [
        f"<img src='{file}'><b>bold</b>",
        f"<img src='{net}'><link rel=stylesheet href='{net}'>",
        f"<html><body><a href='{file}'>click</a><style>@import url('{trap.secret}')</style></body></html>",
        f"![picture]({file}) [link]({net}) `code`",
        f"<object data='{trap.secret}'></object><iframe src='{file}'></iframe>",
        f"<table background='{trap.secret}'><tr><td style='background-image: url({trap.secret})'>x</td></tr></table>",
        "x" * 1_000_000,
        "no break " * 100_000,
        "\n" * 50_000,
        "\u202eright to left \u2066nested\u2069 " * 3_000,
        "aש" * 30_000,
        "ש" * 30_000,
        "\u200b\u200d\ufeff" * 20_000,
        "a" + "\u0301" * 30_000,
        "\ufffc\ufdd0\ufdd1\u2028\u2029\0\x1b[31m\t" * 2_000,
        "half \ud83d a character \udfff",
        "😀👩‍👩‍👧‍👦" * 5_000,
        "漢字" * 30_000,
        "&lt;b&gt; &#x41; &amp;",
        "%s %n {0} {reply} {self.__class__}",
    ]
    return [kinds[number % len(kinds)] + f" {number}" for number in range(count)]


class Clock:
    """The longest time that the main thread itself was at work in one go."""

    def __init__(self) -> None:
        self.slowest = (0.0, "")

    def time(self, what: str, act: Callable[[], object]) -> None:
        """Do something and let the window follow."""
        application = QApplication.instance()
        assert application is not None
        began = time.thread_time()
        act()
        application.processEvents()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        self.slowest = max(self.slowest, (time.thread_time() - began, repr(what[:20])))
