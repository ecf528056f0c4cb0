"""A run is a folder, and the folder is the whole contract between a command and whoever watches it.

    run.toml        the options; a run goes on only with the same
    progress.jsonl  a line a report: stage, step, of, loss, validation, learning_rate, samples_per_second,
                    eta_seconds, and whatever else a command has to say; appended and flushed
    stop            made by the watcher: the command ends at the next safe place, and goes on when started again
    checkpoint-N    what a trainer resumes from; card.md  written at its end
    .lock           held by the process that works here

Files are replaced as a whole or appended line by line; a reader never sees half of one and skips a torn last line.
Knows no torch: windows read it.
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
_LOCK_SECONDS = 1.0  # a watcher that asks whether a run is at work holds the lock for a moment


def repair(path: Path) -> None:
    """Cut off a last line that a kill has torn, so that the next one starts a line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines in one write and flush them."""
    with path.open("ab") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def read_lines(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The objects on the complete lines behind byte `start`, and the byte behind the last of them.

    A line that is torn, or no JSON object, is left out; without a file there are none.
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
    """The hold of a working process on its run folder; see `open_run`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def stop_requested(self) -> bool:
        """Whether the watcher has asked for an end."""
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
        """Append a line to progress.jsonl; what is not known is null. Numbers must be finite or None."""
        figures = {"stage": stage, "step": step, "of": of, "loss": loss, "validation": validation}
        figures |= {"learning_rate": learning_rate, "samples_per_second": samples_per_second}
        append_lines(self.folder / PROGRESS, [figures | {"eta_seconds": eta_seconds} | extra])

    @contextmanager
    def bar(self, stage: str, of: int, done: int = 0, *, unit: str = "samples") -> Iterator[Bar]:
        """A progress bar on stderr whose steps are reported as well; `done` of the `of` steps were done before.

        The rate is reported as `<unit>_per_second`.
        """
        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            bar = Bar(self, bars, stage, of, done, unit)
            yield bar
            if bar.news:
                bar.flush()

    def write_card(self, text: str) -> None:
        """Write card.md, which says what came of the run."""
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
        """Whether something has happened since the last report."""

    def advance(self, steps: int = 1, **figures: Any) -> None:
        """`steps` more are done; `figures` as in `Run.report`."""
        self.set(self._step + steps, **figures)

    def set(self, step: int, **figures: Any) -> None:
        """`step` are done in all."""
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
    """Take hold of a run folder, a new one or one to go on with; a `stop` from before is removed.

    Args:
        folder: made if it is not there.
        options: written to run.toml; nothing in them is None.
        changeable: options that may differ from those of the earlier start.
        kept: what there is to go on with; while it is not there, any options are as good as the earlier ones.

    Raises:
        BadInput: another process works there, the run was started with other options, or the folder cannot be
            written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=_LOCK_SECONDS):
            if kept is not None and not kept.exists():
                (folder / OPTIONS).unlink(missing_ok=True)
            _settle(folder, dict(options), frozenset(changeable))
            (folder / STOP).unlink(missing_ok=True)
            repair(folder / PROGRESS)
            yield Run(folder)
    except Timeout as error:
        raise BadInput(f"{folder} is in use by another process: wait for it, or ask it to stop.") from error
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise BadInput(f"{error.filename or folder} cannot be written: choose another folder.") from error


def _settle(folder: Path, options: dict[str, Any], changeable: frozenset[str]) -> None:
    if (folder / OPTIONS).exists():
        before = read_options(folder)
        for name in sorted({*before, *options} - changeable):
            if before.get(name) != options.get(name):
                raise BadInput(
                    f"{folder} was started with {name} = {before.get(name)!r}, not {options.get(name)!r}: "
                    "use the same options to go on, or another folder."
                )
    write_atomically(folder / OPTIONS, tomli_w.dumps(options))


def read_options(folder: Path) -> dict[str, Any]:
    """The options of a run.

    Raises:
        BadInput: there is no readable run.toml.
    """
    try:
        return tomllib.loads((folder / OPTIONS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} is no run folder, its {OPTIONS} cannot be read ({error}): choose another.") from error


class ProgressTail:
    """Follows a progress.jsonl that is being written."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS
        self._position = 0

    def new(self) -> list[dict[str, Any]]:
        """The reports since the last call; after a resumed run's step has gone back, the later line counts."""
        if self._path.exists() and self._path.stat().st_size < self._position:
            self._position = 0
        rows, self._position = read_lines(self._path, self._position)
        return rows


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """All reports of a run."""
    return ProgressTail(folder).new()


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    found = {
        int(number): path
        for path in folder.glob("checkpoint-*")
        if (number := path.name.removeprefix("checkpoint-")).isdecimal() and (path / _COMPLETE).is_file()
    }
    return [found[number] for number in sorted(found)]


def request_stop(folder: Path) -> None:
    """Ask the process that works in the folder to end at the next safe place."""
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
