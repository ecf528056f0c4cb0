"""What one talks with: the large button, the microphone's level, switches, and a line to type a message."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from PySide6.QtCore import QEvent, QObject, QPointF, QRectF, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QColor, QKeyEvent, QKeySequence, QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QAbstractButton, QGridLayout, QHBoxLayout, QLineEdit, QSizePolicy, QWidget

from assistant.events import InputLevel, State, StateChanged
from ui import icons, theme
from ui.app import App
from ui.widgets import IconButton, Switch, row

_QUIETEST_DB = -60.0
_FALL = 0.8  # of a level that is left after a twentieth of a second
_TURN_MS = 40  # between two pictures of the thinking ring
_NARROW = 700  # pixels, at the normal size of text


class TalkKey(QObject):
    """What all places to talk share: whether the key is held, by whatever means, and whether the microphone is muted.

    Signals:
        held_changed, muted_changed: the new value.
    """

    held_changed = Signal(bool)
    muted_changed = Signal(bool)

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._app = app
        self._holders: set[str] = set()
        self._key = 0  # what went down
        self.muted = False

    @property
    def held(self) -> bool:
        """Whether somebody holds it."""
        return bool(self._holders)

    @property
    def words(self) -> str:
        """The key's name as the desktop writes it."""
        return QKeySequence(self._app.settings.turns.shortcut).toString(QKeySequence.SequenceFormat.NativeText)

    def press(self, holder: str = "button") -> None:
        """Begin to talk, unless the microphone is muted: then say so."""
        talk = self._app.talk
        if self.muted:
            self._app.tell(self.tr("The microphone is muted."), self.tr("Unmute"), lambda: self.mute(on=False))
        elif talk is not None and holder not in self._holders:
            self._holders.add(holder)
            if len(self._holders) == 1:
                talk.press()
                self.held_changed.emit(True)

    def release(self, holder: str = "button") -> None:
        """One of those who hold it lets go; the last one ends it."""
        if holder in self._holders:
            self._holders.remove(holder)
            if not self._holders and self._app.talk is not None:
                self._app.talk.release()
                self.held_changed.emit(False)

    def let_go(self) -> None:
        """Nobody holds it any more: the window is not in front, or is gone."""
        for holder in tuple(self._holders):
            self.release(holder)

    def mute(self, *, on: bool) -> None:
        """Ignore the microphone, or hear it again."""
        if on != self.muted:
            self.let_go()
            self.muted = on
            if self._app.talk is not None:
                self._app.talk.set_muted(on)
            self.muted_changed.emit(on)

    def take(self, event: QKeyEvent, *, down: bool) -> bool:
        """Whether a key event that nobody else wanted is the talk key's; then it has been obeyed."""
        if down:
            if QKeySequence(event.keyCombination()) != QKeySequence(self._app.settings.turns.shortcut):
                return False
            self._key = event.key()
        elif event.key() != self._key:  # whether Ctrl or Shift went up before it does not matter
            return False
        if not event.isAutoRepeat():
            self.press("key") if down else self.release("key")
        return True


def show_mute(button: IconButton, *, muted: bool) -> None:
    """What a mute button shows, and what it would do."""
    name = button.tr("Unmute the microphone (Ctrl+M)") if muted else button.tr("Mute the microphone (Ctrl+M)")
    button.show_icon("microphone-off" if muted else "microphone", name)


