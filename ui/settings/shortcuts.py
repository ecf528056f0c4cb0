"""Settings: keyboard shortcuts."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent, QKeySequence
from PySide6.QtWidgets import QGridLayout, QPushButton, QWidget

from assistant.settings import Settings, TurnSection
from ui.core.app import App
from ui.core.translations import tr
from ui.widgets.common import button, label
from ui.widgets.forms import InlineMessage, Section, actions

_MODIFIERS = (Qt.Key.Key_Shift, Qt.Key.Key_Control, Qt.Key.Key_Alt, Qt.Key.Key_Meta, Qt.Key.Key_AltGr)
_RESERVED_KEYS = ("Tab", "Shift+Backtab", "Return", "Enter", "Up", "Down", "Left", "Right", "Backspace", "Del")


def fixed_shortcuts() -> list[tuple[str, str]]:
    """Return the fixed shortcuts of the window and what they do."""
    return [
        ("Ctrl+1", tr("Talk")),
        ("Ctrl+2", tr("Sessions")),
        ("Ctrl+3", tr("Fine-tune")),
        ("Ctrl+,", tr("Settings")),
        ("Ctrl+Q", tr("Quit")),
        ("Ctrl+N", tr("New conversation")),
        ("Ctrl+Z", tr("Undo the last turn")),
        ("Ctrl+M", tr("Mute or unmute the microphone")),
        ("Esc", tr("Stop listening, thinking and speaking")),
        ("Ctrl+F", tr("Search sessions")),
        ("Tab", tr("Go to the next control")),
    ]


def key_text(keys: str) -> str:
    """Format a key as the desktop does."""
    return (
        tr("Space", "key") if keys == "Space" else QKeySequence(keys).toString(QKeySequence.SequenceFormat.NativeText)
    )


class ShortcutButton(QPushButton):
    """Shows a key; when pressed, it records the next key. Escape or losing focus keeps the old one.

    Signals:
        key_chosen: the key as Qt writes it.
        refused: a key that the window needs.
    """

    key_chosen = Signal(str)
    refused = Signal(str)

    def __init__(self, keys: str) -> None:
        super().__init__()
        self._keys = keys
        self.waiting = False
        self.setAccessibleName(tr("Talk key"))
        self.clicked.connect(self._wait)
        self.show_keys(keys)

    def show_keys(self, keys: str) -> None:
        """Show a key."""
        self._keys, self.waiting = keys, False
        self.setText(key_text(keys))
        self.setAccessibleDescription(key_text(keys))

    def event(self, event: QEvent) -> bool:
        """Record keys before shortcuts, Tab and the button's own Space see them."""
        if self.waiting and event.type() is QEvent.Type.ShortcutOverride:
            event.accept()
            return True
        if self.waiting and event.type() is QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            self._take(event)
            return True
        return super().event(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        """Keep the old key."""
        super().focusOutEvent(event)
        if self.waiting:
            self.show_keys(self._keys)

    def _wait(self) -> None:
        self.waiting = True
        self.setText(tr("Press a key…"))

    def _take(self, event: QKeyEvent) -> None:
        if event.key() in _MODIFIERS:
            return
        if event.key() == Qt.Key.Key_Escape:
            self.show_keys(self._keys)
            return
        keys = QKeySequence(event.keyCombination()).toString(QKeySequence.SequenceFormat.PortableText)
        if keys in _RESERVED_KEYS or keys in (key_chosen for key_chosen, _ in fixed_shortcuts()):
            self.show_keys(self._keys)
            self.refused.emit(keys)
            return
        self.show_keys(keys)
        self.key_chosen.emit(keys)


class ShortcutSettings(Section):
    """The talk key and a list of the other shortcuts."""

    def __init__(self, app: App) -> None:
        super().__init__(tr("Shortcuts"))
        self._app = app
        self.key = ShortcutButton(app.settings.turns.shortcut)
        self.key.key_chosen.connect(self._take)
        self.key.refused.connect(self._refuse)
        self.message = InlineMessage()
        default = TurnSection().shortcut
        reset = button(tr("Use space bar"), lambda: self._take(default), "quiet")
        self.add_field(
            tr("Talk key"),
            actions(self.key, reset),
            self.message,
            note=tr("Hold it while you speak. Words right after you release it are still heard. In text fields it "
                    "types as usual."),
        )  # fmt: skip
        table = QWidget()
        grid = QGridLayout()
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(32)
        grid.setVerticalSpacing(10)
        grid.setColumnStretch(1, 1)
        for at, (keys, what) in enumerate(fixed_shortcuts()):
            grid.addWidget(label(key_text(keys), wrap=False), at, 0)
            grid.addWidget(label(what, "muted"), at, 1)
        table.setLayout(grid)
        self.add_field(tr("Window shortcuts"), table)
        app.settings_changed.connect(self._follow)

    def _take(self, keys: str) -> None:
        self.message.report("")
        self._app.change("turns", shortcut=keys)

    def _refuse(self, keys: str) -> None:
        self.message.report(tr("{keys} is already in use. Choose another key.").format(keys=key_text(keys)), error=True)

    def _follow(self, settings: Settings) -> None:
        self.key.show_keys(settings.turns.shortcut)
