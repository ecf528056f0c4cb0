"""One turn of the conversation: message, emotion, reply, how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from PySide6.QtCore import QLocale, QSize, Qt, QTime, Signal
from PySide6.QtGui import (
    QColor,
    QFont,
    QKeyEvent,
    QKeySequence,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextOption,
    QWheelEvent,
)
from PySide6.QtWidgets import QFrame, QLabel, QSizePolicy, QTextEdit, QWidget

from assistant.events import (
    SAMPLE_RATE,
    EmotionRead,
    Failed,
    Message,
    Outcome,
    PlaybackFinished,
    PlaybackProgressed,
    ReplyFinished,
    ReplyText,
    Spoken,
    Transcribed,
    TurnEnded,
    Typed,
)
from ui.core import icons, theme
from ui.core.emotion_text import voice_sounds
from ui.core.translations import tr
from ui.core.untrusted_text import PARAGRAPH, paragraphs, valid_unicode
from ui.widgets.common import EmotionChip, IconButton, button, column, label, row
from ui.widgets.delay_chip import DelayChip, Waterfall, delay

SHOWN = 6000
"""Characters of a text that are laid out; copying returns all of it."""
_LEADING = 118  # line height in per cent of the font's
_CUT = "|"  # marks where a reply was cut off


@dataclass(slots=True, eq=False)
class Entry:
    """What is known about a turn so far. `outcome` is None while it runs."""

    number: int
    at: datetime = field(default_factory=datetime.now)
    message: Message | None = None
    transcript: str = ""
    emotion: str = ""
    confidence: float = 0.0
    corrected: str | None = None  # the emotion that the user chose
    reply: str = ""
    heard: str = ""
    outcome: Outcome | None = None
    failure: str = ""
    marks: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    unfolded: bool = False

    def handle_event(self, event: object) -> bool:
        """Update from an event of this turn; return whether anything changed."""
        match event:
            case EmotionRead(reading=reading) if reading is not None:
                self.emotion, self.confidence = reading.label, reading.confidence
            case Transcribed(text=text):
                self.transcript = text
            case ReplyText(text=text):
                self.reply = self.reply + text if self.reply else text.lstrip()
            case ReplyFinished(text=text):
                self.reply = text
            case PlaybackProgressed(heard=heard) | PlaybackFinished(heard=heard):
                self.heard = heard
            case Failed(message=message):
                self.failure = message
            case TurnEnded(turn=turn):
                self.transcript, self.reply, self.heard = turn.transcript or self.transcript, turn.reply, turn.heard
                self.outcome, self.marks, self.figures = turn.outcome, turn.marks, turn.figures
            case _:
                return False
        return True

    @property
    def user_text(self) -> str:
        """The typed message or the transcript, "" without one."""
        return self.message.text if isinstance(self.message, Typed) else self.transcript

    @property
    def time_of_day(self) -> str:
        """The time of day in the user's format."""
        return QLocale().toString(QTime(self.at.hour, self.at.minute), QLocale.FormatType.ShortFormat)

    @property
    def cut(self) -> int | None:
        """The number of characters of the reply that were played, if it was cut off."""
        if self.outcome not in (Outcome.INTERRUPTED, Outcome.STOPPED) or not self.reply:
            return None
        heard = len(self.heard) if self.reply.startswith(self.heard) else 0
        return heard if heard < len(self.reply.rstrip()) else None

    @property
    def note(self) -> str:
        """How the turn ended, if that needs words."""
        if self.outcome is Outcome.SUPERSEDED:
            return tr("You kept speaking before the reply.")
        if self.outcome not in (Outcome.INTERRUPTED, Outcome.STOPPED):
            return ""
        if not self.reply:
            return tr("Stopped before the reply.")
        if self.cut is None:
            return tr("Stopped.")
        if not self.heard:
            return tr("Stopped before playback.")
        who = tr("You interrupted") if self.outcome is Outcome.INTERRUPTED else tr("Stopped")
        return tr("{0}: played up to the mark.").format(who)


