"""Background work: file access that would block the window."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from PySide6.QtCore import QObject, Qt, Signal

from assistant.errors import AssistantError

_T = TypeVar("_T")


class Background(QObject):
    """A worker thread that runs one task after the other. It has no Qt parent: its owner closes it."""

    _finished = Signal(object, object, object)

    def __init__(self) -> None:
        super().__init__()
        self._closed = False
        self._thread = ThreadPoolExecutor(1)
        self._finished.connect(
            self._deliver, Qt.ConnectionType.QueuedConnection
        )  # queued even when the work is already done

    def run(
        self, work: Callable[[], _T], done: Callable[[_T], object], failed: Callable[[str], object] | None = None
    ) -> None:
        """Run `work` on the worker thread.

        Args:
            work: the task.
            done: called with its result on Qt's thread.
            failed: called with the message of an AssistantError on Qt's thread.
        """
        if not self._closed:
            self._thread.submit(work).add_done_callback(lambda future: self._finished.emit(future, done, failed))

    def close(self) -> None:
        """Wait for the current task, drop the queued ones and call nothing more."""
        self._closed = True
        self._thread.shutdown(cancel_futures=True)

    def _deliver(
        self, future: Future[Any], done: Callable[[Any], object], failed: Callable[[str], object] | None
    ) -> None:
        if self._closed:
            return
        try:
            result = future.result()
        except AssistantError as error:
            if failed is None:
                raise
            failed(str(error))
        else:
            done(result)
