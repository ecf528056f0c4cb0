"""The talk key, the talk button and the microphone level."""

from __future__ import annotations

from collections import deque

from PySide6.QtCore import QEvent, QObject, QPointF, QRectF, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QColor, QKeyEvent, QKeySequence, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QAbstractButton, QApplication, QSizePolicy, QWidget

from assistant.events import InputLevel, State, StateChanged
from ui.core import icons, theme
from ui.core.app import App
from ui.widgets.common import IconButton

_QUIETEST_DB = -60.0
_FALL = 0.8  # decay of the level per event
_TURN_MS = 40  # frame interval of the thinking ring


class TalkKey(QObject):
    """Whether the talk key is held, by any means, and whether the microphone is muted.

    Signals:
        held_changed, muted_changed: the new value.
    """

    held_changed = Signal(bool)
    muted_changed = Signal(bool)

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._app = app
        self._holders: set[str] = set()
        self._key = 0  # the Qt key that is down
        self.muted = False
        application = QApplication.instance()
        assert isinstance(application, QApplication), "there are no keys without one"
        application.focusWindowChanged.connect(self.release_all)  # the release would go to another window

    @property
    def held(self) -> bool:
        """Whether anyone holds it."""
        return bool(self._holders)

    @property
    def key_name(self) -> str:
        """The key's name as the desktop writes it."""
        return QKeySequence(self._app.settings.turns.shortcut).toString(QKeySequence.SequenceFormat.NativeText)

    def press(self, holder: str = "button") -> None:
        """Start to talk; if the microphone is muted, offer to unmute it."""
        talk = self._app.talk
        if self.muted:
            self._app.notify(self.tr("The microphone is muted."), self.tr("Unmute"), lambda: self.mute(on=False))
        elif talk is not None and holder not in self._holders:
            self._holders.add(holder)
            if len(self._holders) == 1:
                talk.press()
                self.held_changed.emit(True)

    def release(self, holder: str = "button") -> None:
        """Release one holder; the last one ends the utterance."""
        if holder in self._holders:
            self._holders.remove(holder)
            if not self._holders and self._app.talk is not None:
                self._app.talk.release()
                self.held_changed.emit(False)

    def release_all(self, *_: object) -> None:
        """Release all holders: another window is in front, or this one closed."""
        for holder in tuple(self._holders):
            self.release(holder)

    def mute(self, *, on: bool) -> None:
        """Mute or unmute the microphone."""
        if on != self.muted:
            self.release_all()
            self.muted = on
            if self._app.talk is not None:
                self._app.talk.set_muted(on)
            self.muted_changed.emit(on)

    def take(self, event: QKeyEvent, *, down: bool) -> bool:
        """Handle a key event if it is the talk key's; return whether it was."""
        if down:
            if QKeySequence(event.keyCombination()) != QKeySequence(self._app.settings.turns.shortcut):
                return False
            self._key = event.key()
        elif event.key() != self._key:  # modifiers may be released first
            return False
        if not event.isAutoRepeat():
            self.press("key") if down else self.release("key")
        return True


def show_mute(button: IconButton, *, muted: bool) -> None:
    """Set icon and name of a mute button."""
    name = button.tr("Unmute the microphone (Ctrl+M)") if muted else button.tr("Mute the microphone (Ctrl+M)")
    button.show_icon("microphone-off" if muted else "microphone", name)


class TalkButton(QAbstractButton):
    """Hold it to talk. Its ring shows the level; each state has its own shape and word.

    Args:
        app: the application object.
        key: the talk key.
        diameter: of the disc, in pixels at the normal text size.
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
        key.held_changed.connect(self._follow)
        key.muted_changed.connect(self._retranslate)
        app.settings_changed.connect(self._retranslate)
        self._retranslate()

    def handle_event(self, event: object) -> None:
        """Update from an event of the conversation."""
        if isinstance(event, StateChanged):
            self._state, self._speaking = event.state, event.user_speaking
            self._retranslate()
        elif isinstance(event, InputLevel):
            self._level = max(level(event.decibels), self._level * _FALL)
            self.update()

    @property
    def state(self) -> State:
        """The state shown; it is listening while the key is held or the user speaks."""
        if self._key.held or self._speaking:
            return State.LISTENING
        return self._state

    @property
    def caption(self) -> str:
        """The state as a word, or what to do."""
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
        return f"{hold} · {self._key.key_name}" if self._key.key_name else hold

    def sizeHint(self) -> QSize:
        """Disc, ring and the longest caption, so that nothing moves."""
        metrics = self.fontMetrics()
        longest = f"{self.tr('Just speak, or hold')} · {self._key.key_name}"
        width = max(self._across + 28, metrics.horizontalAdvance(longest) + 12)
        return QSize(width, self._across + 24 + metrics.height())

    def minimumSizeHint(self) -> QSize:
        """Disc and ring; without room the caption omits the key."""
        return QSize(self._across + 28, self.sizeHint().height())

    @property
    def _across(self) -> int:
        return round(self._diameter * min(1.4, theme.pixels("body") / theme.SIZES["body"]))

    def hitButton(self, _position: object) -> bool:
        """Holding continues wherever the mouse moves."""
        return True

    def changeEvent(self, event: QEvent) -> None:
        """Follow text size and language."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange:
            self.updateGeometry()
        elif event.type() == QEvent.Type.LanguageChange:
            self._retranslate()

    def _follow(self, held: bool) -> None:
        if not held:
            self.setDown(False)
        self._retranslate()

    def _retranslate(self, *_: object) -> None:
        self.setAccessibleName(self.caption)
        self.setAccessibleDescription(self.tr("Hold to talk, release to get a reply."))
        thinking = self.state is State.THINKING
        if thinking != self._turning.isActive():
            self._turning.start() if thinking else self._turning.stop()
        self.updateGeometry()
        self.update()

    def _turn(self) -> None:
        self._phase += 1
        if self.isVisible():
            self.update()

    # ---- painting

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Paint disc, glyph, ring and caption."""
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
        area = QRectF(0, disc.bottom() + 10, self.width(), self.fontMetrics().height())
        text = self.caption
        if self.fontMetrics().horizontalAdvance(text) > self.width():
            text = text.partition(" · ")[0]
        painter.drawText(area, Qt.AlignmentFlag.AlignCenter, text)

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
        """Paint the level as an arc, from the bottom up on both sides."""
        if share > 0.01:
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(QColor(colour), 5, c=Qt.PenCapStyle.RoundCap))
            half = round(share * 180 * 16)
            painter.drawArc(ring, 270 * 16 - half, 2 * half)


def level(decibels: float) -> float:
    """Convert decibels to a share of the meter, 0 to 1."""
    return min(1.0, max(0.0, 1 - decibels / _QUIETEST_DB))


class LevelStrip(QWidget):
    """The microphone level over the last seconds, the latest on the right."""

    def __init__(self, key: TalkKey) -> None:
        super().__init__()
        self._key = key
        self._levels: deque[float] = deque(maxlen=200)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        key.muted_changed.connect(self._forget)

    def handle_event(self, event: object) -> None:
        """Add a level."""
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
        """Paint bars around a middle line."""
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
