"""The transcript of a session, turn by turn, in step with the player, with corrections."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import QElapsedTimer, QEvent, QPoint, QRectF, Qt, QTimer, Signal
from PySide6.QtGui import (
    QAction,
    QActionGroup,
    QColor,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QResizeEvent,
)
from PySide6.QtWidgets import QFrame, QLabel, QMenu, QScrollArea, QVBoxLayout, QWidget

from assistant.events import EMOTIONS, Outcome, Typed
from assistant.sessions.reader import RecordedTurn, words_of
from ui.core import icons, theme
from ui.core.emotion_text import voice_sounds
from ui.core.translations import tr
from ui.core.untrusted_text import LONGEST, paragraphs, valid_unicode
from ui.sessions.formatting import format_duration
from ui.sessions.timeline import SessionAudio, emotion_of
from ui.widgets.common import EmotionChip, IconButton, column, label, row

_BATCH_MS = 20  # spent on making rows before the window may react
_EDGE = 8
_WIDEST = 680  # pixels; about 72 characters a line


def displayable(text: str) -> str:
    """Make text fast to lay out: valid Unicode, short paragraphs, a count of what is left out."""
    shown, rest = paragraphs(text[:LONGEST]), len(text) - LONGEST
    more = tr("… and {} more characters. Export the session to read them.")
    return f"{shown}\n{more.format(rest)}" if rest > 0 else shown


def unplayed_text(recorded: RecordedTurn) -> str:
    """Return the part of the reply that was not played, "" if all was."""
    turn = recorded.turn
    if turn.heard.strip() == turn.reply.strip():
        return ""
    return turn.reply[len(turn.heard) :].strip() if turn.reply.startswith(turn.heard) else turn.reply.strip()


class TurnRow(QFrame):
    """One turn.

    Signals:
        seek_requested: the position in seconds from which to play.
        corrected: the correct emotion, or None for the reading.
    """

    seek_requested = Signal(float)
    corrected = Signal(object)

    def __init__(self, session_audio: SessionAudio, index: int) -> None:
        super().__init__()
        self._recorded = recorded = session_audio.session.turns[index]
        self.content = row_content(recorded)
        self._start = session_audio.start(index)
        self.current = False
        turn = recorded.turn
        user_text = words_of(turn)
        mine, reply = session_audio.part(index, "you"), session_audio.part(index, "assistant")
        layout = column(spacing=4)
        layout.setContentsMargins(20, 10, 16, 12)
        layout.addLayout(self._head(self.tr("You"), self._start, self._marks()))
        layout.addWidget(
            _text_label(displayable(user_text) or self.tr("(no transcript)"), "" if user_text else "muted")
        )
        if mine is not None and mine.missing:
            layout.addWidget(label(self.tr("The recording is missing or damaged. The transcript is kept."), "error"))
        if reply is not None or turn.reply or turn.outcome is not Outcome.ANSWERED:
            layout.addSpacing(4)
            how = self._ending()
            marks: list[QWidget] = [label(how, "small", wrap=False)] if how else []
            layout.addLayout(self._head(self.tr("Assistant"), reply.start if reply else None, marks))
        if turn.heard:
            layout.addWidget(_text_label(displayable(turn.heard)))
        if rest := unplayed_text(recorded):
            layout.addWidget(_text_label(self.tr("Not played: {}").format(displayable(rest)), "muted"))
        if reply is not None and reply.missing:
            layout.addWidget(label(self.tr("The reply's audio is missing or damaged. The text is kept."), "error"))
        self.setLayout(layout)
        sounded = emotion_of(recorded)
        self.setAccessibleName(
            self.tr("Turn {}: {}. {}").format(
                turn.number, valid_unicode(user_text[:300]), voice_sounds(sounded) if sounded else ""
            )
        )

    def set_current(self, *, current: bool) -> None:
        """Mark it as the turn that is playing."""
        if current != self.current:
            self.current = current
            self.update()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Play it."""
        if event.button() == Qt.MouseButton.LeftButton:
            self.seek_requested.emit(self._start)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Highlight the current turn."""
        if self.current:
            c = theme.colours()
            painter = QPainter(self)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(c.sunken))
            painter.drawRoundedRect(QRectF(self.rect()), 10, 10)
            painter.setBrush(QColor(c.accent))
            painter.drawRoundedRect(QRectF(4, 12, 4, self.height() - 24), 2, 2)

    # ---- internal

    def _head(self, who: str, at: float | None, marks: list[QWidget]) -> QVBoxLayout:
        name = label(who, "heading", wrap=False)
        when = label(format_duration(at) if at is not None else "", "small", wrap=False)
        head = column()
        head.addLayout(row(name, when, *marks, None, spacing=10))
        return head

    def _marks(self) -> list[QWidget]:
        recorded = self._recorded
        reading = recorded.turn.reading
        if isinstance(recorded.turn.message, Typed):
            return [label(self.tr("typed"), "small", wrap=False)]
        marks: list[QWidget] = []
        if recorded.corrected is not None:
            marks.append(EmotionChip(recorded.corrected, self.tr("corrected")))
            if reading is not None:
                marks.append(label(self.tr("detected: {}").format(tr(reading.label)), "small", wrap=False))
        elif reading is not None:
            marks.append(EmotionChip(reading.label, f"{reading.confidence:.0%}"))
        if recorded.user_audio is not None:
            self.correct = IconButton(
                "edit", self.tr("Correct the emotion of turn {}").format(recorded.turn.number), size=16
            )
            self.correct.clicked.connect(self._offer)
            marks.append(self.correct)
        return marks

    def _offer(self) -> None:
        menu = self._menu()
        menu.popup(self.correct.mapToGlobal(QPoint(0, self.correct.height())))

    def _menu(self) -> QMenu:
        """The five emotions and a reset."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        group = QActionGroup(menu)
        for emotion in EMOTIONS:
            action = QAction(icons.icon(emotion), voice_sounds(emotion), menu, checkable=True)
            action.setChecked(emotion == emotion_of(self._recorded))
            action.triggered.connect(partial(self._report, emotion))
            group.addAction(action)
            menu.addAction(action)
        if self._recorded.corrected is not None:
            menu.addSeparator()
            menu.addAction(self.tr("As detected")).triggered.connect(partial(self._report, None))
        return menu

    def _report(self, emotion: str | None, _checked: bool = False) -> None:
        if emotion != self._recorded.corrected:
            self.corrected.emit(emotion)

    def _ending(self) -> str:
        """Say how the reply ended if it did not play to its end."""
        outcome = self._recorded.turn.outcome
        return {
            Outcome.ANSWERED: "",
            Outcome.INTERRUPTED: self.tr("interrupted"),
            Outcome.SUPERSEDED: self.tr("you kept speaking"),
            Outcome.FAILED: self.tr("no reply"),
            Outcome.STOPPED: self.tr("stopped"),
        }[outcome]


