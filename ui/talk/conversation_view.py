"""The conversation: turns from top to bottom. Only turns near the visible area have widgets."""

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
_NEAR = 24  # pixels from the end that count as the end
_EDGE = 8  # margin around the turns in pixels


@dataclass(slots=True, eq=False)
class _Slot:
    entry: Entry
    height: int = 120  # pixels; an estimate until the turn was visible
    view: TurnView | None = None


class ConversationView(QAbstractScrollArea):
    """The turns of the conversation, updated by events.

    Up and Down move between turns; Tab goes to the actions of the current turn.

    Signals:
        action_requested: "play", "copy", "edit", "again" or "undo", and the number of the turn.
        chosen: the number of the turn that the user moved to.
    """

    action_requested = Signal(str, int)
    chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._rebuilding = QTimer(self)
        self._rebuilding.setSingleShot(True)
        self._rebuilding.timeout.connect(self._rebuild)
        self._slots: list[_Slot] = []
        self._forgotten = 0  # events of turns up to this number belong to an earlier conversation
        self._current: _Slot | None = None
        self._hovered: _Slot | None = None
        self._rested: QPoint | None = None  # mouse position when the keyboard took over
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

    # ---- events

    def handle_event(self, event: object) -> None:
        """Update from an event of the conversation."""
        if isinstance(event, StateChanged):
            if not event.user_speaking and self._slots and self._slots[-1].entry.message is None:
                self._remove(self._slots[-1])  # it was not speech
        elif isinstance(event, SpeechStarted | UtteranceEnded):
            self._begin(event)
        else:
            slot = self._slot(event.turn.number if isinstance(event, TurnEnded) else getattr(event, "turn", None))
            if slot is not None and isinstance(event, TurnUndone):
                self._remove(slot)
            elif slot is not None and slot.entry.handle_event(event):
                self._show_news(slot)

    def show_correction(self, number: int, emotion: str | None) -> None:
        """Show the user's correction of a turn; None restores the reading."""
        if (slot := self._slot(number)) is not None:
            slot.entry.corrected = emotion
            self._show_news(slot)

    def clear(self) -> None:
        """Remove all turns and ignore later events about them."""
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
        """Return the turn with that number."""
        slot = self._slot(number)
        return None if slot is None else slot.entry

    def _slot(self, number: object) -> _Slot | None:
        return next((one for one in self._slots[::-1] if one.entry.number == number), None)

    @property
    def last(self) -> Entry | None:
        """The latest turn."""
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
        for other in self._slots[-2:]:  # the one before is no longer the latest
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

    # ---- navigation

    def follow(self) -> None:
        """Scroll to the latest turn and stay there."""
        self._following = True
        self._arrange()

    def go_to(self, index: int) -> None:
        """Make a turn the current one and scroll to it."""
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
        """Up, Down, Home and End move between turns; Page keys scroll."""
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
        """Show the actions at the keyboard's turn, wherever the mouse is."""
        self._hovered, self._rested = None, QCursor.pos()
        super().focusInEvent(event)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Choose the clicked turn."""
        index = bisect_right(self._tops(), round(event.position().y()) + self.verticalScrollBar().value()) - 1
        if 0 <= index < len(self._slots):
            self._choose(self._slots[index])

    def eventFilter(self, watched: object, event: QEvent) -> bool:
        """Track the turn under the mouse."""
        moved = isinstance(event, QEnterEvent) and event.globalPosition().toPoint() != self._rested
        if moved and isinstance(watched, TurnView):  # not a turn that scrolled under a resting mouse
            self._hovered = next((slot for slot in self._slots if slot.view is watched), None)
            self._show_actions()
        return False

    def leaveEvent(self, event: QEvent) -> None:
        """Forget the turn under the mouse."""
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
        """The turn that the actions apply to: under the mouse, or where the keyboard is."""
        now = QApplication.focusWidget()
        acting = now is not None and self.action_bar.isAncestorOf(now)
        if self._hovered is not None and not acting:
            return self._hovered
        if now is self or (now is not None and self.viewport().isAncestorOf(now)):
            return self._current or (self._slots[-1] if self._slots else None)
        return None

    def show_playing(self, number: int | None) -> None:
        """Mark the turn whose recording plays; None for none."""
        self._playing = number
        self._show_actions()

    def _show_actions(self) -> None:
        """Place the actions at their turn."""
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
        """Lay out again: heights depend on the width."""
        super().resizeEvent(event)
        self._arrange()

    def showEvent(self, event: QShowEvent) -> None:
        """Lay out what changed while hidden."""
        super().showEvent(event)
        self._arrange()

    def scrollContentsBy(self, _dx: int, _dy: int) -> None:
        """Follow the latest turn while it is in view."""
        if not self._arranging:
            bar = self.verticalScrollBar()
            self._following = bar.value() >= bar.maximum() - _NEAR
            self._arrange()

    def changeEvent(self, event: QEvent) -> None:
        """Rebuild the visible turns for another theme, text size or language."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.PaletteChange, QEvent.Type.StyleChange, QEvent.Type.LanguageChange):
            self._rebuilding.start(0)

    def paintEvent(self, event: QPaintEvent) -> None:
        """Paint hairlines between turns, and a focus ring."""
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
        """The top of each turn and the bottom of the last, in pixels from the first."""
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
        """Make, measure and place the turns near the visible area."""
        bar, room = self.verticalScrollBar(), self.viewport().height()
        tops = self._tops()
        first = max(0, bisect_right(tops, bar.value()) - 1)
        offset = bar.value() - tops[first]  # keep what is at the top in place
        while True:
            tops = self._tops()
            end = max(0, tops[-1] + _EDGE - room)
            value = end if self._following else min(end, max(0, tops[min(first, len(self._slots))] + offset))
            near = [
                slot
                for slot, top in zip(self._slots, tops, strict=False)
                if top + slot.height > value - room / 2 and top < value + 1.5 * room
            ]
            other = [self._measure(slot, width) for slot in near]  # measure all, without short-circuit
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
        """Make a turn's widgets; return whether its height changed."""
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
