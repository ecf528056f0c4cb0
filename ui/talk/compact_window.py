"""The compact window that stays on top, and the tray icon."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtGui import QCloseEvent, QKeyEvent, QResizeEvent
from PySide6.QtWidgets import QApplication, QLayout, QMenu, QSizePolicy, QSystemTrayIcon, QWidget

from assistant.events import ReplyFinished, ReplyText, UtteranceEnded
from ui.core import icons, theme
from ui.core.app import App
from ui.talk.talk_button import TalkButton, TalkKey, show_mute
from ui.talk.turn_view import SelectableText
from ui.widgets.common import IconButton, column, row

_LINES = 4  # of a reply
_SHOWN = 600  # characters of it, the last ones


class CompactWindow(QWidget):
    """The talk button, the last lines of the reply, stop, mute and restore; above all other windows.

    Signals:
        closed: the user wants the full window again.
    """

    closed = Signal()

    def __init__(self, app: App, key: TalkKey) -> None:
        super().__init__(None, Qt.WindowType.Window | Qt.WindowType.WindowStaysOnTopHint)
        self._app, self._key = app, key
        self._reply = ""
        self.setWindowTitle("Undertone")
        self.setWindowIcon(icons.application_icon())
        self.button = TalkButton(app, key, 52)
        self.text = SelectableText("")
        self.text.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Ignored)  # keeps the window from growing
        self.text.setFixedHeight(_LINES * self.text.line)
        self.stop = IconButton("stop", "", self._stop)
        self.mute = IconButton("microphone", "", lambda: key.mute(on=not key.muted))
        self.restore = IconButton("talk", "", self.close)
        tools = row(self.stop, self.mute, None, self.restore, spacing=2)
        right = column(spacing=4)
        right.addWidget(self.text)
        right.addLayout(tools)
        layout = row(self.button, spacing=12)
        layout.addLayout(right, 1)
        layout.setContentsMargins(8, 8, 12, 8)
        layout.setSizeConstraint(QLayout.SizeConstraint.SetNoConstraint)
        self.setLayout(layout)
        self.setMinimumSize(layout.minimumSize())
        key.muted_changed.connect(self._show_mute)
        app.event_received.connect(self._on_event)
        self.retranslate()
        self.resize(round(480 * theme.pixels("body") / theme.SIZES["body"]), self.minimumHeight())

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Handle the talk key, and Escape to stop."""
        if event.key() == Qt.Key.Key_Escape:
            self._stop()
        elif not self._key.take(event, down=True):
            super().keyPressEvent(event)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:
        """Handle the release of the talk key."""
        if not self._key.take(event, down=False):
            super().keyReleaseEvent(event)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Go back to the full window."""
        self._key.release_all()
        super().closeEvent(event)
        self.hide()
        self.closed.emit()

    def retranslate(self) -> None:
        """Set all texts in the current language."""
        self.text.setAccessibleName(self.tr("Reply"))
        self.stop.show_icon("stop", self.tr("Stop (Esc)"))
        self.restore.show_icon("talk", self.tr("Full window"))
        self._show_mute()
        self._draw()

    # ---- internal

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Keep the end of the reply in view."""
        super().resizeEvent(event)
        self._draw()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme: the text holds its colours."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange and hasattr(self, "text"):
            self.text.restyle()
            self.text.setFixedHeight(_LINES * self.text.line)

    def _on_event(self, event: object) -> None:
        self.button.handle_event(event)
        if isinstance(event, UtteranceEnded):
            self._show("")
        elif isinstance(event, ReplyText):
            self._show(self._reply + event.text)
        elif isinstance(event, ReplyFinished):
            self._show(event.text)

    def _stop(self) -> None:
        self._key.release_all()
        if self._app.talk is not None:
            self._app.talk.stop()

    def _show(self, reply: str) -> None:
        self._reply = reply[-_SHOWN:]
        self._draw()

    def _draw(self) -> None:
        """Show the end of the reply."""
        self.text.write(self._reply or self.tr("The reply is shown here."), muted=not self._reply)
        bar = self.text.verticalScrollBar()
        bar.setValue(bar.maximum())

    def _show_mute(self, *_: object) -> None:
        show_mute(self.mute, muted=self._key.muted)


def quit_program(window: QWidget) -> None:
    """Quit the program, even with a tray icon."""
    window.close()
    QApplication.exit(0)


class Tray(QSystemTrayIcon):
    """The tray icon, where the desktop has a tray and the user wants it.

    Signals:
        restore_requested, compact_requested, quit_requested: the menu item was chosen.
    """

    restore_requested = Signal()
    compact_requested = Signal()
    quit_requested = Signal()

    def __init__(self, app: App, key: TalkKey, parent: QWidget) -> None:
        super().__init__(icons.application_icon(), parent)
        self._app, self._key = app, key
        self.setToolTip("Undertone")
        self.menu = QMenu()  # the tray icon does not own its menu
        self._whole, self._compact = self.menu.addAction(""), self.menu.addAction("")
        self.menu.addSeparator()
        self.hands_free, self.muted = self.menu.addAction(""), self.menu.addAction("")
        self.menu.addSeparator()
        self._quit = self.menu.addAction("")
        self.hands_free.setCheckable(True)
        self.muted.setCheckable(True)
        self._whole.triggered.connect(self.restore_requested)
        self._compact.triggered.connect(self.compact_requested)
        self.hands_free.triggered.connect(lambda on: app.change("turns", hands_free=on))
        self.muted.triggered.connect(lambda on: key.mute(on=on))
        self._quit.triggered.connect(self.quit_requested)
        self.setContextMenu(self.menu)
        self.activated.connect(self._open)
        app.settings_changed.connect(self._show_state)
        key.muted_changed.connect(self._show_state)
        self.retranslate()
        self._show_state()

    def retranslate(self) -> None:
        """Set the menu's texts in the current language."""
        self._whole.setText(self.tr("Open Undertone"))
        self._compact.setText(self.tr("Compact window"))
        self.hands_free.setText(self.tr("Hands-free"))
        self.muted.setText(self.tr("Mute the microphone"))
        self._quit.setText(self.tr("Quit"))

    def _open(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        if reason is QSystemTrayIcon.ActivationReason.Trigger:
            self.restore_requested.emit()

    def _show_state(self, *_: object) -> None:
        self.hands_free.setChecked(self._app.settings.turns.hands_free)
        self.muted.setChecked(self._key.muted)
        self.setVisible(self._app.settings.looks.tray and self.isSystemTrayAvailable())
