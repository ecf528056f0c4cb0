"""The whole window with a scripted conversation: every view by keyboard, nothing that stalls it, memory that stays."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Generator
from datetime import datetime
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtGui import QAccessible
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QWidget

from assistant.backend.protocol import Ready
from tests.support.fakes import ToneSynthesizer
from tests.support.work import Calls
from tests.ui.conftest import ScriptedTalk
from tests.ui.support.script import Wait, play
from tests.ui.support.sessions import record
from tests.ui.tour import ABOUT, SETTINGS, TURNS, turn_events, walk
from ui import window as program
from ui.core.app import Services
from ui.main_window import MainWindow

MOST_CALLS = 120_000
"""Function calls of the main thread, the most that one go may take: opening the largest view takes 40,000."""


def test_no_view_stalls_the_window_and_qt_has_nothing_to_say(tmp_path: Path, figure: Callable[[str], None]) -> None:
    (tmp_path / "home").mkdir()
    played, taken = walk(tmp_path / "out", "light", "1100x760", tmp_path / "home", calls=Calls())
    figure(f"opening the views takes at most {played.most_calls} function calls in one go")
    assert 0 < played.most_calls < MOST_CALLS
    assert len(taken) > 20


# ---- the keyboard alone


def controls(page: QWidget) -> list[QWidget]:
    """What the Tab key should come to."""
    tab = Qt.FocusPolicy.TabFocus.value
    return [
        one
        for one in page.findChildren(QWidget)
        if one.isVisible() and one.isEnabled() and one.focusPolicy().value & tab and one.focusProxy() is None
    ]


def name_of(widget: QWidget) -> str:
    """What a screen reader calls it."""
    interface = QAccessible.queryAccessibleInterface(widget)
    return interface.text(QAccessible.Text.Name) if interface else ""


def described(widget: QWidget) -> str:
    return f"{type(widget).__name__} {name_of(widget)!r}"


def focused() -> QWidget:
    here = QApplication.focusWidget()
    assert here is not None
    return here


def walk_by_tab(window: MainWindow) -> list[QWidget]:
    """Where the Tab key goes, once around; each stop must look otherwise with the focus than without it."""
    QTest.keyClick(window, Qt.Key.Key_Tab)  # from where one was put, perhaps no stop itself
    begin, stops = focused(), list[QWidget]()
    while len(stops) < 200:
        without = QApplication.focusWidget()
        QTest.keyClick(window, Qt.Key.Key_Tab)
        here = focused()
        assert here is not without, f"the Tab key stays at {described(here)}"
        stops.append(here)
        if here is begin:
            return stops
    raise AssertionError(f"the Tab key does not come around: {[described(one) for one in stops[-40:]]}")


def looks_focused(widget: QWidget) -> bool:
    """Whether it is drawn otherwise with the focus than without."""
    widget.setFocus(Qt.FocusReason.TabFocusReason)
    around = widget.parentWidget() or widget
    with_it = around.grab().toImage()
    widget.clearFocus()
    return with_it != around.grab().toImage()


def check(window: MainWindow, page: QWidget) -> None:
    nameless = [described(one) for one in controls(page) if not name_of(one).strip()]
    assert not nameless
    stops = walk_by_tab(window)
    reached = {*stops}
    groups = {one.group() or one.parent() for one in stops if hasattr(one, "group")}
    missed = [
        described(one)
        for one in controls(page)
        if one not in reached and not (hasattr(one, "group") and (one.group() or one.parent()) in groups)
    ]  # of a group the arrows choose
    assert not missed
    inside = [stops.index(one) for one in stops if page.isAncestorOf(one)]
    assert inside
    unseen = [described(one) for one in {*stops} if page.isAncestorOf(one) and not looks_focused(one)]
    assert not unseen


def keyboard(window: MainWindow) -> Generator[Wait, None, None]:
    window.activateWindow()
    yield "the window is in front", window.isActiveWindow
    for step in range(3):
        first: Any = window.pages["first"]
        check(window, first)
        if step < 2:
            first.next.setFocus()
            QTest.keyClick(first.next, Qt.Key.Key_Return)
            yield "the next step", lambda step=step, first=first: first.step == step + 1
    window.app.finish_first_run()
    talk: Any = window.app.talk
    talk.happen(Ready(ABOUT))
    for number, (what, emotion, reply) in enumerate(TURNS, 1):
        talk.happen(*turn_events(number, what, emotion, reply))
    for page, keys in (("talk", "1"), ("sessions", "2"), ("finetune", "3")):
        QTest.keyClick(window, getattr(Qt.Key, f"Key_{keys}"), Qt.KeyboardModifier.ControlModifier)
        yield (
            page,
            lambda page=page: window.page == page and window.pages[page].isAncestorOf(QApplication.focusWidget()),
        )
        for _ in range(30):
            yield "what it shows", lambda: True
        check(window, window.pages[page])
    QTest.keyClick(window, Qt.Key.Key_Comma, Qt.KeyboardModifier.ControlModifier)
    yield "the settings", lambda: window.page == "settings"
    settings: Any = window.pages["settings"]
    for section in SETTINGS:
        yield section, lambda section=section: settings.view_state == section
        for _ in range(10):
            yield "what it shows", lambda: True
        check(window, settings)
        settings.list.setFocus()
        QTest.keyClick(settings.list, Qt.Key.Key_Down)


def services(home: Path) -> Services:
    python = (sys.executable,)
    make: Callable[..., Any] = ScriptedTalk
    return Services(home, (*python, "-m", "main"), python, lambda _engine: ToneSynthesizer(), make)


def test_the_keyboard_alone_reaches_everything(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[recording]\nmode = "days"\n[looks]\ntheme = "light"\n')
    record(tmp_path / "sessions", datetime.now())
    play(keyboard, run=lambda: program.run(services(tmp_path)))


# ---- memory


def resident() -> float:
    """Megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def test_memory_is_flat_over_200_turns(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Each turn tells what a real one tells; the recordings are shared, so that what the window itself adds is seen."""
    (tmp_path / "settings.toml").write_text('started = true\n[looks]\ntheme = "light"\n')
    sizes: list[tuple[float, int]] = []

    def talk(window: MainWindow) -> Generator[Wait, None, None]:
        scripted: Any = window.app.talk
        scripted.happen(Ready(ABOUT))
        view: Any = window.show_page("talk")
        for number in range(1, 201):
            what, emotion, reply = TURNS[number % len(TURNS)]
            scripted.happen(*turn_events(number, what, emotion, reply))
            yield "the turn", lambda number=number: view.view.entry(number) and view.view.entry(number).outcome
            if number % 50 == 0:
                gc.collect()
                sizes.append((resident(), len(QApplication.allWidgets())))

    play(talk, run=lambda: program.run(services(tmp_path)))
    figure(", ".join(f"{size:.1f} MB {widgets} widgets" for size, widgets in sizes))
    assert sizes[3][0] - sizes[1][0] < 4.0
    assert sizes[3][1] <= sizes[1][1] + 60  # a turn or two that scrolled out of sight and are about to be deleted
