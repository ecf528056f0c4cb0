"""The conversation as it goes: turn under turn, the newest at the bottom. Only turns near the sight have widgets."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from PySide6.QtCore import QEvent, QPoint, QRectF, Qt, QTimer, Signal
from PySide6.QtGui import (
    QAccessible,
    QAccessibleEvent,
    QColor,
    QCursor,
    QEnterEvent,
    QFocusEvent,
    QFont,
    QFontMetrics,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QResizeEvent,
    QShowEvent,
)
from PySide6.QtWidgets import QAbstractScrollArea, QApplication, QFrame, QWidget

from assistant.events import SpeechStarted, StateChanged, TurnEnded, TurnUndone, UtteranceEnded
from ui.core import theme
from ui.talk.turn_view import Entry, TurnActions, TurnView, spoken
from ui.widgets.common import IconButton, row

_COLUMN = 72  # characters of a line of text, at most
_NEAR = 24  # pixels from the end that still count as being there
_EDGE = 8  # pixels beside, above and below the turns


@dataclass(slots=True, eq=False)
class _Slot:
    entry: Entry
    height: int = 120  # pixels; until the turn has been in sight, a guess
    view: TurnView | None = None


class ConversationView(QAbstractScrollArea):
    """Turns as events tell of them.

    Up and Down go from turn to turn; Tab goes on to the actions for the turn one is at.

    Signals:
        acted: the user wants something of a turn: "play", "copy", "edit", "again" or "undo", and its number.
        chosen: the user went to a turn; its number.
    """

    action_requested = Signal(str, int)
    chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._rebuilding = QTimer(self)
        self._rebuilding.setSingleShot(True)
        self._rebuilding.timeout.connect(self._rebuild)
        self._slots: list[_Slot] = []
        self._forgotten = 0  # what is told of turns up to this number belongs to a conversation that is over
        self._current: _Slot | None = None
        self._hovered: _Slot | None = None
        self._rested: QPoint | None = None  # where the mouse was when the keyboard took over
        self._playing: int | None = None
        self._following = True
        self._arranging = False
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.viewport().setAutoFillBackground(False)
        self.action_bar = TurnActions(self.viewport())
        self.action_bar.action_requested.connect(self._act)
        self.newest = QFrame(self.viewport())
        self.newest.setProperty("role", "raised")
        self._newest = IconButton("down", "", self.follow)
        self.newest.setLayout(row(self._newest))
        self.newest.hide()
        self._retranslate()
        application = QApplication.instance()
        assert isinstance(application, QApplication), "there are no widgets without one"
        application.focusChanged.connect(self._focus_moved)

    # ---- what happens

    def handle_event(self, event: object) -> None:
        """Show what an event of the conversation tells."""
        if isinstance(event, StateChanged):
            if not event.user_speaking and self._slots and self._slots[-1].entry.message is None:
                self._remove(self._slots[-1])  # it was no speech
        elif isinstance(event, SpeechStarted | UtteranceEnded):
            self._begin(event)
        else:
            slot = self._slot(event.turn.number if isinstance(event, TurnEnded) else getattr(event, "turn", None))
            if slot is not None and isinstance(event, TurnUndone):
                self._remove(slot)
            elif slot is not None and slot.entry.handle_event(event):
                self._show_news(slot)

    def show_correction(self, number: int, emotion: str | None) -> None:
        """How a turn sounded, says the user; None: as it was read."""
        if (slot := self._slot(number)) is not None:
            slot.entry.corrected = emotion
            self._show_news(slot)

    def clear(self) -> None:
        """Begin anew; what is still told of the turns before is ignored."""
        self._forgotten = max((one.number for one in self.entries if one.message is not None), default=self._forgotten)
        for slot in self._slots:
            self._drop(slot)
        self._slots.clear()
        self._current = self._hovered = None
        self.follow()

    @property
    def entries(self) -> list[Entry]:
        """All turns, oldest first."""
        return [slot.entry for slot in self._slots]

    def entry(self, number: int) -> Entry | None:
        """The turn with that number."""
        slot = self._slot(number)
        return None if slot is None else slot.entry

    def _slot(self, number: object) -> _Slot | None:
        return next((one for one in self._slots[::-1] if one.entry.number == number), None)

    @property
    def last(self) -> Entry | None:
        """The newest turn."""
        return self._slots[-1].entry if self._slots else None

    @property
    def views(self) -> list[TurnView]:
        """The turns that have widgets now, oldest first."""
        return [slot.view for slot in self._slots if slot.view is not None]

    def _begin(self, event: SpeechStarted | UtteranceEnded) -> None:
        if event.turn <= self._forgotten:
            return
        if not self._slots or self._slots[-1].entry.number < event.turn:
            self._slots.append(_Slot(Entry(event.turn)))
        slot = self._slots[-1]
        if isinstance(event, UtteranceEnded):
            slot.entry.message = event.message
        for other in self._slots[-2:]:  # the one before is the last no more
            self._show_news(other)

    def _show_news(self, slot: _Slot) -> None:
        if slot.view is not None:
            slot.view.refresh(last=slot is self._slots[-1])
        self._arrange()

    def _remove(self, slot: _Slot) -> None:
        self._drop(slot)
        self._slots.remove(slot)
        self._current = None if self._current is slot else self._current
        self._hovered = None if self._hovered is slot else self._hovered
        if self._slots:
            self._show_news(self._slots[-1])
        else:
            self._arrange()

    # ---- moving about

    def follow(self) -> None:
        """Go to the newest turn, and stay with it."""
        self._following = True
        self._arrange()

    def go_to(self, index: int) -> None:
        """Make a turn the one that the actions are for, and bring it into sight."""
        if not self._slots:
            return
        index = min(max(index, 0), len(self._slots) - 1)
        top, height = self._tops()[index], self._slots[index].height
        value, room = self.verticalScrollBar().value(), self.viewport().height()
        if top < value or top + height > value + room:
            self.verticalScrollBar().setValue(top - _EDGE if top < value or height > room else top + height - room)
        self._choose(self._slots[index])

    def _choose(self, slot: _Slot) -> None:
        self._current = slot
        self._show_actions()
        self.setAccessibleDescription(spoken(slot.entry))
        QAccessible.updateAccessibility(QAccessibleEvent(self, QAccessible.Event.DescriptionChanged))
        self.chosen.emit(slot.entry.number)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Up, Down, Home and End go from turn to turn; pages scroll."""
        end = len(self._slots) - 1
        at = self._slots.index(self._current) if self._current is not None else end
        steps = {Qt.Key.Key_Up: at - 1, Qt.Key.Key_Down: at + 1, Qt.Key.Key_Home: 0, Qt.Key.Key_End: end}
        key = Qt.Key(event.key())
        if key in steps:
            self._hovered, self._rested = None, QCursor.pos()
            self.go_to(steps[key])
        elif key in (Qt.Key.Key_PageUp, Qt.Key.Key_PageDown):
            super().keyPressEvent(event)
        else:
            event.ignore()

    def focusInEvent(self, event: QFocusEvent) -> None:
        """The actions come to where the keyboard is, wherever the mouse rests."""
        self._hovered, self._rested = None, QCursor.pos()
        super().focusInEvent(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """A click beside the words chooses the turn."""
        index = bisect_right(self._tops(), round(event.position().y()) + self.verticalScrollBar().value()) - 1
        if 0 <= index < len(self._slots):
            self._choose(self._slots[index])

    def eventFilter(self, watched: object, event: QEvent) -> bool:
        """The mouse goes from turn to turn."""
        moved = isinstance(event, QEnterEvent) and event.globalPosition().toPoint() != self._rested
        if moved and isinstance(watched, TurnView):  # not the turn that was scrolled under a resting mouse
            self._hovered = next((slot for slot in self._slots if slot.view is watched), None)
            self._show_actions()
        return False

    def leaveEvent(self, event: QEvent) -> None:
        """The mouse is elsewhere."""
        super().leaveEvent(event)
        self._hovered = None
        self._show_actions()

    def _focus_moved(self, _old: QWidget | None, now: QWidget | None) -> None:
        for slot in self._slots:
            if slot.view is not None and now is not None and slot.view.isAncestorOf(now):
                self._choose(slot)
        self._show_actions()
        self.viewport().update()

    def _at(self) -> _Slot | None:
        """The turn that the actions are for: under the mouse, or where the keyboard is."""
        now = QApplication.focusWidget()
        acting = now is not None and self.action_bar.isAncestorOf(now)
        if self._hovered is not None and not acting:
            return self._hovered
        if now is self or (now is not None and self.viewport().isAncestorOf(now)):
            return self._current or (self._slots[-1] if self._slots else None)
        return None

    def show_playing(self, number: int | None) -> None:
        """That turn's recording is being played; None: nothing is."""
        self._playing = number
        self._show_actions()

    def _show_actions(self) -> None:
        """Put the actions beside the turn they are for."""
        slot = self._at()
        if slot is None or slot.view is None or slot.entry.message is None:
            self.action_bar.hide()
            return
        playing = slot.entry.number == self._playing
        self.action_bar.show_for(slot.entry, last=slot is self._slots[-1], playing=playing)
        self.action_bar.adjustSize()
        place = slot.view.geometry()
        self.action_bar.move(place.right() - self.action_bar.width() - 8, place.top() + 4)
        self.action_bar.raise_()
        self.action_bar.show()
        self.viewport().update()

    def _act(self, action: str, number: int) -> None:
        if action != "delay":
            self.action_requested.emit(action, number)
        elif (slot := self._slot(number)) is not None and slot.view is not None:
            slot.view.fold()

    def _retranslate(self) -> None:
        self.setAccessibleName(self.tr("Conversation"))
        self.setAccessibleDescription(spoken(self._current.entry) if self._current else "")
        self._newest.show_icon("down", self.tr("Jump to the latest turn"))
        self.action_bar.retranslate()

    # ---- arranging

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Turns have other heights at another width."""
        super().resizeEvent(event)
        self._arrange()

    def showEvent(self, event: QShowEvent) -> None:
        """What changed meanwhile: turns, the theme, the language."""
        super().showEvent(event)
        self._arrange()

    def scrollContentsBy(self, _dx: int, _dy: int) -> None:
        """The user scrolled: the newest turn is followed while it is in sight."""
        if not self._arranging:
            bar = self.verticalScrollBar()
            self._following = bar.value() >= bar.maximum() - _NEAR
            self._arrange()

    def changeEvent(self, event: QEvent) -> None:
        """Another theme, size of text or language: make what is in sight anew."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.StyleChange, QEvent.Type.LanguageChange):
            self._rebuilding.start(0)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Hairlines between the turns, a ring around the one that the keyboard is at."""
        painter = QPainter(self.viewport())
        painter.setRenderHint(painter.RenderHint.Antialiasing)
        at = self._current or (self._slots[-1] if self._slots else None)
        for slot in self._slots:
            if slot.view is None:
                continue
            place = slot.view.geometry()
            if slot is not self._slots[-1]:
                hairline = QColor(theme.colours().hairline)
                painter.fillRect(place.left() + 16, place.bottom(), place.width() - 32, 1, hairline)
            if slot is at and self.hasFocus():
                painter.setPen(QPen(QColor(theme.colours().accent), 2))
                painter.drawRoundedRect(QRectF(place).adjusted(2, 2, -2, -2), 10, 10)

    def _tops(self) -> list[int]:
        """Where each turn begins, and below the last one where they all end: pixels from the top of the first."""
        return list(accumulate((slot.height for slot in self._slots), initial=_EDGE))

    def _column(self) -> int:
        font = QFont(self.font())
        font.setPixelSize(theme.pixels("lead"))
        most = QFontMetrics(font).averageCharWidth() * _COLUMN + 4 * theme.GRID
        return min(most, self.viewport().width() - 2 * _EDGE)

    def _arrange(self) -> None:
        if self._arranging or not self.isVisible():
            return
        self._arranging = True
        try:
            self._place(self._column())
        finally:
            self._arranging = False

    def _place(self, width: int) -> None:
        """Give widgets to the turns in sight, measure them, and put them where they belong."""
        bar, room = self.verticalScrollBar(), self.viewport().height()
        tops = self._tops()
        first = max(0, bisect_right(tops, bar.value()) - 1)
        offset = bar.value() - tops[first]  # what is at the top of the sight stays there
        while True:
            tops = self._tops()
            end = max(0, tops[-1] + _EDGE - room)
            value = end if self._following else min(end, max(0, tops[min(first, len(self._slots))] + offset))
            near = [
                slot
                for slot, top in zip(self._slots, tops, strict=False)
                if top + slot.height > value - room / 2 and top < value + 1.5 * room
            ]
            other = [self._measure(slot, width) for slot in near]  # every one of them
            if not any(other):
                break
        for slot in self._slots:
            if slot.view is not None and slot not in near:
                self._drop(slot)
        bar.setRange(0, end)
        bar.setPageStep(room)
        bar.setSingleStep(3 * theme.pixels("lead"))
        bar.setValue(value)
        left = (self.viewport().width() - width) // 2
        for slot, top in zip(self._slots, tops, strict=False):
            if slot.view is not None:
                slot.view.setGeometry(left, top - value, width, slot.height)
                slot.view.show()
        self.newest.setVisible(end - value > _NEAR)
        self.newest.adjustSize()
        self.newest.move((self.viewport().width() - self.newest.width()) // 2, room - self.newest.height() - 8)
        self.newest.raise_()
        self._show_actions()
        self.viewport().update()

    def _measure(self, slot: _Slot, width: int) -> bool:
        """Give a turn its widgets; whether its height is another than was thought."""
        if slot.view is None:
            slot.view = TurnView(slot.entry, self.viewport())
            slot.view.refresh(last=slot is self._slots[-1])
            slot.view.changed.connect(self._arrange)
            slot.view.again.connect(lambda: self.action_requested.emit("again", slot.entry.number))
            slot.view.installEventFilter(self)
            QWidget.setTabOrder(self.action_bar.end, slot.view.remedy)
        before, slot.height = slot.height, slot.view.height_for(width)
        return slot.height != before

    def _drop(self, slot: _Slot) -> None:
        if slot.view is not None:
            slot.view.hide()
            slot.view.deleteLater()
            slot.view = None

    def _rebuild(self) -> None:
        self._retranslate()
        for slot in self._slots:
            self._drop(slot)
        self._arrange()
