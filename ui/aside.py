"""Files that the user deleted: put aside at once, brought back by an undo, gone for good a little later."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QCoreApplication, QObject, QTimer, Signal

UNDO_MS = 11_000
"""A little longer than the message with the undo is shown."""


class Aside(QObject):
    """The folder of what is about to be deleted. What a killed program left in it goes at the next start.

    Args:
        folder: on the disk of the files, for they are renamed into it.

    Signals:
        changed: something was deleted, or brought back.
    """

    changed = Signal()

    def __init__(self, folder: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.folder = folder
        self._later = QTimer(self, singleShot=True, interval=UNDO_MS)
        self._later.timeout.connect(self.empty)
        application = QCoreApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.empty)
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
            self.bring_back(moved)
            raise
        return moved

    def bring_back(self, moved: Sequence[tuple[Path, Path]]) -> None:
        """Undo `put`.

        Raises:
            OSError: one cannot be moved back, or has been deleted.
        """
        for before, now in moved:
            now.rename(before)

    def empty(self) -> None:
        """Delete for good."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)
