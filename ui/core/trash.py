"""The trash: deleted files move here, can be restored for a few seconds, and are then removed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from PySide6.QtCore import QObject, QTimer, Signal

UNDO_MS = 11_000
"""Slightly longer than the message with the undo is shown."""


class Trash(QObject):
    """The folder of deleted files. Leftovers of a killed program are removed at the next start.

    Args:
        folder: on the same disk as the files, because they are renamed into it.

    Signals:
        changed: files were moved here or restored.
    """

    changed = Signal()

    def __init__(self, folder: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.folder = folder
        self._later = QTimer(self, singleShot=True, interval=UNDO_MS)
        self._later.timeout.connect(self.empty)
        self.empty()

    def put(self, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
        """Move files or folders here, all or none.

        Returns:
            The old and the new path of each.

        Raises:
            OSError: a file cannot be moved.
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
            OSError: a file cannot be moved back, or was removed.
        """
        try:
            for before, now in moved:
                now.rename(before)
        finally:
            self.changed.emit()

    def empty(self) -> Thread:
        """Remove the files on a thread, so that a slow disk does not block the window."""
        gone = list(self.folder.iterdir()) if self.folder.is_dir() else []  # files that arrive later are kept

        def delete() -> None:
            for place in gone:
                shutil.rmtree(place, ignore_errors=True)  # the rest is removed at the next start

        thread = Thread(target=delete)  # the program waits for it at exit
        thread.start()
        return thread
