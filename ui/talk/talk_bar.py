"""The talk bar: talk button, microphone level, switches, and the text field."""

from __future__ import annotations

from itertools import pairwise

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent, QResizeEvent
from PySide6.QtWidgets import QGridLayout, QHBoxLayout, QLineEdit, QWidget

from assistant.events import State, StateChanged
from ui.core import theme
from ui.core.app import App
from ui.talk.talk_button import LevelStrip, TalkButton, TalkKey, show_mute
from ui.widgets.common import IconButton, Switch, row

_NARROW = 780  # pixels, at the normal text size


class TalkBar(QWidget):
    """The bar at the bottom of the Talk page. It calls the conversation itself.

    Signals:
        new_requested, compact_requested: the button was pressed.
    """

    new_requested = Signal()
    compact_requested = Signal()

    def __init__(self, app: App, key: TalkKey) -> None:
        super().__init__()
        self._app, self._key = app, key
        self.editing = False
        """Whether the next message replaces the last one."""
        self.button = TalkButton(app, key)
        self.strip = LevelStrip(key)
        self.hands_free, self.empathy = self._switch("hands_free"), self._switch("empathy")
        self.stop = IconButton("stop", "", self.stop_all, 22)
        self.stop.setEnabled(False)
        self.mute = IconButton("microphone", "", lambda: key.mute(on=not key.muted), 22)
        self.new = IconButton("plus", "", self.new_requested.emit, 22)
        self.compact = IconButton("compact", "", self.compact_requested.emit, 22)
        self.send_button = IconButton("send", "", self.send, 22)
        self.send_button.setEnabled(False)
        self.line = QLineEdit()
        self.line.returnPressed.connect(self.send)
        self.line.textChanged.connect(lambda text: self.send_button.setEnabled(bool(text.strip())))
        self._switches, self._typing, self._near, self._far, self._tools = (QWidget() for _ in range(5))
        self._switches.setLayout(row(self.hands_free, self.empathy, spacing=16))
        self._typing.setLayout(row(self.line, self.send_button, spacing=4))
        self._near.setLayout(row(self.stop, self.mute, spacing=4))
        self._far.setLayout(row(self.new, self.compact, spacing=4))
        self._tools.setLayout(row(spacing=4))
        self._grid = QGridLayout()
        self._grid.setContentsMargins(24, 8, 24, 12)
        self._grid.setHorizontalSpacing(16)
        self._grid.setVerticalSpacing(8)
        self._grid.setColumnStretch(0, 1)
        self._grid.setColumnStretch(2, 1)
        self.setLayout(self._grid)
        self._narrow: bool | None = None
        self._arrange(narrow=False)
        parts = (self.button, self.stop, self.mute, self.hands_free, self.empathy, self.line, self.send_button)
        for before, after in pairwise((*parts, self.new, self.compact)):
            self.setTabOrder(before, after)
        key.muted_changed.connect(self._show_mute)
        app.settings_changed.connect(self._show_settings)
        self._show_settings()
        self.retranslate()

    def handle_event(self, event: object) -> None:
        """Update from an event of the conversation."""
        self.button.handle_event(event)
        self.strip.handle_event(event)
        if isinstance(event, StateChanged):
            self.stop.setEnabled(self.button.state is not State.IDLE)

    def send(self) -> None:
        """Send the typed message; while editing, it replaces the last message."""
        text, talk = self.line.text().strip(), self._app.talk
        if text and talk is not None:
            talk.again(text) if self.editing else talk.type(text)
            self.line.clear()
            self.end_editing()

    def edit(self, text: str) -> None:
        """Put the last message into the text field to edit it."""
        self.editing = True
        self.line.setText(" ".join(text.split()))
        self._show_hint()
        self.line.setFocus(Qt.FocusReason.OtherFocusReason)

    def end_editing(self) -> None:
        """Stop editing: the next message is a new one."""
        self.editing = False
        self._show_hint()

    def stop_all(self) -> None:
        """Stop listening, thinking, speaking and playing."""
        self._key.release_all()
        if self._app.talk is not None:
            self._app.talk.stop()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Escape leaves the text field."""
        if event.key() == Qt.Key.Key_Escape and self.line.hasFocus():
            if self.editing:
                self.line.clear()
                self.end_editing()
            self.button.setFocus(Qt.FocusReason.OtherFocusReason)
        else:
            super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Stack the parts in a narrow window."""
        super().resizeEvent(event)
        self._arrange(narrow=event.size().width() < _NARROW * theme.pixels("body") / theme.SIZES["body"])

    def retranslate(self) -> None:
        """Set all texts in the current language."""
        for switch, text, tip in (
            (self.hands_free, self.tr("Hands-free"), self.tr("Listen without holding a key")),
            (self.empathy, self.tr("Empathy"), self.tr("Take your mood into account in replies")),
        ):
            switch.setText(text)
            switch.setAccessibleName(text)
            switch.setToolTip(tip)
            switch.updateGeometry()
        self.stop.show_icon("stop", self.tr("Stop (Esc)"))
        self.new.show_icon("plus", self.tr("New conversation (Ctrl+N)"))
        self.compact.show_icon("compact", self.tr("Compact window"))
        self.send_button.show_icon("send", self.tr("Send"))
        self.line.setAccessibleName(self.tr("Message"))
        self.strip.setAccessibleName(self.tr("Microphone level"))
        self._show_mute()
        self._show_hint()

    # ---- internal

    def _show_hint(self) -> None:
        new, other = self.tr("Type a message…"), self.tr("Edit your message…")
        self.line.setPlaceholderText(other if self.editing else new)

    def _switch(self, setting: str) -> Switch:
        made = Switch("", lambda on: self._app.change("turns", **{setting: on}))
        made.setFocusPolicy(Qt.FocusPolicy.TabFocus)  # after a click, Space must remain the talk key
        return made

    def _show_settings(self, *_: object) -> None:
        turns = self._app.settings.turns
        self.hands_free.setChecked(turns.hands_free)
        self.empathy.setChecked(turns.empathy)

    def _show_mute(self, *_: object) -> None:
        show_mute(self.mute, muted=self._key.muted)

    def _arrange(self, *, narrow: bool) -> None:
        if narrow == self._narrow:
            return
        self._narrow = narrow
        grid, centre = self._grid, Qt.AlignmentFlag.AlignCenter
        tools = self._tools.layout()
        assert isinstance(tools, QHBoxLayout), "made above"
        if narrow:
            grid.addWidget(self._near, 0, 0, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft)
            grid.addWidget(self.button, 0, 1, centre)
            grid.addWidget(self._far, 0, 2, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight)
            grid.addWidget(self._switches, 1, 0, 1, 3, centre)
            grid.addWidget(self._typing, 2, 0, 1, 3)
        else:
            grid.addWidget(self.strip, 0, 0)
            grid.addWidget(self._switches, 1, 0, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
            grid.addWidget(self.button, 0, 1, 2, 1, centre)
            grid.addWidget(self._typing, 0, 2)
            grid.addWidget(self._tools, 1, 2, Qt.AlignmentFlag.AlignTop)
            tools.insertWidget(0, self._near)
            tools.insertStretch(1, 1) if tools.count() < 2 else None
            tools.addWidget(self._far)
        self.strip.setVisible(not narrow)
        self._tools.setVisible(not narrow)