class TalkButton(QAbstractButton):
    """Hold it to talk. Its ring is the level; each state has a shape and a word of its own.

    Args:
        diameter: of the disc, in pixels at the normal size of text.
    """

    def __init__(self, app: App, key: TalkKey, diameter: int = 76) -> None:
        super().__init__()
        self._app, self._key, self._diameter = app, key, diameter
        self._state, self._speaking = State.IDLE, False
        self._level, self._phase = 0.0, 0
        self._turning = QTimer(self)
        self._turning.setInterval(_TURN_MS)
        self._turning.timeout.connect(self._turn)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.pressed.connect(key.press)
        self.released.connect(key.release)
        key.held_changed.connect(self._name)
        key.muted_changed.connect(self._name)
        app.settings_changed.connect(self._name)
        self._name()

    def hear(self, event: object) -> None:
        """Show what an event of the conversation tells."""
        if isinstance(event, StateChanged):
            self._state, self._speaking = event.state, event.user_speaking
            self._name()
        elif isinstance(event, InputLevel):
            self._level = max(level(event.decibels), self._level * _FALL)
            self.update()

    @property
    def state(self) -> State:
        """The state that is shown; while the key is held or the user speaks it is listening."""
        if self._key.held or self._speaking:
            return State.LISTENING
        return self._state

    @property
    def words(self) -> str:
        """The state in words, or what to do."""
        state, turns = self.state, self._app.settings.turns
        if state is State.LISTENING:
            return self.tr("Listening")
        if state is State.THINKING:
            return self.tr("Thinking")
        if state is State.SPEAKING:
            return self.tr("Speaking")
        if self._key.muted:
            return self.tr("Muted")
        hold = self.tr("Hold to talk") if not turns.hands_free else self.tr("Just speak, or hold")
        return f"{hold} · {self._key.words}" if self._key.words else hold

    def sizeHint(self) -> QSize:
        """Disc, ring and the words below; as wide as the longest of them, so that nothing moves."""
        metrics = self.fontMetrics()
        longest = f"{self.tr('Just speak, or hold')} · {self._key.words}"
        width = max(self._across + 28, metrics.horizontalAdvance(longest) + 12)
        return QSize(width, self._across + 24 + metrics.height())

    def minimumSizeHint(self) -> QSize:
        """The disc and its ring; the words are cut short where there is no room for them."""
        return QSize(self._across + 28, self.sizeHint().height())

    @property
    def _across(self) -> int:
        return round(self._diameter * min(1.4, theme.pixels("body") / theme.SIZES["body"]))

    def hitButton(self, _position: object) -> bool:
        """Holding goes on wherever the mouse is moved."""
        return True

    def changeEvent(self, event: QEvent) -> None:
        """Text of another size."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange:
            self.updateGeometry()

    def _name(self, *_: object) -> None:
        self.setAccessibleName(self.words)
        self.setAccessibleDescription(self.tr("Hold to talk, let go to be answered."))
        thinking = self.state is State.THINKING
        if thinking != self._turning.isActive():
            self._turning.start() if thinking else self._turning.stop()
        self.updateGeometry()
        self.update()

    def _turn(self) -> None:
        self._phase += 1
        if self.isVisible():
            self.update()

    # ---- its picture

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Disc, glyph, ring, words."""
        c, state = theme.colours(), self.state
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        across = self._across
        disc = QRectF((self.width() - across) / 2, 10, across, across)
        listening = state is State.LISTENING
        painter.setPen(QPen(QColor(c.accent if listening or self.underMouse() else c.outline), 1.5))
        painter.setBrush(QColor(c.accent if listening else c.raised))
        painter.drawEllipse(disc)
        ring = disc.adjusted(-6, -6, 6, 6)
        {
            State.IDLE: self._paint_idle,
            State.LISTENING: self._paint_listening,
            State.THINKING: self._paint_thinking,
            State.SPEAKING: self._paint_speaking,
        }[state](painter, disc, ring)
        if self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(c.on_accent if listening else c.accent), 2))
            painter.drawEllipse(disc.adjusted(4, 4, -4, -4))
        painter.setPen(QColor(c.text))
        words = QRectF(0, disc.bottom() + 10, self.width(), self.fontMetrics().height())
        text = self.fontMetrics().elidedText(self.words, Qt.TextElideMode.ElideRight, self.width())
        painter.drawText(words, Qt.AlignmentFlag.AlignCenter, text)

    def _paint_idle(self, painter: QPainter, disc: QRectF, ring: QRectF) -> None:
        c, muted = theme.colours(), self._key.muted
        self._glyph(painter, disc, "microphone-off" if muted else "microphone", c.text)
        if not muted:
            self._arc(painter, ring, self._level, c.accent)

    def _paint_listening(self, painter: QPainter, disc: QRectF, ring: QRectF) -> None:
        c, middle = theme.colours(), disc.center()
        painter.setPen(QPen(QColor(c.on_accent), max(3.0, disc.width() / 18), c=Qt.PenCapStyle.RoundCap))
        for step, share in zip((-2, -1, 0, 1, 2), (0.35, 0.75, 1.0, 0.6, 0.3), strict=True):
            half = disc.height() * (0.05 + 0.22 * self._level * share)
            x = middle.x() + step * disc.width() / 8
            painter.drawLine(QPointF(x, middle.y() - half), QPointF(x, middle.y() + half))
        self._arc(painter, ring, self._level, c.accent)

    def _paint_thinking(self, painter: QPainter, disc: QRectF, ring: QRectF) -> None:
        c, middle = theme.colours(), disc.center()
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(c.text))
        dot = disc.width() / 22
        for step in (-1, 0, 1):
            painter.drawEllipse(QPointF(middle.x() + step * disc.width() / 6, middle.y()), dot, dot)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(QColor(c.accent), 4, c=Qt.PenCapStyle.RoundCap))
        painter.drawArc(ring, round(-self._phase * 7.2 * 16) % 5760, 70 * 16)

    def _paint_speaking(self, painter: QPainter, disc: QRectF, ring: QRectF) -> None:
        c = theme.colours()
        self._glyph(painter, disc, "speaker", c.text)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(QColor(c.accent), 3, c=Qt.PenCapStyle.RoundCap))
        for at, out in ((0, 0), (0, 7)):
            wave = ring.adjusted(-out, -out, out, out)
            for side in (at, 180):
                painter.drawArc(wave, (side - 28) * 16, 56 * 16)

    def _glyph(self, painter: QPainter, disc: QRectF, name: str, colour: str) -> None:
        side = disc.width() * 0.4
        place = QRectF(disc.center().x() - side / 2, disc.center().y() - side / 2, side, side)
        icons.paint(painter, name, place, QColor(colour))

    def _arc(self, painter: QPainter, ring: QRectF, share: float, colour: str) -> None:
        """From the bottom up on both sides, as far as the level reaches."""
        if share > 0.01:
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(colour), 5, c=Qt.PenCapStyle.RoundCap))
            half = round(share * 180 * 16)
            painter.drawArc(ring, 270 * 16 - half, 2 * half)


