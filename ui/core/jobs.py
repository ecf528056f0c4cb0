"""Our own commands in child processes. The window never loads torch, and a crash of a child does not affect it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import QObject, QProcess, QProcessEnvironment, Signal


class Job(QObject):
    """A child process that prints JSON lines.

    Signals:
        printed: each JSON object of standard output.
        ended: the exit code (0 success, -1 crash) and the last line of standard error.
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
        """Whether the process is running."""
        return self._process.state() is not QProcess.ProcessState.NotRunning

    @property
    def pid(self) -> int:
        """The process id, 0 when it is not running."""
        return self._process.processId()

    def stop(self) -> None:
        """Kill the process; `ended` follows."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process without a signal and wait until it is gone."""
        self.blockSignals(True)
        self._process.kill()
        self._process.waitForFinished(2000)

    def _read(self) -> None:
        *lines, self._rest = (self._rest + self._process.readAllStandardOutput().data()).split(b"\n")
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue  # output of a library
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
