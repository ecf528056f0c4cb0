"""The main window: header, pages, model status and notifications."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PySide6.QtCore import QByteArray, QEvent, QSettings, Qt, QTimer
from PySide6.QtGui import QCloseEvent, QKeySequence, QResizeEvent, QShortcut
from PySide6.QtWidgets import (
    QApplication,
    QHBoxLayout,
    QMainWindow,
    QPushButton,
    QStackedWidget,
    QSystemTrayIcon,
    QVBoxLayout,
    QWidget,
)

from assistant.backend.protocol import Ready
from assistant.events import Failed, ModelStatus
from ui.core import icons
from ui.core.app import App, Notification
from ui.core.translations import tr
from ui.core.untrusted_text import one_line, tooltip
from ui.talk.compact_window import quit_program
from ui.widgets.common import Banner, IconButton, IconLabel, button, column, label, line, restyle, row

PAGES = ("talk", "sessions", "finetune", "settings")
_LONGEST_STATUS = 60  # characters
_TOOLS = 120  # pixels of the header besides tabs and status


def about_model(about: Mapping[str, Any]) -> str:
    """Describe the loaded model: name, device and precision, memory."""
    device = "GPU" if str(about.get("device", "")).startswith("cuda") else "CPU"
    bits = {"none": tr("full precision")}.get(str(about.get("quantize", "")), str(about.get("quantize", "")))
    memory = about.get("memory_bytes")
    name = Path(str(about.get("name", ""))).name  # a folder's path is too long
    parts = [name, f"{device} {bits}".strip()]
    if memory:
        parts.append(f"{memory / 1e9:.1f} GB")
    return " · ".join(part for part in parts if part)


class MainWindow(QMainWindow):
    """The header, the notifications and the pages.

    A page is made when first shown and remade when the language changes. The Talk page is never remade: it holds the
    conversation and translates itself. A page whose `busy` is true is remade later. A `view_state` is carried over.

    Args:
        pages: makes each page of `PAGES`, and "first", the first-run wizard.
    """

    def __init__(self, app: App, pages: Mapping[str, Callable[[App], QWidget]]) -> None:
        super().__init__()
        self.app = app
        self._makers = pages
        self.pages: dict[str, QWidget] = {}
        self._outdated: set[str] = set()
        self.setWindowTitle("Undertone")
        self.setWindowIcon(icons.application_icon())
        self.setMinimumSize(480, 420)
        self.resize(1100, 760)
        self.tabs: dict[str, QPushButton] = {}
        self.status = label(self.tr("Starting…") if app.settings.started else "", "small", wrap=False)
        self._stack = QStackedWidget()
        self.banner_area = QVBoxLayout()
        self.banner_area.setSpacing(8)
        self._banners: dict[str, Banner] = {}
        centre = QWidget()
        layout = column(spacing=0)
        layout.addLayout(self._header())
        layout.addWidget(line())
        layout.addLayout(self.banner_area)
        layout.addWidget(self._stack, 1)
        centre.setLayout(layout)
        self.setCentralWidget(centre)
        for number, name in enumerate(PAGES[:3], 1):
            self._shortcut(f"Ctrl+{number}", name)
        self._shortcut("Ctrl+,", "settings")
        QShortcut(QKeySequence("Ctrl+Q"), self).activated.connect(lambda: quit_program(self))
        app.notified.connect(self.notify)
        app.event_received.connect(self._on_event)
        self._restore()

    def show_page(self, name: str) -> QWidget:
        """Show a page of `PAGES`, or "first", focus it and return it."""
        page = self.make_page(name)
        self._stack.setCurrentWidget(page)
        for tab, shown in self.tabs.items():
            shown.setChecked(tab == name)
        focus = QApplication.focusWidget()
        if focus is None or not page.isAncestorOf(focus):
            page.setFocus(Qt.FocusReason.TabFocusReason)
        return page

    def make_page(self, name: str) -> QWidget:
        """Return a page without showing it; make it if needed."""
        before = self.pages.get(name)
        if before is None or (name in self._outdated and not getattr(before, "busy", False)):
            self._make(name, before)
        return self.pages[name]

    @property
    def page(self) -> str:
        """The name of the current page."""
        return next((name for name, page in self.pages.items() if page is self._stack.currentWidget()), "")

    def notify(self, message: Notification) -> None:
        """Show a message above the page. It replaces one with the same text; at most three are shown."""
        if (old := self._banners.pop(message.text, None)) is not None:
            old.dismiss()
        while len(self._banners) >= 3:
            self._banners.pop(next(iter(self._banners))).dismiss()
        banner = Banner(message.text, message.action, message.act, error=message.error)
        banner.dismissed.connect(partial(self._forget, message.text, banner))
        self._banners[message.text] = banner
        self.banner_area.addWidget(banner)
        self.banner_area.setContentsMargins(16, 8, 16, 0)
        if message.seconds:
            QTimer.singleShot(round(message.seconds * 1000), banner, banner.dismiss)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Hide the model status when the tabs need the room."""
        super().resizeEvent(event)
        self._fit()

    def closeEvent(self, event: QCloseEvent) -> None:
        """Save the window's position. With a tray icon the program keeps running."""
        store = _geometry_store(self.app)
        store.setValue("geometry", self.saveGeometry())
        store.sync()
        stays = self.app.settings.looks.tray and QSystemTrayIcon.isSystemTrayAvailable()
        QApplication.setQuitOnLastWindowClosed(not stays)
        super().closeEvent(event)

    def changeEvent(self, event: QEvent) -> None:
        """Follow the language."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange and self.pages:
            QTimer.singleShot(0, self, self._fit)  # after the tabs got the new font
        elif event.type() == QEvent.Type.LanguageChange:
            self._retranslate()
            self._fit()
            self._outdated = set(self.pages) - {"talk"}
            if self.page:
                QTimer.singleShot(
                    0, self, lambda: self.show_page(self.page)
                )  # after the handler that changed the language has returned

    # ---- internal

    def _fit(self) -> None:
        """Never cut off the tabs; show the other parts where there is room."""
        for roomy in (True, False):
            for tab in self.tabs.values():
                restyle(tab, kind="tab" if roomy else "narrow tab")
            tabs = sum(tab.sizeHint().width() for tab in self.tabs.values())
            if self.width() > tabs + _TOOLS:
                break
        self._lock.setVisible(roomy)
        self.status.setVisible(self.width() > tabs + self.status.sizeHint().width() + _TOOLS)

    def _make(self, name: str, before: QWidget | None) -> None:
        made = self.pages[name] = self._makers[name](self.app)
        self._stack.addWidget(made)
        self._outdated.discard(name)
        if before is not None:
            for banner in self._banners.values():  # their undo belongs to the old page
                banner.dismiss()
            if hasattr(before, "view_state") and hasattr(made, "view_state"):
                made.view_state = before.view_state
            self._stack.removeWidget(before)
            before.deleteLater()

    def _header(self) -> QHBoxLayout:
        for page in PAGES[:3]:
            tab = button("", partial(self.show_page, page), "tab")
            tab.setCheckable(True)
            self.tabs[page] = tab
        self._lock = IconLabel("lock")
        self._settings = IconButton("settings", "", lambda: self.show_page("settings"))
        self._settings.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        header = row(*self.tabs.values(), None, self.status, self._lock, self._settings)
        header.setContentsMargins(12, 8, 12, 8)
        self._retranslate()
        return header

    def _retranslate(self) -> None:
        """Set the header's texts in the current language."""
        names = {"talk": self.tr("Talk"), "sessions": self.tr("Sessions"), "finetune": self.tr("Fine-tune")}
        for page, tab in self.tabs.items():
            tab.setText(names[page])
        if self.app.about:
            self.status.setText(about_model(self.app.about))
        self.status.setAccessibleName(self.tr("Model"))
        self._lock.setToolTip(self.tr("Everything stays on this computer."))
        self._settings.show_icon("settings", self.tr("Settings (Ctrl+,)"))

    def _shortcut(self, keys: str, page: str) -> None:
        QShortcut(QKeySequence(keys), self).activated.connect(lambda: self.show_page(page))

    def _on_event(self, event: object) -> None:
        if isinstance(event, Ready):
            self._show_status(about_model(event.about))
            self.status.setToolTip(tooltip(str(event.about.get("why", ""))))
        elif isinstance(event, ModelStatus) and event.status != "ready":  # `Ready` has more details
            self._show_status(event.text)
            if event.status == "failed":
                self.notify(
                    Notification(event.text, self.tr("Choose a model"), lambda: self.show_page("settings"), True)
                )
        elif isinstance(event, Failed) and event.turn is None:
            self.notify(Notification(event.message, error=True))

    def _show_status(self, text: str) -> None:
        self.status.setText(one_line(text)[:_LONGEST_STATUS])
        self._fit()

    def _forget(self, text: str, banner: Banner) -> None:
        if self._banners.get(text) is banner:
            del self._banners[text]
        if not self._banners:
            self.banner_area.setContentsMargins(0, 0, 0, 0)

    def _restore(self) -> None:
        geometry = _geometry_store(self.app).value("geometry")
        if isinstance(geometry, QByteArray):
            self.restoreGeometry(geometry)


def _geometry_store(app: App) -> QSettings:
    return QSettings(str(app.services.home / "window.ini"), QSettings.Format.IniFormat)