def level(decibels: float) -> float:
    """A microphone's level as a share of the meter, 0 to 1."""
    return min(1.0, max(0.0, 1 - decibels / _QUIETEST_DB))


class LevelStrip(QWidget):
    """The microphone's level over the last seconds, the newest at the right."""

    def __init__(self, key: TalkKey) -> None:
        super().__init__()
        self._key = key
        self._levels: deque[float] = deque(maxlen=200)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(self.tr("Microphone level"))
        key.muted_changed.connect(self._forget)

    def hear(self, event: object) -> None:
        """Take in a level."""
        if isinstance(event, InputLevel):
            self._levels.append(level(event.decibels))
            self.update()

    def sizeHint(self) -> QSize:
        """A strip."""
        return QSize(120, 36)

    def _forget(self) -> None:
        self._levels.clear()
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Bars around a middle line."""
        c = theme.colours()
        painter = QPainter(self)
        middle = self.height() / 2
        painter.fillRect(QRectF(0, middle - 0.5, self.width(), 1), QColor(c.outline if self._levels else c.hairline))
        for back, share in enumerate(reversed(self._levels)):
            x = self.width() - 4 * (back + 1)
            if x < 0:
                break
            half = max(0.5, share * (middle - 2))
            painter.fillRect(QRectF(x, middle - half, 2, 2 * half), QColor(c.accent))


class TalkBar(QWidget):
    """The bar at the bottom of the Talk page. It calls the conversation itself.

    Signals:
        new_wanted, compact_wanted: the user pressed that button.
    """

    new_wanted = Signal()
    compact_wanted = Signal()

    def __init__(self, app: App, key: TalkKey) -> None:
        super().__init__()
        self._app, self._key = app, key
        self.editing = False
        """Whether what is sent takes the last message's place."""
        self.button = TalkButton(app, key)
        self.strip = LevelStrip(key)
        self.hands_free = self._switch(self.tr("Hands-free"), "hands_free", self.tr("Listen without a key"))
        self.empathy = self._switch(self.tr("Empathy"), "empathy", self.tr("Let the reply answer to the mood, too"))
        self.stop = IconButton("stop", self.tr("Stop (Esc)"), self.stop_all, 22)
        self.mute = IconButton("microphone", "", lambda: key.mute(on=not key.muted), 22)
        self.new = IconButton("plus", self.tr("New conversation (Ctrl+N)"), self.new_wanted.emit, 22)
        self.compact = IconButton("compact", self.tr("Small window on top"), self.compact_wanted.emit, 22)
        self.send_button = IconButton("send", self.tr("Send"), self.send, 22)
        self.send_button.setEnabled(False)
        self.line = QLineEdit()
        self.line.setAccessibleName(self.tr("Message"))
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
        self._show_mute()
        self._show_settings()
        self.end_editing()

    def hear(self, event: object) -> None:
        """Show what an event of the conversation tells."""
        self.button.hear(event)
        self.strip.hear(event)
        if isinstance(event, StateChanged):
            self.stop.setEnabled(self.button.state is not State.IDLE)

    def send(self) -> None:
        """Send what was typed; while a message is edited it takes that one's place."""
        text, talk = self.line.text().strip(), self._app.talk
        if text and talk is not None:
            talk.again(text) if self.editing else talk.type(text)
            self.line.clear()
            self.end_editing()

    def edit(self, text: str) -> None:
        """Put the last message's words into the line; sending them takes that message's place."""
        self.editing = True
        self.line.setText(" ".join(text.split()))
        self.line.setPlaceholderText(self.tr("Your message, in other words…"))
        self.line.setFocus(Qt.FocusReason.OtherFocusReason)

    def end_editing(self) -> None:
        """What is sent is a new message again."""
        self.editing = False
        self.line.setPlaceholderText(self.tr("Type a message…"))

    def stop_all(self) -> None:
        """Stop listening, thinking, speaking and playing."""
        self._key.let_go()
        if self._app.talk is not None:
            self._app.talk.stop()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Escape leaves the line."""
        if event.key() == Qt.Key.Key_Escape and self.line.hasFocus():
            if self.editing:
                self.line.clear()
                self.end_editing()
            self.button.setFocus(Qt.FocusReason.OtherFocusReason)
        else:
            super().keyPressEvent(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        """In a narrow window its parts stand below each other."""
        super().resizeEvent(event)
        self._arrange(narrow=event.size().width() < _NARROW * theme.pixels("body") / theme.SIZES["body"])

    # ---- inside

    def _switch(self, text: str, setting: str, tip: str) -> Switch:
        made = Switch(text, lambda on: self._app.change("turns", **{setting: on}))
        made.setToolTip(tip)
        made.setFocusPolicy(Qt.FocusPolicy.TabFocus)  # after a click Space is the talk key, not this switch's
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
