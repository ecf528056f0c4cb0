"""Work off Qt's thread: reading and writing of files that could hold the window up."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from PySide6.QtCore import QObject, Qt, Signal

from assistant.errors import AssistantError

_T = TypeVar("_T")


class Background(QObject):
    """One piece of work after the other, on a thread of its own. It has no parent: whoever made it closes it."""

    _finished = Signal(object, object, object)

    def __init__(self) -> None:
        super().__init__()
        self._closed = False
        self._thread = ThreadPoolExecutor(1)
        self._finished.connect(self._deliver, Qt.ConnectionType.QueuedConnection)  # also where work was done at once

    def run(
        self, work: Callable[[], _T], done: Callable[[_T], object], failed: Callable[[str], object] | None = None
    ) -> None:
        """Do `work`, then `done` with its result on Qt's thread; `failed` with the words of an AssistantError."""
        if not self._closed:
            self._thread.submit(work).add_done_callback(lambda future: self._finished.emit(future, done, failed))

    def close(self) -> None:
        """Wait for what is being done; what waits is dropped, and nothing is told any more."""
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
