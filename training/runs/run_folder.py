"""A run is a folder, and the folder is the only interface between a command and its watcher.

    run.toml        the options; a run can only be resumed with the same
    progress.jsonl  one line per report: stage, step, of, loss, validation, learning_rate, samples_per_second,
                    eta_seconds, and further figures of the command; appended and flushed
    stop            created by the watcher: the command stops at the next safe point, and resumes when started again
    checkpoint-N    what a trainer resumes from
    card.md         written at the end
    .lock           held by the process that works here

Files are replaced as a whole or appended line by line; a reader never sees half a file and skips a torn last line.
Knows no torch: user interfaces read it.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from model.errors import BadInput
from model.files import write_atomically

OPTIONS, PROGRESS, STOP, CARD, LOCK = "run.toml", "progress.jsonl", "stop", "card.md", ".lock"
_COMPLETE = "trainer_state.json"  # the trainer writes it last
_REPORT_SECONDS = 0.5
_LOCK_SECONDS = 1.0  # a watcher that checks whether a run is active holds the lock for a moment


def repair(path: Path) -> None:
    """Remove an incomplete last line, left by a kill, so that the next line starts properly.

    Args:
        path: of a file of lines; it may be missing.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines in one write and flush them.

    Args:
        path: of the file, created if necessary.
        rows: one object per line.
    """
    with path.open("ab") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read_lines(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the objects on the complete lines of a file.

    A line that is torn or not a JSON object is skipped.

    Args:
        path: of the file; it may be missing.
        start: the byte to start at.

    Returns:
        The objects, and the byte after the last complete line.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return [], 0
    end = content.rfind(b"\n") + 1
    rows = []
    for line in content[:end].splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows, start + end


class Run:
    """A locked run folder; see `open_run`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def stop_requested(self) -> bool:
        """Whether the watcher asked the run to stop."""
        return (self.folder / STOP).exists()

    def report(
        self,
        stage: str,
        step: int,
        of: int,
        *,
        loss: float | None = None,
        validation: float | None = None,
        learning_rate: float | None = None,
        samples_per_second: float | None = None,
        eta_seconds: float | None = None,
        **extra: Any,
    ) -> None:
        """Append a line to progress.jsonl. Numbers must be finite; unknown ones are None.

        Args:
            stage: name of the step in progress.
            step: steps done.
            of: steps in total.
            loss: training loss.
            validation: validation loss.
            learning_rate: now.
            samples_per_second: rate.
            eta_seconds: estimated time left.
            **extra: further figures.
        """
        figures = {"stage": stage, "step": step, "of": of, "loss": loss, "validation": validation}
        figures |= {"learning_rate": learning_rate, "samples_per_second": samples_per_second}
        append_lines(self.folder / PROGRESS, [figures | {"eta_seconds": eta_seconds} | extra])

    @contextmanager
    def bar(self, stage: str, of: int, done: int = 0, *, unit: str = "samples") -> Iterator[Bar]:
        """A progress bar on stderr that also reports to progress.jsonl, with the rate as `<unit>_per_second`.

        Args:
            stage: name of the step in progress.
            of: steps in total.
            done: steps done in earlier starts.
            unit: of a step; "bytes" are shown as sizes.

        Yields:
            The bar.
        """
        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            bar = Bar(self, bars, stage, of, done, unit)
            yield bar
            if bar.news:
                bar.flush()

    def write_card(self, text: str) -> None:
        """Write card.md, which describes the result.

        Args:
            text: Markdown.
        """
        write_atomically(self.folder / CARD, text)


