"""The desktop program: the QApplication, the main window, startup and shutdown."""

from __future__ import annotations

import gc
import importlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

from PySide6.QtCore import QEvent, QLoggingCategory, QTimer
from PySide6.QtWidgets import QApplication, QWidget

from ui.core import icons, theme, translations
from ui.core.app import App, Services
from ui.main_window import MainWindow

_PAGES = {
    "talk": ("ui.talk.page", "TalkPage"),
    "sessions": ("ui.sessions.browser", "SessionsPage"),
    "finetune": ("ui.finetune.wizard", "FineTunePage"),
    "settings": ("ui.settings.page", "SettingsPage"),
    "first": ("ui.first_run.wizard", "FirstRunWizard"),
}


def application() -> QApplication:
    """Return the QApplication; make it at the first call."""
    existing = QApplication.instance()
    if isinstance(existing, QApplication):
        return existing
    # A missing input method or font is not worth a warning.
    QLoggingCategory.setFilterRules("qt.qpa.*=false\nqt.text.font.db=false")
    made = QApplication(sys.argv[:1])
    made.setApplicationName("undertone")
    made.setApplicationDisplayName("Undertone")
    made.setDesktopFileName("undertone")
    made.setWindowIcon(icons.application_icon())
    return made


def open_window(services: Services) -> MainWindow:
    """Show the window. The conversation starts after the first paint."""
    app = App(services)
    looks = app.settings.looks
    theme.apply(application(), looks.theme, looks.text_size)
    translations.install(looks.language)
    app.settings_changed.connect(lambda settings: translations.install(settings.looks.language))
    pages: dict[str, Callable[[App], QWidget]] = {name: partial(_page, *where) for name, where in _PAGES.items()}
    window = MainWindow(app, pages)
    if app.settings.started:
        window.show_page("talk")
    else:
        window.show_page("first").finished.connect(lambda: window.show_page("talk"))  # type: ignore[attr-defined]
        window.make_page("talk")  # it owns the tray icon
    window.show()
    QTimer.singleShot(0, window, app.start)
    return window


def run(services: Services) -> int:
    """Open the window and run until it is closed. Returns the exit code."""
    qt = application()
    with _garbage_in_this_thread() as awake:
        window = open_window(services)
        before = signal.signal(signal.SIGINT, lambda *_: qt.quit())
        awake.start(200)  # also lets Python handle Ctrl-C while Qt waits
        try:
            return qt.exec()
        finally:
            signal.signal(signal.SIGINT, before)
            window.app.close()
            # Delete the whole window before Python does it piece by piece: half of it would still get focus events.
            for whole in (window, window.app):
                whole.deleteLater()
            qt.sendPostedEvents(None, QEvent.Type.DeferredDelete)
            logging.shutdown()


@contextmanager
def _garbage_in_this_thread() -> Iterator[QTimer]:
    """Collect Python's cyclic garbage by a timer on the window's thread, and nowhere else.

    Python would otherwise collect on whichever thread allocates next. On another thread, the end of a signal connection
    takes Qt's lock and waits for the GIL, while the window's thread holds the GIL and waits for Qt's lock: a deadlock.
    """
    by_itself = gc.isenabled()
    gc.disable()
    timer, times = QTimer(), count(1)
    timer.timeout.connect(lambda: collect_garbage(next(times)))
    try:
        yield timer
    finally:
        timer.stop()
        if by_itself:
            gc.enable()


def collect_garbage(time: int) -> None:
    """Collect the young generation, every 10th time the middle one, every 150th time all."""
    gc.collect(2 if time % 150 == 0 else 1 if time % 10 == 0 else 0)


def _page(module: str, name: str, app: App) -> QWidget:
    made: QWidget = getattr(importlib.import_module(module), name)(app)
    return made