class SelectableText(QTextEdit):
    """Selectable plain text, as tall as its content."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setAccessibleName(name)
        self.setReadOnly(True)
        self.setAcceptRichText(False)
        self.setUndoRedoEnabled(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setStyleSheet("QTextEdit { background: transparent; border: none; padding: 0; }")
        self.document().setDocumentMargin(0)
        self._written: tuple[str, int | None, bool] = ("", None, False)
        self.restyle()

    def restyle(self) -> None:
        """Follow the theme and the text size."""
        font = QFont(self.font())
        font.setPixelSize(theme.pixels("lead"))
        self.setFont(font)
        self.document().setDefaultFont(font)
        text, cut, muted = self._written
        self._rewrite(text, cut, muted=muted)

    def write(self, text: str, cut: int | None = None, *, muted: bool = False) -> None:
        """Show at most `SHOWN` characters of a text; what follows `cut` is marked as not played."""
        text = text[:SHOWN]
        if (text, cut, muted) == self._written:
            return
        before, self._written = self._written, (text, cut, muted)
        grown = text[len(before[0]) :] if text.startswith(before[0]) and before[1:] == (cut, muted) else None
        if grown and before[0] and cut is None and self.document().lastBlock().length() + len(grown) < PARAGRAPH:
            cursor = QTextCursor(self.document())
            cursor.movePosition(QTextCursor.MoveOperation.End)
            cursor.insertText(valid_unicode(grown))
        else:
            self._rewrite(text, cut, muted=muted)

    def _rewrite(self, text: str, cut: int | None, *, muted: bool) -> None:
        plain, faint, mark = (QTextCharFormat() for _ in range(3))
        faint.setForeground(QColor(theme.colours().muted))
        mark.setForeground(QColor(theme.colours().danger))
        self.document().clear()
        cursor = QTextCursor(self.document())
        lines = QTextBlockFormat()
        lines.setLineHeight(_LEADING, QTextBlockFormat.LineHeightTypes.ProportionalHeight.value)
        cursor.setBlockFormat(lines)
        cursor.insertText(paragraphs(text[:cut]), faint if muted else plain)
        if cut is not None:
            faint.setFontItalic(True)  # high contrast has no muted colour
            cursor.insertText(_CUT, mark)
            cursor.insertText(paragraphs(text[cut:]), faint)

    @property
    def line(self) -> int:
        """The line height in pixels."""
        return round(self.fontMetrics().lineSpacing() * _LEADING / 100)

    def height_for(self, width: int) -> int:
        """The height of the text at a width, in pixels."""
        if self.document().textWidth() != width:
            self.document().setTextWidth(width)
        return max(self.fontMetrics().height(), round(self.document().size().height() + 0.5))

    def minimumSizeHint(self) -> QSize:
        """Any width."""
        return QSize(40, self.fontMetrics().height())

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Let the conversation scroll."""
        event.ignore()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Handle copy and select all only; the talk key and others pass through."""
        if event.matches(QKeySequence.StandardKey.Copy) or event.matches(QKeySequence.StandardKey.SelectAll):
            super().keyPressEvent(event)
        else:
            event.ignore()


class TurnView(QWidget):
    """The widgets of one turn, made while it is near the visible area.

    Signals:
        again: the user wants to retry a failed turn.
        changed: its height changed.
    """

    again = Signal()
    changed = Signal()

    def __init__(self, entry: Entry, parent: QWidget) -> None:
        super().__init__(parent)
        self.entry = entry
        self.chip = EmotionChip()
        self._user_text = SelectableText(tr("Your message"))
        self._who = label(tr("Assistant"), "heading", wrap=False)
        self._delay = DelayChip()
        self._delay.clicked.connect(self.fold)
        self._reply = SelectableText(tr("Reply"))
        self._note = label("", "small")
        self._waterfall = Waterfall()
        self._failure = QWidget()
        self._why = label("", "error", selectable=True)
        self.remedy = button(tr("Try again"), self.again.emit, icon="again")
        warning = QLabel()
        warning.setPixmap(icons.icon("warning", "danger").pixmap(20, 20))
        failure = row(warning, self._why, self.remedy, spacing=12)
        failure.setStretch(1, 1)
        self._failure.setLayout(failure)
        time = label(entry.time_of_day, "small", wrap=False)
        layout = column(spacing=4)
        layout.setContentsMargins(2 * theme.GRID, 12, 2 * theme.GRID, 12)
        layout.addLayout(row(label(tr("You"), "heading", wrap=False), time, self.chip, None, spacing=10))
        layout.addWidget(self._user_text)
        layout.addSpacing(theme.GRID)
        layout.addLayout(row(self._who, None, self._delay))
        for part in (self._reply, self._note, self._waterfall, self._failure):
            layout.addWidget(part)
        self.setLayout(layout)
        self.refresh(last=False)

    def refresh(self, *, last: bool) -> None:
        """Show the current state. `last`: it is the latest turn, the only one that can be retried."""
        one = self.entry
        self.chip.setVisible(bool(one.emotion))
        if one.corrected:
            confirms = one.corrected == one.emotion
            self.chip.show_emotion(one.corrected, tr("confirmed") if confirms else tr("corrected"))
        elif one.emotion:
            self.chip.show_emotion(one.emotion, f"{one.confidence:.0%}" if one.confidence else "")
        self._user_text.write(one.user_text or self._placeholder(), muted=not one.user_text)
        self._reply.write(one.reply, one.cut)
        self._reply.setVisible(bool(one.reply))
        self._who.setVisible(bool(one.reply) or (one.message is not None and one.outcome is None))
        self._note.setText(one.note or self._waiting())
        self._note.setVisible(bool(self._note.text()))
        self._delay.show_delay(one.marks)
        self._delay.setChecked(one.unfolded)
        self._waterfall.show_stages(one.marks, one.figures)
        self._waterfall.setVisible(one.unfolded)
        self._why.setText(one.failure)
        self._failure.setVisible(bool(one.failure))
        self.remedy.setVisible(last)
        self.setAccessibleName(spoken(one))

    def fold(self) -> None:
        """Expand or collapse the delay details."""
        self.entry.unfolded = not self.entry.unfolded
        self._delay.setChecked(self.entry.unfolded)
        self._waterfall.setVisible(self.entry.unfolded)
        self.changed.emit()

    def height_for(self, width: int) -> int:
        """Set the texts' heights and return the total height at a width, in pixels."""
        layout = self.layout()
        assert layout is not None, "made in __init__"
        margins = layout.contentsMargins()
        inner = width - margins.left() - margins.right()
        for prose in (self._user_text, self._reply):
            prose.setFixedHeight(prose.height_for(inner))
        layout.invalidate()
        return layout.totalHeightForWidth(width) if layout.hasHeightForWidth() else layout.totalSizeHint().height()

    def _waiting(self) -> str:
        one = self.entry
        longest = max(len(one.user_text), len(one.reply))
        if longest > SHOWN:
            more = tr("{0} more characters not shown. Copy the text to read them.")
            return more.format(QLocale().toString(longest - SHOWN))
        return tr("Thinking…") if one.message and not one.reply and one.outcome is None and not one.failure else ""

    def _placeholder(self) -> str:
        message = self.entry.message
        if message is None:
            return tr("Listening…")
        seconds = len(message.samples) / SAMPLE_RATE if isinstance(message, Spoken) else 0.0
        return tr("{0:.1f} s of speech").format(seconds)


