"""Undertone beside other work: a small window that stays on top, and an icon in the tray."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QAction, QCloseEvent, QKeyEvent
from PySide6.QtWidgets import QLayout, QMenu, QSizePolicy, QSystemTrayIcon, QWidget

from assistant.events import ReplyFinished, ReplyText, UtteranceEnded
from ui import icons, theme
from ui.app import App
from ui.talk_button import TalkButton, TalkKey, show_mute
from ui.widgets import IconButton, column, label, row

_LINES = 4  # of a reply
_SHOWN = 600  # characters of it, the last ones


class CompactWindow(QWidget):
    """The talk button, the reply's last lines, stop, mute and the way back; above all other windows.

    Signals:
        closed: the user wants the whole window again.
    """

    closed = Signal()

    def __init__(self, app: App, key: TalkKey) -> None:
        super().__init__(None, Qt.WindowType.Window | Qt.WindowType.WindowStaysOnTopHint)
        self._app, self._key = app, key
        self._reply = ""
        self.setWindowTitle("Undertone")
        self.setWindowIcon(icons.application_icon())
        self.button = TalkButton(app, key, 52)
        self.text = label()
        self.text.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Ignored)  # the window does not grow
        self.text.setMinimumHeight(_LINES * self.fontMetrics().lineSpacing())
        self.text.setAlignment(Qt.AlignmentFlag.AlignBottom | Qt.AlignmentFlag.AlignLeft)
        self.text.setAccessibleName(self.tr("Reply"))
        self.stop = IconButton("stop", self.tr("Stop (Esc)"), self._stop)
        self.mute = IconButton("microphone", "", lambda: key.mute(on=not key.muted))
        self.whole = IconButton("talk", self.tr("Whole window"), self.close)
        tools = row(self.stop, self.mute, None, self.whole, spacing=2)
        right = column(spacing=4)
        right.addWidget(self.text, 1)
        right.addLayout(tools)
        layout = row(self.button, spacing=12)
        layout.addLayout(right, 1)
        layout.setContentsMargins(8, 8, 12, 8)
        layout.setSizeConstraint(QLayout.SizeConstraint.SetNoConstraint)
        self.setLayout(layout)
        self.setMinimumSize(layout.minimumSize())
        key.muted_changed.connect(self._show_mute)
        app.happened.connect(self._hear)
        self._show_mute()
        self.resize(round(400 * theme.pixels("body") / theme.SIZES["body"]), self.minimumHeight())

    def show_reply(self, text: str) -> None:
        """Show the last lines of a reply."""
        self._reply = text[-_SHOWN:]
        self._draw()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """The talk key, and Escape to stop."""
        if event.key() == Qt.Key.Key_Escape:
            self._stop()
        elif not self._key.take(event, down=True):
            super().keyPressEvent(event)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:
        """The talk key goes up."""
        if not self._key.take(event, down=False):
            super().keyReleaseEvent(event)

    def closeEvent(self, event: QCloseEvent) -> None:
        """Back to the whole window."""
        self._key.let_go()
        super().closeEvent(event)
        self.hide()
        self.closed.emit()

    # ---- inside

    def _hear(self, event: object) -> None:
        self.button.hear(event)
        if isinstance(event, UtteranceEnded):
            self.show_reply("")
        elif isinstance(event, ReplyText):
            self.show_reply(self._reply + event.text)
        elif isinstance(event, ReplyFinished):
            self.show_reply(event.text)

    def _stop(self) -> None:
        self._key.let_go()
        if self._app.talk is not None:
            self._app.talk.stop()

    def _draw(self) -> None:
        """The last lines that there is room for."""
        self.text.setText(self._reply or self.tr("The reply is shown here."))

    def _show_mute(self, *_: object) -> None:
        show_mute(self.mute, muted=self._key.muted)


class Tray(QSystemTrayIcon):
    """The icon in the tray, where the desktop has one and the user wants it.

    Signals:
        whole_wanted, compact_wanted, quit_wanted: the user chose that from its menu.
    """

    whole_wanted = Signal()
    compact_wanted = Signal()
    quit_wanted = Signal()

    def __init__(self, app: App, key: TalkKey, parent: QWidget) -> None:
        super().__init__(icons.application_icon(), parent)
        self._app, self._key = app, key
        self.setToolTip("Undertone")
        self.menu = QMenu()  # kept here: the icon does not own it
        self.menu.addAction(self.tr("Open Undertone")).triggered.connect(self.whole_wanted)
        self.menu.addAction(self.tr("Small window on top")).triggered.connect(self.compact_wanted)
        self.menu.addSeparator()
        self.hands_free = self._choice(self.tr("Hands-free"))
        self.hands_free.triggered.connect(lambda on: app.change("turns", hands_free=on))
        self.muted = self._choice(self.tr("Mute the microphone"))
        self.muted.triggered.connect(lambda on: key.mute(on=on))
        self.menu.addSeparator()
        self.menu.addAction(self.tr("Quit")).triggered.connect(self.quit_wanted)
        self.setContextMenu(self.menu)
        self.activated.connect(self._open)
        app.settings_changed.connect(self._show_state)
        key.muted_changed.connect(self._show_state)
        self._show_state()

    def _choice(self, words: str) -> QAction:
        action = self.menu.addAction(words)
        action.setCheckable(True)
        return action

    def _open(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        if reason is QSystemTrayIcon.ActivationReason.Trigger:
            self.whole_wanted.emit()

    def _show_state(self, *_: object) -> None:
        self.hands_free.setChecked(self._app.settings.turns.hands_free)
        self.muted.setChecked(self._key.muted)
        self.setVisible(self._app.settings.looks.tray and self.isSystemTrayAvailable())
