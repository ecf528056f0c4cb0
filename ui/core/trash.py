"""Files that the user deleted: put aside at once, brought back by an undo, gone for good a little later."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from PySide6.QtCore import QObject, QTimer, Signal

UNDO_MS = 11_000
"""A little longer than the message with the undo is shown."""


class Trash(QObject):
    """The folder of what is about to be deleted. What a killed program left in it goes at the next start.

    Args:
        folder: on the disk of the files, for they are renamed into it.

    Signals:
        changed: something was put aside, or brought back.
    """

    changed = Signal()

    def __init__(self, folder: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.folder = folder
        self._later = QTimer(self, singleShot=True, interval=UNDO_MS)
        self._later.timeout.connect(self.empty)
        self.empty()

    def put(self, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
        """Move files or folders here; returns where each was and is. All are moved, or none.

        Raises:
            OSError: one cannot be moved.
        """
        place = self.folder / secrets.token_hex(4)
        place.mkdir(parents=True, mode=0o700)
        self._later.start()
        moved: list[tuple[Path, Path]] = []
        try:
            for path in paths:
                moved.append((path, path.rename(place / path.name)))  # noqa: PERF401 (kept up to the one that fails)
        except OSError:
            self.restore(moved)
            raise
        self.changed.emit()
        return moved

    def restore(self, moved: Sequence[tuple[Path, Path]]) -> None:
        """Undo `put`.

        Raises:
            OSError: one cannot be moved back, or has been deleted.
        """
        try:
            for before, now in moved:
                now.rename(before)
        finally:
            self.changed.emit()

    def empty(self) -> Thread:
        """Delete for good, on a thread of its own; the window does not wait for a large disk."""
        gone = list(self.folder.iterdir()) if self.folder.is_dir() else []  # what comes later is not deleted

        def delete() -> None:
            for place in gone:
                shutil.rmtree(place, ignore_errors=True)  # what cannot be deleted now goes at the next start

        thread = Thread(target=delete)  # the program's end waits for it
        thread.start()
        return thread
