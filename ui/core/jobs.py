"""Our own commands in child processes: the window's process never holds torch, and a crash there costs it nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import QObject, QProcess, QProcessEnvironment, Signal


class Job(QObject):
    """A command that prints JSON lines.

    Signals:
        printed: each JSON object of its standard output, as it comes.
        ended: its exit code (0 done; see DESIGN), and what it said on standard error last, one line.
    """

    printed = Signal(object)
    ended = Signal(int, str)

    def __init__(self, command: Sequence[str], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.results: list[dict[str, Any]] = []
        self._rest = b""
        self._stderr = b""
        self._process = QProcess(self)
        environment = QProcessEnvironment.systemEnvironment()
        environment.insert("PYTHONUNBUFFERED", "1")
        environment.insert("OMP_WAIT_POLICY", "PASSIVE")
        self._process.setProcessEnvironment(environment)
        self._process.readyReadStandardOutput.connect(self._read)
        self._process.readyReadStandardError.connect(self._read_stderr)
        self._process.finished.connect(self._end)
        self._process.errorOccurred.connect(self._fail)
        self._process.start(command[0], list(command[1:]))

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.state() is not QProcess.ProcessState.NotRunning

    @property
    def pid(self) -> int:
        """Its process id, 0 when it does not run."""
        return self._process.processId()

    def stop(self) -> None:
        """End it now; `ended` follows."""
        self._process.kill()

    def close(self) -> None:
        """End it without another signal and wait until it is gone."""
        self.blockSignals(True)
        self._process.kill()
        self._process.waitForFinished(2000)

    def _read(self) -> None:
        *lines, self._rest = (self._rest + self._process.readAllStandardOutput().data()).split(b"\n")
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue  # a library's own words
            if isinstance(value, dict):
                self.results.append(value)
                self.printed.emit(value)

    def _read_stderr(self) -> None:
        self._stderr = (self._stderr + self._process.readAllStandardError().data())[-4000:]

    def _end(self, code: int, status: QProcess.ExitStatus) -> None:
        self._rest += b"\n"
        self._read()
        self._read_stderr()
        lines = [line.strip() for line in self._stderr.decode(errors="replace").splitlines() if line.strip()]
        crashed = status is QProcess.ExitStatus.CrashExit
        self.ended.emit(-1 if crashed else code, lines[-1] if lines else "")

    def _fail(self, error: QProcess.ProcessError) -> None:
        if error is QProcess.ProcessError.FailedToStart:
            self.ended.emit(3, self._process.errorString())