def spoken(entry: Entry) -> str:
    """Describe a turn for a screen reader."""
    parts = [tr("You"), entry.time_of_day]
    if emotion := entry.corrected or entry.emotion:
        parts.append(voice_sounds(emotion))
    user = f"{', '.join(parts)}: {entry.user_text[:300]}"
    reply = f"{tr('Assistant')}: {entry.reply[:600]}" if entry.reply else ""
    return " ".join(part for part in (user, reply, entry.note, entry.failure) if part)


class TurnActions(QFrame):
    """The actions of a turn as icons; shown for one turn at a time.

    Signals:
        action_requested: "play", "copy", "edit", "again", "undo" or "delay", and the number of the turn.
    """

    action_requested = Signal(str, int)

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setProperty("role", "raised")
        self._number = 0
        actions = ("play", "copy", "edit", "again", "undo", "delay")
        self.buttons = {action: IconButton("undo", "", partial(self._act, action), 18) for action in actions}
        self.retranslate()
        layout = row(*self.buttons.values(), spacing=0)
        layout.setContentsMargins(2, 2, 2, 2)
        self.setLayout(layout)
        self.hide()

    def retranslate(self) -> None:
        """Set all texts in the current language."""
        for action, picture, name in (
            ("play", "play", tr("Play your message")),
            ("copy", "copy", tr("Copy message and reply")),
            ("edit", "edit", tr("Edit your message")),
            ("again", "again", tr("Regenerate the reply")),
            ("undo", "undo", tr("Undo this turn")),
            ("delay", "clock", tr("Show delay details")),
        ):
            self.buttons[action].show_icon(picture, name)

    @property
    def end(self) -> QWidget:
        """The last button in tab order."""
        return self.buttons["delay"]

    def show_for(self, entry: Entry, *, last: bool, playing: bool) -> None:
        """Show the actions of a turn. Only the latest turn can be edited, regenerated and undone."""
        self._number = entry.number
        name = tr("Stop playing") if playing else tr("Play your message")
        self.buttons["play"].show_icon("stop" if playing else "play", name)
        self.buttons["play"].setVisible(isinstance(entry.message, Spoken))
        for action in ("edit", "again", "undo"):
            self.buttons[action].setVisible(last)
        self.buttons["delay"].setVisible(delay(entry.marks) is not None)

    def _act(self, action: str) -> None:
        self.action_requested.emit(action, self._number)
