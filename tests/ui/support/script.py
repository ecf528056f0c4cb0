"""Drives the whole program as a user would: `main()` runs, and a script clicks, types, speaks and looks.

A script is a generator over the window. It yields conditions to wait for (callables); what takes too long fails with
the words beside it. The longest time that the window did not react is measured while it runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from PySide6.QtCore import QEvent, QObject, QPoint, Qt, QTimer
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QApplication, QWidget

import main
from model.weights.store import home
from tests.support.fakes import HANG_SECONDS
from tests.support.work import Calls
from ui.main_window import MainWindow
from ui.window import application

Wait = tuple[str, Callable[[], object]]
Script = Callable[[MainWindow], Generator[Wait, None, None]]
PICTURE: Wait = ("the picture", lambda: True)
_STEP_MS = 10


class Played:
    """How a script went.

    Attributes:
        code: what `main` returned.
        longest_stall: seconds; the longest time in which the window did not react. What a script does right after it
            waited for `PICTURE` is its own affair and left out.
        longest_work: seconds; the most that the main thread itself worked in one go, whatever else the machine did.
        most_calls: function calls; the most that the main thread made in one go, where they were counted.
    """

    def __init__(self) -> None:
        self.code = -1
        self.longest_stall = 0.0
        self.longest_work = 0.0
        self.most_calls = 0
        self.error: BaseException | None = None


def play(
    script: Script,
    *words: str,
    seconds: float = HANG_SECONDS,
    run: Callable[[], int] | None = None,
    calls: Calls | None = None,
) -> Played:
    """Run `main(words)`, or `run`, and the script over its window; the window is closed at the script's end.

    Args:
        calls: counts what the main thread does in each go.

    Raises:
        AssertionError: a condition did not come true within `seconds`, or the script's own.
    """
    played = Played()
    steps: list[Generator[Wait, None, None]] = []
    waiting: list[tuple[str, Callable[[], object], float]] = []
    last = [(time.monotonic(), time.thread_time())]
    timer = QTimer(application())

    def window() -> MainWindow:
        return next(one for one in QApplication.topLevelWidgets() if isinstance(one, MainWindow) and one.isVisible())

    def step() -> None:
        now = time.monotonic()
        count = calls.take() if calls else 0
        if not steps:  # until now the program began
            last[0], count = (now, time.thread_time()), 0
        played.most_calls = max(played.most_calls, count)
        note(_STEP_MS / 1000)
        own = bool(waiting) and waiting[0][0] == PICTURE[0]
        try:
            if not steps:
                steps.append(script(window()))
            if waiting:
                words, condition, until = waiting[0]
                if not condition():
                    assert now < until, f"waited too long: {words}"
                    return
                waiting.clear()
            what, condition = next(steps[0])
            waiting.append((what, condition, time.monotonic() + seconds))
        except StopIteration:
            end()
        except BaseException as error:  # noqa: BLE001 (raised again once the window is closed)
            played.error = error
            end()
        finally:
            if own:
                last[0] = time.monotonic(), time.thread_time()
            else:
                note(0.0)
            if calls and timer.isActive():
                calls.on()

    def note(idle: float) -> None:
        """Take the time since the last note; `idle` of it may have been waited."""
        (wall, work), last[0] = last[0], (time.monotonic(), time.thread_time())
        played.longest_stall = max(played.longest_stall, last[0][0] - wall - idle)
        played.longest_work = max(played.longest_work, last[0][1] - work)

    def end() -> None:
        timer.stop()
        for widget in QApplication.topLevelWidgets():
            widget.close()
        application().quit()

    timer.timeout.connect(step)
    timer.start(_STEP_MS)
    try:
        played.code = run() if run else main.main(list(words))
    finally:
        timer.stop()
        timer.deleteLater()
        # The last window's own wish to quit must not reach the next event loop.
        QApplication.removePostedEvents(application(), QEvent.Type.Quit.value)
        # Pages hold the program; the next script begins with none of this one's.
        for widget in QApplication.topLevelWidgets():
            widget.deleteLater()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    if played.error is not None:
        raise played.error
    return played


def named(parent: QWidget, name: str) -> Any:
    """The visible widget below `parent` whose accessible name, or a button's text, begins with `name`."""
    found = [
        one
        for one in parent.findChildren(QWidget)
        if one.isVisible()
        and (
            one.accessibleName().startswith(name)
            or (isinstance(one, QAbstractButton) and one.text().replace("&", "").startswith(name))
        )
    ]
    assert found, f"nothing visible is called {name!r}"
    return found[0]


def click(parent: QWidget, name: str) -> None:
    """Click the middle of what is called so."""
    widget = named(parent, name)
    QTest.mouseClick(widget, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier, QPoint(widget.rect().center()))


def own_home(folder: Path) -> Path:
    """A user's folder of its own whose weights are the ones that tests share; sets UNDERTONE_HOME."""
    shared = home()
    for part in ("models", "downloads"):
        if (shared / part).is_dir():
            (folder / part).symlink_to(shared / part)
    os.environ["UNDERTONE_HOME"] = str(folder)
    return folder


def texts(parent: QObject) -> str:
    """All plain text below `parent`, as a screen reader would find it."""
    said = [str(one.property("text") or one.property("plainText") or "") for one in parent.findChildren(QWidget)]
    return "\n".join(said + [one.accessibleName() for one in parent.findChildren(QWidget)])
