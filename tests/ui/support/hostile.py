"""Texts that try to be more than text, and traps that notice when one of them succeeds."""

from __future__ import annotations

import ctypes
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QEvent
from PySide6.QtGui import QFontMetrics, QPainter, QTextCursor, QTextLayout
from PySide6.QtWidgets import (
    QAbstractButton,
    QApplication,
    QComboBox,
    QLabel,
    QPlainTextEdit,
    QTextEdit,
    QWidget,
)

from tests.support.work import count_calls

MOST_CALLS = 500_000
"""Function calls that the main thread may make to show one text."""
MOST_CHARACTERS = 30_000
"""Characters that Qt may be given to lay out for one text; the longest texts have a million."""
LONGEST_PARAGRAPH = 1_100
"""Characters of one paragraph. Layout takes time with the square of it where the direction changes."""


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


# Where a widget gives text to Qt, which lays it out.
ENTRANCES: tuple[tuple[type, str], ...] = (
    (QLabel, "setText"),
    (QAbstractButton, "setText"),
    (QTextEdit, "setPlainText"),
    (QPlainTextEdit, "setPlainText"),
    (QTextCursor, "insertText"),
    (QTextLayout, "setText"),
    (QPainter, "drawText"),
    (QFontMetrics, "elidedText"),
    (QFontMetrics, "horizontalAdvance"),
    (QWidget, "setToolTip"),
    (QWidget, "setWindowTitle"),
    (QComboBox, "addItem"),
)


class Work:
    """What showing one text took, at most.

    Attributes:
        calls: function calls of the main thread.
        characters: given to Qt to lay out.
        paragraph: characters of the longest paragraph among them.
    """

    def __init__(self) -> None:
        self.calls = self.characters = self.paragraph = 0
        self.worst: dict[str, str] = {}
        self._given = 0

    def do(self, what: str, act: Callable[[], object]) -> None:
        """Do something and let the window follow."""
        application = QApplication.instance()
        assert application is not None
        self._given = 0

        def go_on() -> None:
            act()
            application.processEvents()
            QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)

        self._most("calls", count_calls(go_on), what)
        self._most("characters", self._given, what)

    def give(self, text: str) -> None:
        """Note a text that Qt was given."""
        self._given += len(text)
        self._most("paragraph", max(map(len, re.split("[\n\u2028\u2029]", text))), text)

    def _most(self, name: str, count: int, what: str) -> None:
        if count > getattr(self, name):
            setattr(self, name, count)
            self.worst[name] = repr(what[:20])

    def check(self) -> None:
        """Fail where one text took more than it may."""
        assert self.calls < MOST_CALLS, (self.calls, self.worst)
        assert self.characters < MOST_CHARACTERS, (self.characters, self.worst)
        assert self.paragraph < LONGEST_PARAGRAPH, (self.paragraph, self.worst)


@contextmanager
def counted_work() -> Iterator[Work]:
    """Count what is done, and check it at the end."""
    work = Work()
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ENTRANCES:
            patch.setattr(owner, name, _noted(getattr(owner, name), work))
        yield work
    work.check()


def _noted(original: Callable[..., Any], work: Work) -> Callable[..., Any]:
    @wraps(original)
    def note(self: object, *arguments: Any, **named: Any) -> Any:
        if (text := next((one for one in arguments if isinstance(one, str)), None)) is not None:
            work.give(text)
        return original(self, *arguments, **named)

    return note
