"""The one place where other threads meet Qt.

Events wait in a queue and are delivered on Qt's thread every 33 ms: one signal per token would block the window. A
batch keeps only the last input level and joins pieces of the same reply.
"""

from __future__ import annotations

from collections import deque

from PySide6.QtCore import QObject, QTimer, Signal

from assistant.backend.protocol import Ready
from assistant.events import Event, InputLevel, ReplyText

_BATCH_MS = 33


class EventBridge(QObject):
    """Callable from any thread with an event. `event_received` is emitted in order on the thread that made it."""

    event_received = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._waiting: deque[Event | Ready] = deque()
        self._timer = QTimer(self)
        self._timer.setInterval(_BATCH_MS)
        self._timer.timeout.connect(self.flush)
        self._timer.start()

    def __call__(self, event: Event | Ready) -> None:
        """Queue an event. Does not block."""
        self._waiting.append(event)

    def flush(self) -> None:
        """Deliver the queued events."""
        batch: list[Event | Ready] = []
        level: InputLevel | None = None
        for _ in range(len(self._waiting)):
            event = self._waiting.popleft()
            if isinstance(event, InputLevel):
                level = event
            elif isinstance(event, ReplyText) and batch and isinstance(before := batch[-1], ReplyText):
                if before.turn == event.turn:
                    batch[-1] = ReplyText(event.turn, before.text + event.text)
                else:
                    batch.append(event)
            else:
                batch.append(event)
        for event in batch:
            self.event_received.emit(event)
        if level is not None:
            self.event_received.emit(level)

    def stop(self) -> None:
        """Deliver what is queued, then stop."""
        self._timer.stop()
        self.flush()