def _text_label(text: str, role: str = "") -> QLabel:
    made = label(text, role)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return made


class ReadingArea(QScrollArea):
    """A scroll area that the keyboard scrolls; Space, Left and Right are left to others."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName(name)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Scroll by lines and pages."""
        if event.key() in (Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_PageUp, Qt.Key.Key_PageDown):
            super().keyPressEvent(event)
        else:
            event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        """Paint a focus ring."""
        super().paintEvent(event)
        if self.hasFocus():
            painter = QPainter(self.viewport())
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(QPen(QColor(theme.colours().accent), 2))
            painter.drawRoundedRect(QRectF(self.viewport().rect()).adjusted(1, 1, -1, -1), 8, 8)


class _Column(QWidget):
    """Rows from top to bottom. Adding a row costs only its own height, unlike in a layout."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[TurnRow] = []
        self._bottom = _EDGE
        self.setMaximumWidth(_WIDEST * theme.pixels("body") // theme.SIZES["body"])

    def put(self, turn: TurnRow, at: int) -> None:
        """Append a row, or replace one."""
        turn.setParent(self)
        if at < len(self.rows):
            self.rows[at].hide()
            self.rows[at].deleteLater()
            self.rows[at] = turn
            self.place()
        else:
            self.rows.append(turn)
            self._place(turn)
        turn.show()

    def place(self) -> None:
        """Place all rows."""
        self._bottom = _EDGE
        for turn in self.rows:
            self._place(turn)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Update the rows' heights."""
        super().resizeEvent(event)
        if event.size().width() != event.oldSize().width():
            self.place()

    def event(self, event: QEvent) -> bool:
        """Update the rows' heights when the text size changes."""
        if event.type() == QEvent.Type.LayoutRequest:
            self.setMaximumWidth(_WIDEST * theme.pixels("body") // theme.SIZES["body"])
            self.place()
        return super().event(event)

    def _place(self, turn: TurnRow) -> None:
        layout = turn.layout()
        assert layout is not None, "made with one"
        width = self.width() - 2 * _EDGE
        height = layout.totalHeightForWidth(width)
        turn.setGeometry(_EDGE, self._bottom, width, height)
        self._bottom += height + 4
        self.setMinimumHeight(self._bottom + 2 * _EDGE)


class Transcript(ReadingArea):
    """All turns of a session; the current one stays in view.

    Signals:
        seek_requested: the position in seconds.
        corrected: the number of a turn, and its correct emotion or None.
    """

    seek_requested = Signal(float)
    corrected = Signal(int, object)

    def __init__(self) -> None:
        super().__init__("")
        self.setAccessibleName(self.tr("Transcript"))
        self._session_audio: SessionAudio | None = None
        self.current = -1
        self._column = _Column()
        self.setWidget(self._column)
        self._more = QTimer(self, interval=0)
        self._more.timeout.connect(self._add)

    @property
    def rows(self) -> list[TurnRow]:
        """The rows made so far."""
        return self._column.rows

    def show_session_audio(self, session_audio: SessionAudio | None) -> None:
        """Show a session in batches. For the same session, update only what changed."""
        before, self._session_audio = self._session_audio, session_audio
        if not _is_continuation(before, session_audio):
            self.current = -1
            self._column = _Column()
            self.setWidget(self._column)
        elif session_audio is not None:
            for index, turn in enumerate(self.rows):
                if turn.content != row_content(session_audio.session.turns[index]):
                    self._column.put(self._row(index), index)
        self._more.start()

    def set_current(self, index: int) -> None:
        """Mark a turn, by its index, and scroll to it."""
        if index == self.current:
            return
        for number, current in ((self.current, False), (index, True)):
            if 0 <= number < len(self.rows):
                self.rows[number].set_current(current=current)
        self.current = index
        self._reveal()

    # ---- internal

    def _add(self) -> None:
        first, turns = len(self.rows), self._session_audio.session.turns if self._session_audio else ()
        if first >= len(turns):
            self._more.stop()
            return
        since = QElapsedTimer()
        since.start()
        for index in range(first, len(turns)):
            self._column.put(self._row(index), index)
            if since.elapsed() > _BATCH_MS:
                break
        if first <= self.current < len(self.rows):
            self._reveal()

    def _row(self, index: int) -> TurnRow:
        assert self._session_audio is not None, "there are turns"
        made = TurnRow(self._session_audio, index)
        made.seek_requested.connect(self.seek_requested)
        made.corrected.connect(partial(self.corrected.emit, self._session_audio.session.turns[index].turn.number))
        made.set_current(current=index == self.current)
        return made

    def _reveal(self) -> None:
        if 0 <= self.current < len(self.rows):
            turn = self.rows[self.current]
            bar = self.verticalScrollBar()
            top, bottom = turn.y(), turn.y() + turn.height()
            if top < bar.value() or bottom > bar.value() + self.viewport().height():
                bar.setValue(max(0, top - 24))


def row_content(recorded: RecordedTurn) -> tuple[object, ...]:
    """Return what a row shows of a turn."""
    turn = recorded.turn
    label = turn.reading.label if turn.reading else None
    sounds = recorded.user_audio, recorded.reply_audio
    return turn.number, words_of(turn), turn.reply, turn.heard, turn.outcome, label, recorded.corrected, sounds


def _is_continuation(before: SessionAudio | None, now: SessionAudio | None) -> bool:
    """Return whether it is the same session, perhaps with more turns."""
    if before is None or now is None or before.session.folder != now.session.folder:
        return False
    numbers = [[one.turn.number for one in session_audio.session.turns] for session_audio in (before, now)]
    return numbers[1][: len(numbers[0])] == numbers[0]
