"""The main window: theme, event bridge, child processes, notifications, pages."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QWidget
from pytestqt.qtbot import QtBot

from assistant.backend.protocol import Ready
from assistant.events import EMOTIONS, Failed, InputLevel, ModelStatus, ReplyText, State, StateChanged
from ui.core import theme
from ui.core.app import App
from ui.core.event_bridge import EventBridge
from ui.core.jobs import Job
from ui.core.theme import contrast
from ui.core.untrusted_text import LONGEST
from ui.main_window import PAGES, MainWindow
from ui.settings.page import SettingsPage
from ui.widgets.common import Banner, EmotionChip, Switch, label


@pytest.mark.parametrize("name", theme.THEMES)
def test_every_pair_of_colours_can_be_read(name: str) -> None:
    c = theme.THEMES[name]
    for surface in (c.window, c.raised, c.sunken):
        for text in (c.text, c.muted, c.accent, c.danger):
            assert contrast(text, surface) >= 4.5, (text, surface)
        for shape in (*(c.emotions[e] for e in EMOTIONS), c.outline):
            assert contrast(shape, surface) >= 3, (shape, surface)
    assert contrast(c.on_accent, c.accent) >= 4.5


def test_the_bridge_joins_text_and_keeps_order_across_threads(qtbot: QtBot) -> None:
    bridge, got = EventBridge(), []
    bridge.event_received.connect(got.append)
    events = [
        ReplyText(1, "a"),
        ReplyText(1, "b"),
        StateChanged(State.SPEAKING, False),
        ReplyText(1, "c"),
        ReplyText(2, "d"),
    ]
    levels = [InputLevel(-40.0), InputLevel(-20.0)]

    def notify() -> None:
        for event in [levels[0], *events, levels[1]]:
            bridge(event)

    thread = threading.Thread(target=notify)
    thread.start()
    thread.join()
    bridge.flush()
    assert got == [ReplyText(1, "ab"), events[2], ReplyText(1, "c"), ReplyText(2, "d"), levels[1]]


def test_true_is_not_worn_out_by_signals(qtbot: QtBot) -> None:
    """PySide6 6.12.0 lost a reference at each emit (see the pin in pyproject)."""
    bridge = EventBridge()
    bridge.event_received.connect(lambda _event: None)
    before = sys.getrefcount(True)
    for _ in range(2000):
        bridge.event_received.emit(True)
    assert abs(sys.getrefcount(True) - before) < 100


def test_a_job_gives_json_lines_and_its_end(qtbot: QtBot) -> None:
    script = "import sys; print('noise'); print('{\"a\": 1}'); print('[2]'); print('why', file=sys.stderr); sys.exit(2)"
    job = Job([sys.executable, "-c", script])
    with qtbot.waitSignal(job.ended) as end:
        pass
    assert (job.results, end.args) == ([{"a": 1}], [2, "why"])


def test_a_job_that_is_killed_or_cannot_begin(qtbot: QtBot) -> None:
    job = Job([sys.executable, "-c", "print('{}', flush=True); import time; time.sleep(600)"])
    with qtbot.waitSignal(job.printed):
        pass
    with qtbot.waitSignal(job.ended) as end:
        job.stop()
    assert end.args[0] == -1
    job = Job(["/nonexistent/program"])
    with qtbot.waitSignal(job.ended) as end:
        pass
    assert end.args[0] == 3


def window_of(app: App, qtbot: QtBot) -> MainWindow:
    made = MainWindow(app, {name: lambda _app: QWidget() for name in (*PAGES, "first")})
    qtbot.addWidget(made)
    made.show()
    return made


def test_pages_status_and_messages(app: App, qtbot: QtBot) -> None:
    window = window_of(app, qtbot)
    for name in PAGES:
        window.show_page(name)
        assert window.page == name
    talk: Any = app.talk
    about = {"name": "mini", "device": "cpu", "quantize": "int8", "memory_bytes": 9e8}
    talk.happen(ModelStatus("loading", "loading mini"), Ready(about))
    qtbot.waitUntil(lambda: window.status.text() == "mini · CPU int8 · 0.9 GB")
    talk.happen(Failed(None, "The microphone is gone."), Failed(None, "The microphone is gone."))
    qtbot.waitUntil(lambda: window.banner_area.count() == 1)
    done: list[str] = []
    app.notify("Deleted.", "Undo", lambda: done.append("undone"))
    window.findChildren(Banner)[-1].action.click()
    assert done == ["undone"]
    for number in range(9):
        app.notify(f"message {number}", error=True)
    qtbot.waitUntil(lambda: window.banner_area.count() == 3)


def test_geometry_is_remembered(app: App, qtbot: QtBot) -> None:
    first = window_of(app, qtbot)
    first.resize(700, 600)
    first.close()
    assert window_of(app, qtbot).size() == first.size()


def test_settings_reach_the_conversation_and_the_file(app: App, qtbot: QtBot) -> None:
    talk: Any = app.talk
    app.change("turns", hands_free=True, patience="patient")
    app.change("sound", microphone="USB")
    app.change("model", source="/models/mine")
    app.change("recording", mode="keep")
    names = [call[0] for call in talk.calls]
    assert {"set_hands_free", "set_patience", "choose_devices", "replace_model", "record"} <= set(names)
    again = App(app.services)
    assert again.settings == app.settings
    again.close()
    with pytest.raises(ValueError, match="rate"):
        app.change("voice", rate=99)
    assert app.settings.voice.rate == 1.0


def test_a_theme_reaches_every_widget(app: App, qapp: QApplication, qtbot: QtBot) -> None:
    app.change("looks", theme="dark", text_size=1.5)
    assert theme.colours() is theme.DARK
    assert theme.pixels("body") == 21
    app.change("looks", theme="light", text_size=1.0)


def test_small_parts_paint_and_say_what_they_are(app: App, qtbot: QtBot) -> None:
    chip, switch = EmotionChip("sad", "72 %"), Switch("Hands-free")
    assert chip.accessibleName() == "Voice sounds sad 72 %"
    before = switch.grab().toImage()
    switch.setChecked(True)
    assert switch.grab().toImage() != before
    for emotion in (*EMOTIONS, "unsure"):
        chip.show_emotion(emotion)
        assert not chip.grab().isNull()
    assert len(label("x" * 10**6).text()) <= LONGEST + 10


def test_names_of_pages_are_never_cut_off(app: App, qtbot: QtBot) -> None:
    app.change("looks", text_size=2.0)
    window = window_of(app, qtbot)
    window.resize(480, 600)
    talk: Any = app.talk
    talk.happen(Ready({"name": "a-checkpoint-with-a-long-name" * 9, "device": "cpu", "memory_bytes": 9e8}))
    qtbot.waitUntil(lambda: "a-checkpoint" in window.status.text())
    assert not window.status.isVisible()
    qtbot.waitUntil(lambda: all(tab.width() >= tab.sizeHint().width() for tab in window.tabs.values()))
    app.change("looks", text_size=1.0)
    window.resize(1400, 600)
    qtbot.waitUntil(window.status.isVisible)


def test_the_keyboard_is_in_the_page_one_went_to(app: App, qtbot: QtBot) -> None:
    window = MainWindow(app, {name: lambda _app: QWidget() for name in PAGES} | {"settings": SettingsPage})
    qtbot.addWidget(window)
    window.show()
    window.activateWindow()
    window.show_page("talk")
    qtbot.waitUntil(window.isActiveWindow)
    qtbot.keyClick(window, Qt.Key.Key_Comma, Qt.KeyboardModifier.ControlModifier)
    qtbot.waitUntil(lambda: window.page == "settings")
    focus = QApplication.focusWidget()
    assert focus is not None
    assert window.pages["settings"].isAncestorOf(focus)
