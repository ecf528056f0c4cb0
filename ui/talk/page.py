"""The Talk page: the conversation, the emotion panel and the talk bar."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QEvent, Qt, QTimer
from PySide6.QtGui import QGuiApplication, QHideEvent, QKeyEvent, QKeySequence, QResizeEvent, QShortcut, QShowEvent
from PySide6.QtWidgets import QBoxLayout, QFrame, QStackedWidget, QWidget

from assistant.backend.protocol import Ready
from assistant.events import SAMPLE_RATE, ModelStatus, SpeechStarted, Spoken, UtteranceEnded
from ui.core import theme
from ui.core.app import App
from ui.core.untrusted_text import one_line
from ui.talk.compact_window import CompactWindow, Tray, quit_program
from ui.talk.conversation_view import ConversationView
from ui.talk.emotion_panel import EmotionPanel
from ui.talk.talk_bar import TalkBar
from ui.talk.talk_button import TalkKey
from ui.widgets.common import EmptyState, column, label, line

_NARROW = 900
"""Pixels; in narrower windows the emotion panel is a strip above the conversation."""
_PANEL = 320  # pixels, at the normal text size
_ANY = 16_777_215  # Qt's largest size
_POLL_MS = 100  # interval for polling the playback
_PATIENCE = 10  # polls within which it must start


class TalkPage(QWidget):
    """The Talk page.

    Attributes:
        key: the talk key.
        view, panel, bar: the conversation, the emotion panel and the talk bar.
        compact: the compact window.
    """

    def __init__(self, app: App) -> None:
        super().__init__()
        self.app = app
        self.key = TalkKey(app)
        self.view = ConversationView()
        self.panel = EmotionPanel(app)
        self.bar = TalkBar(app, self.key)
        self.compact = CompactWindow(app, self.key)
        self.compact.closed.connect(self.leave_compact)
        self.tray = Tray(app, self.key, self)
        self._nothing: EmptyState | None = None
        self._model: ModelStatus | Ready | None = None
        self._played: int | None = None
        self._polls = 0
        self._playback_timer = QTimer(self)
        self._playback_timer.setInterval(_POLL_MS)
        self._playback_timer.timeout.connect(self.inspect)
        self.status = label("", "small")
        self.status.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.status.setContentsMargins(16, 8, 16, 0)
        self.status.hide()
        self._build()
        self.view.action_requested.connect(self.act)
        self.view.chosen.connect(lambda number: self.panel.show_turn(number))
        self.panel.corrected.connect(self.view.show_correction)
        self.bar.new_requested.connect(self.start_new)
        self.bar.compact_requested.connect(self.show_compact)
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.tray.restore_requested.connect(self.leave_compact)
        self.tray.compact_requested.connect(self.show_compact)
        self.tray.quit_requested.connect(lambda: quit_program(self.window()))
        self._shortcut("Ctrl+N", self.start_new)
        self._shortcut("Ctrl+M", lambda: self.key.mute(on=not self.key.muted))
        self._shortcut("Ctrl+Z", self.undo)
        app.event_received.connect(self._on_event)

    # ---- actions

    def act(self, action: str, number: int) -> None:
        """Run an action on a turn: "play", "copy", "edit", "again" or "undo"."""
        entry, talk = self.view.entry(number), self.app.talk
        if entry is None or talk is None:
            return
        if action == "copy":
            texts = (entry.user_text, entry.reply)
            QGuiApplication.clipboard().setText("\n\n".join(text for text in texts if text))
            self.app.notify(self.tr("Copied."))
        elif action == "play":
            self._play(number)
        elif entry is not self.view.last:
            return  # only the latest turn can be changed
        elif action == "edit":
            self.bar.edit(entry.user_text)
        elif action == "again":
            talk.again()
        elif action == "undo":
            self.undo()

    def undo(self) -> None:
        """Undo the last turn and offer to edit its message."""
        last, talk = self.view.last, self.app.talk
        if last is not None and talk is not None:
            talk.undo()
            if last.user_text:
                notes = last.user_text
                self.app.notify(self.tr("Last turn undone."), self.tr("Edit"), lambda: self._write(notes))

    def start_new(self) -> None:
        """Start a new conversation."""
        if self.app.talk is not None and self.view.last is not None:
            self.app.talk.new()
            self.view.clear()
            self.panel.clear()
            self.bar.end_editing()
            self._update_empty_state()

    def show_compact(self) -> None:
        """Switch to the compact window."""
        self.key.release_all()
        self.compact.show()
        self.window().hide()

    def leave_compact(self) -> None:
        """Switch back to the full window."""
        if self.compact.isVisible():
            self.compact.close()
            return  # its `closed` signal calls this again
        window = self.window()
        window.show()
        window.activateWindow()

    def _write(self, notes: str) -> None:
        self.bar.line.setText(" ".join(notes.split()))
        self.bar.line.setFocus(Qt.FocusReason.OtherFocusReason)

    # ---- playback

    def _play(self, number: int) -> None:
        entry, talk = self.view.entry(number), self.app.talk
        if talk is None or entry is None or not isinstance(entry.message, Spoken):
            return
        if self._played == number:
            talk.clips.stop()
            self._end_playing()
        else:
            talk.clips.play(entry.message.samples, SAMPLE_RATE)
            self._played, self._polls = number, 0
            self.view.show_playing(number)
            self._playback_timer.start()

    def inspect(self) -> None:
        """Poll whether the recording has ended, or gave way to a turn."""
        talk = self.app.talk
        self._polls += 1
        if talk is None or not (talk.clips.playing or self._polls < _PATIENCE):
            self._end_playing()
        elif talk.clips.playing:
            self._polls = _PATIENCE

    def _end_playing(self) -> None:
        self._playback_timer.stop()
        self._played = None
        self.view.show_playing(None)

    # ---- the talk key

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Handle Escape and the talk key if no widget did."""
        if event.key() == Qt.Key.Key_Escape:
            self.bar.stop_all()
        elif not self.key.take(event, down=True):
            super().keyPressEvent(event)

    def keyReleaseEvent(self, event: QKeyEvent) -> None:
        """Handle the release of the talk key."""
        if not self.key.take(event, down=False):
            super().keyReleaseEvent(event)

    def showEvent(self, event: QShowEvent) -> None:
        """Focus the talk button."""
        super().showEvent(event)
        self.bar.button.setFocus(Qt.FocusReason.OtherFocusReason)

    def hideEvent(self, event: QHideEvent) -> None:
        """Release the talk key."""
        super().hideEvent(event)
        self.key.release_all()

    def changeEvent(self, event: QEvent) -> None:
        """Follow the language."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.LanguageChange:
            self.bar.retranslate()
            self.compact.retranslate()
            self.tray.retranslate()
            self._make_empty()
            self._make_panel()
            self._show_model()

    # ---- events

    def _on_event(self, event: object) -> None:
        self.bar.handle_event(event)
        if isinstance(event, UtteranceEnded | SpeechStarted) and self.bar.editing:
            self.bar.end_editing()  # the edited message is no longer the latest
        if isinstance(event, ModelStatus | Ready):
            self._model = event
            self._show_model()
        else:
            self.view.handle_event(event)
            self._update_empty_state()

    def _show_model(self) -> None:
        event = self._model
        if not isinstance(event, ModelStatus) or event.status == "ready":
            self.status.hide()
            return
        notes = {
            "loading": self.tr("{0} You can already talk or type. The reply comes when the model is ready."),
            "failed": self.tr("{0} There are no replies until a model is loaded."),
        }
        text = one_line(event.text)
        status = text[:1].upper() + text[1:].rstrip(".…") + "."
        self.status.setText(notes.get(event.status, "{0}").format(status))
        self.status.show()

    def _update_empty_state(self) -> None:
        if self._nothing is not None:
            self._pages.setCurrentWidget(self._nothing if self.view.last is None else self.view)

    # ---- building

    def _build(self) -> None:
        self._pages = QStackedWidget()
        self._pages.addWidget(self.view)
        self._make_empty()
        self._edge = QFrame()
        self._edge.setProperty("role", "line")
        self._upper = QBoxLayout(QBoxLayout.Direction.RightToLeft)
        self._upper.setSpacing(0)
        self._upper.addWidget(self.panel)
        self._upper.addWidget(self._edge)
        self._upper.addWidget(self._pages, 1)
        layout = column(spacing=0)
        layout.addLayout(self._upper, 1)
        layout.addWidget(line())
        layout.addWidget(self.status)
        layout.addWidget(self.bar)
        self.setLayout(layout)
        actions = self.view.action_bar
        previous: QWidget = self.view
        for following in (*actions.buttons.values(), self.bar.button):
            self.setTabOrder(previous, following)
            previous = following
        self._lay_out(narrow=False)

    def _make_empty(self) -> None:
        """Make the empty state."""
        if self._nothing is not None:
            self._pages.removeWidget(self._nothing)
            self._nothing.deleteLater()
        self._nothing = EmptyState(
            "talk",
            self.tr("Hold the button below and speak, or type a message."),
            self.tr("Type a message"),
            lambda: self.bar.line.setFocus(Qt.FocusReason.OtherFocusReason),
        )
        self._pages.addWidget(self._nothing)
        self._update_empty_state()

    def _make_panel(self) -> None:
        """Remake the emotion panel in the current language."""
        before, self.panel = self.panel, EmotionPanel(self.app, self.panel)
        self.panel.corrected.connect(self.view.show_correction)
        self._upper.replaceWidget(before, self.panel)
        before.deleteLater()
        self._lay_out(narrow=self.width() < _NARROW)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Put the panel above the conversation in a narrow window."""
        super().resizeEvent(event)
        self._lay_out(narrow=event.size().width() < _NARROW)

    def _lay_out(self, *, narrow: bool) -> None:
        down, across = QBoxLayout.Direction.TopToBottom, QBoxLayout.Direction.RightToLeft
        self.panel.set_strip(narrow)
        self._upper.setDirection(down if narrow else across)
        width = round(_PANEL * min(1.5, theme.pixels("body") / theme.SIZES["body"]))
        self.panel.setMinimumWidth(0 if narrow else width)
        self.panel.setMaximumWidth(_ANY if narrow else width)
        self._edge.setMinimumSize(1, 1)
        self._edge.setMaximumSize(_ANY if narrow else 1, 1 if narrow else _ANY)

    def _shortcut(self, keys: str, act: Callable[[], object]) -> None:
        shortcut = QShortcut(QKeySequence(keys), self)
        shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        shortcut.activated.connect(act)