class Bar:
    """A progress bar that also writes progress.jsonl, at most twice a second."""

    def __init__(self, run: Run, bars: Progress, stage: str, of: int, done: int, unit: str) -> None:
        self._run, self._bars, self._stage, self._of, self._unit = run, bars, stage, of, unit
        self._task: TaskID = bars.add_task(stage, total=of, completed=done)
        self._first = self._step = done
        self._began = self._reported = time.monotonic()
        self._figures: dict[str, Any] = {}
        self.news = True
        """Whether there is something new since the last report."""

    def advance(self, steps: int = 1, **figures: Any) -> None:
        """Count steps.

        Args:
            steps: done since the last call.
            **figures: as in `Run.report`.
        """
        self.set(self._step + steps, **figures)

    def set(self, step: int, **figures: Any) -> None:
        """Set the progress.

        Args:
            step: steps done in total.
            **figures: as in `Run.report`.
        """
        self._step = step
        self._figures = figures
        self.news = True
        self._bars.update(self._task, completed=step)
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Report now."""
        self.news = False
        self._reported = time.monotonic()
        rate = (self._step - self._first) / max(self._reported - self._began, 1e-9)
        known = {f"{self._unit}_per_second": round(rate, 3), "eta_seconds": None}
        if rate:
            known["eta_seconds"] = round((self._of - self._step) / rate, 1)
        self._run.report(self._stage, self._step, self._of, **(known | self._figures))


@contextmanager
def open_run(
    folder: Path, options: Mapping[str, Any], *, changeable: Iterable[str] = (), kept: Path | None = None
) -> Iterator[Run]:
    """Lock a run folder, new or to resume, and write its options; an old `stop` is removed.

    Args:
        folder: created if necessary.
        options: written to run.toml; without None.
        changeable: options that may differ from those of the earlier start.
        kept: what there is to resume; while it is missing, any options are accepted.

    Yields:
        The run.

    Raises:
        BadInput: another process works there, the run was started with other options, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=_LOCK_SECONDS):
            if kept is not None and not kept.exists():
                (folder / OPTIONS).unlink(missing_ok=True)
            _write_options(folder, dict(options), frozenset(changeable))
            (folder / STOP).unlink(missing_ok=True)
            repair(folder / PROGRESS)
            yield Run(folder)
    except Timeout as error:
        raise BadInput(f"{folder} is in use by another process: wait for it, or stop it.") from error
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{error.filename or folder} cannot be written: choose another folder.") from error


def _write_options(folder: Path, options: dict[str, Any], changeable: frozenset[str]) -> None:
    if (folder / OPTIONS).exists():
        before = read_options(folder)
        for name in sorted({*before, *options} - changeable):
            if before.get(name) != options.get(name):
                raise BadInput(
                    f"{folder} was started with {name} = {before.get(name)!r}, not {options.get(name)!r}: "
                    "use the same options to resume, or another folder."
                )
    write_atomically(folder / OPTIONS, tomli_w.dumps(options))


def read_options(folder: Path) -> dict[str, Any]:
    """Read the options of a run.

    Raises:
        BadInput: there is no readable run.toml.
    """
    try:
        return tomllib.loads((folder / OPTIONS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} is no run folder, its {OPTIONS} cannot be read ({error}): choose another.") from error


class ProgressTail:
    """Follows a progress.jsonl while it is written."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS
        self._position = 0

    def new(self) -> list[dict[str, Any]]:
        """Read the reports since the last call. After a resumed run has gone back some steps, the later line counts.

        Returns:
            The reports.
        """
        if self._path.exists() and self._path.stat().st_size < self._position:
            self._position = 0
        rows, self._position = read_lines(self._path, self._position)
        return rows


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """Read all reports of a run.

    Args:
        folder: of the run.

    Returns:
        The reports.
    """
    return ProgressTail(folder).new()


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = {
        int(number): path
        for path in folder.glob("checkpoint-*")
        if (number := path.name.removeprefix("checkpoint-")).isdecimal() and (path / _COMPLETE).is_file()
    }
    return [found[number] for number in sorted(found)]


def request_stop(folder: Path) -> None:
    """Ask the process that works in the folder to stop at the next safe point.

    Args:
        folder: of the run.
    """
    (folder / STOP).touch()


def is_running(folder: Path) -> bool:
    """Whether a process works in the folder now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
