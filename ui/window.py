"""The desktop program: one application, one window, and what they need to begin and to end well."""

from __future__ import annotations

import gc
import importlib
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial

from PySide6.QtCore import QEvent, QLoggingCategory, QTimer
from PySide6.QtWidgets import QApplication, QWidget

from ui import icons, theme, translations
from ui.app import App, Services
from ui.main_window import MainWindow

_PAGES = {
    "talk": ("ui.talk_page", "TalkPage"),
    "sessions": ("ui.session_browser", "SessionsPage"),
    "finetune": ("ui.finetune_wizard", "FineTunePage"),
    "settings": ("ui.settings_page", "SettingsPage"),
    "first": ("ui.first_start", "FirstStart"),
}


def application() -> QApplication:
    """The one QApplication, made at the first call."""
    existing = QApplication.instance()
    if isinstance(existing, QApplication):
        return existing
    # A desktop without an input method, or without a font for some script, is no news.
    QLoggingCategory.setFilterRules("qt.qpa.*=false\nqt.text.font.db=false")
    made = QApplication(sys.argv[:1])
    made.setApplicationName("undertone")
    made.setApplicationDisplayName("Undertone")
    made.setDesktopFileName("undertone")
    made.setWindowIcon(icons.application_icon())
    return made


def open_window(services: Services) -> MainWindow:
    """The window, shown; the conversation begins right after it has been painted."""
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
        window.make_page("talk")  # the icon in the tray is its
    window.show()
    QTimer.singleShot(0, window, app.start)
    return window


def run(services: Services) -> int:
    """Open the window and stay until it is closed. Returns an exit code."""
    qt = application()
    window = open_window(services)
    before, collects = signal.signal(signal.SIGINT, lambda *_: qt.quit()), gc.isenabled()
    gc.disable()
    awake = QTimer()  # also lets Python see a Ctrl-C while Qt waits
    awake.start(200)
    awake.timeout.connect(collect_garbage)
    try:
        return qt.exec()
    finally:
        signal.signal(signal.SIGINT, before)
        if collects:
            gc.enable()
        window.app.close()
        # Whole, and before Python takes it apart piece by piece: what is half gone would still be told of the focus.
        for whole in (window, window.app):
            whole.deleteLater()
        qt.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        logging.shutdown()


def collect_garbage() -> None:
    """Collect what is due by Python's own thresholds; called in the window's thread, while no other one may.

    Left to itself Python collects in whichever thread allocates next. There the end of a connection to a signal takes
    Qt's lock and then waits for the interpreter's, while the window's thread, which holds that one, waits for Qt's.
    """
    due = [count > limit for count, limit in zip(gc.get_count(), gc.get_threshold(), strict=True)]
    if any(due):
        gc.collect(max(generation for generation, is_due in enumerate(due) if is_due))


def _page(module: str, name: str, app: App) -> QWidget:
    made: QWidget = getattr(importlib.import_module(module), name)(app)
    return made
