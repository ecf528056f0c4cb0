"""Watches run folders of fine-tuning, and adopts tuned checkpoints or rolls them back.

Training is `python -m training` in a child process; its run folder is the whole contract.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from assistant.files import write_atomically
from assistant.settings import Settings

MANIFEST, OPTIONS, PROGRESS, SUMMARY, STOP, LOCK, PLAN, FAILED, ADOPTED, MODEL = (
    "manifest.jsonl", "run.toml", "progress.jsonl", "summary.json", "stop", ".lock", "plan.json", "failed.txt",
    "adopted.json", "model",
)  # fmt: skip
"""Files of a run folder; ADOPTED exists while its checkpoint is in use and says what was in use before."""


# ---- runs


def write_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Save what a run is expected to take. Raises: OSError."""
    write_atomically(path, json.dumps(dict(plan)) + "\n")


class Stage(StrEnum):
    """The stage of a run. A run that was stopped, was killed or failed can be resumed."""

    PLANNED = "planned"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(slots=True)
class TuningRun:
    """A run folder; `refresh` reads what is new.

    Attributes:
        progress: all reports so far. `summary`: what came of it, once it is finished. `why`: of a failure.
    """

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    progress: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] | None = None
    why: str = ""
    _read: int = 0

    @classmethod
    def open(cls, folder: Path) -> TuningRun:
        """Open a run folder, of this machine or another.

        Raises:
            ValueError: it holds none.
        """
        run = cls(folder)
        run.refresh()
        if not run.options and not (folder / MANIFEST).is_file():
            raise ValueError(f"{folder} holds no tuning run: choose the folder with the {OPTIONS} of one.")
        return run

    def refresh(self) -> list[dict[str, Any]]:
        """Read new reports; returns them."""
        if not self.options:
            with contextlib.suppress(OSError, ValueError):
                self.options = tomllib.loads((self.folder / OPTIONS).read_text("utf-8"))
        new = self._new_reports()
        self.progress += new
        self.summary = read_object(self.folder / SUMMARY)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self.why = ""
            self.why = (self.folder / FAILED).read_text("utf-8").strip()
        return new

    def _new_reports(self) -> list[dict[str, Any]]:
        try:
            with (self.folder / PROGRESS).open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:
                    self._read = 0
                    self.progress.clear()
                file.seek(self._read)
                content = file.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]  # an unfinished line is read later
        self._read += len(whole)
        return [row for line in whole.splitlines() if (row := _object(line)) is not None]

    @property
    def name(self) -> str:
        """The run's title: its data's name and date, or the folder's name."""
        parts = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)-(\d\d)(\d\d)\d\d-(.+)", self.folder.name)
        if parts is None:
            return self.folder.name
        year, month, day, hour, minute, name = parts.groups()
        return f"{name} · {year}-{month}-{day} {hour}:{minute}"

    @property
    def stage(self) -> Stage:
        """The current stage."""
        if self.summary is not None:
            return Stage.FINISHED
        if self.at_work:
            return Stage.RUNNING
        if self.why:
            return Stage.FAILED
        return Stage.STOPPED if self.options else Stage.PLANNED

    @property
    def at_work(self) -> bool:
        """Whether a process is using the folder."""
        lock = self.folder / LOCK
        if not lock.exists():
            return False
        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # nothing can run in a folder that cannot be written
            return False

    @property
    def checkpoint(self) -> Path:
        """The tuned checkpoint's folder, once the run is finished."""
        return self.folder / MODEL

    def ask_to_stop(self) -> None:
        """Ask the run to stop at the next safe point. Raises: OSError."""
        (self.folder / STOP).touch()

    def free_bytes(self) -> int:
        """Free bytes on its disk."""
        return shutil.disk_usage(self.folder).free

    def note_end(self, code: int, said: str) -> None:
        """Save why the process ended, for whoever opens the folder later; code 0: it stopped as asked."""
        with contextlib.suppress(OSError):  # the disk may be full
            if code == 0:
                (self.folder / FAILED).unlink(missing_ok=True)
            else:
                write_atomically(self.folder / FAILED, (said or end_of(code)) + "\n")
        self.why = "" if code == 0 else said or end_of(code)


def end_of(code: int) -> str:
    """What an exit code means."""
    if code in (-1, 137):
        return "The training was ended from outside, maybe because memory ran out: it can go on where it was."
    return f"The training ended unexpectedly (exit {code}): it can go on where it was."


def command_of(run: TuningRun) -> list[str]:
    """The arguments of `python -m training tune` that resume a run, wherever its folder is now.

    Raises:
        ValueError: the run was never begun.
    """
    if not run.options:
        raise ValueError(f"{run.folder} was planned and never begun: begin it anew.")
    words, own = [str(run.folder)], run.folder / MANIFEST
    options = run.options | ({"manifest": str(own)} if own.is_file() else {})
    for name, value in options.items():
        if name != "run":
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def runs(folder: Path) -> list[TuningRun]:
    """The runs in a folder, latest first."""
    found = []
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []:
        with contextlib.suppress(ValueError, OSError):
            if path.is_dir() and not path.name.startswith("."):
                found.append(TuningRun.open(path))
    return found


_DISCARDED = ".discarded-"


def discard(run: TuningRun) -> Path:
    """Hide a run; returns where it is kept until `sweep`. Raises: OSError."""
    kept = run.folder.with_name(f"{_DISCARDED}{run.folder.name}")
    shutil.rmtree(kept, ignore_errors=True)
    return run.folder.rename(kept)


def restore(kept: Path) -> None:
    """Restore a discarded run. Raises: OSError."""
    kept.rename(kept.with_name(kept.name.removeprefix(_DISCARDED)))


def sweep(folder: Path) -> None:
    """Delete discarded runs, and what probes left."""
    for path in folder.glob(".*"):
        if path.name.startswith(_DISCARDED) or path.name.endswith(".probe"):
            shutil.rmtree(path, ignore_errors=True)


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None where there is no readable one."""
    try:
        return _object(path.read_bytes())
    except OSError:
        return None


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# ---- adopt and roll back


def adopt(run: TuningRun, settings: Settings) -> dict[str, Any]:
    """Adopt the run's checkpoint; returns the values of the settings' section "model" that use it.

    Raises:
        ValueError: the run has no checkpoint. OSError: it cannot be noted.
    """
    if not (run.checkpoint / "config.json").is_file():
        raise ValueError(f"{run.folder} has no checkpoint to use: let the run finish first.")
    source, now = str(run.checkpoint.absolute()), settings.model
    if now.source != source:
        before = {"source": now.source, "device": now.device, "quantize": now.quantize}
        write_atomically(run.folder / ADOPTED, json.dumps(before) + "\n")
    folders = now.folders if source in now.folders else (*now.folders, source)
    return {"source": source, "folders": folders}


def in_use(run: TuningRun, settings: Settings) -> bool:
    """Whether the run's checkpoint is in use."""
    return settings.model.source == str(run.checkpoint.absolute())


def roll_back(run: TuningRun, settings: Settings) -> dict[str, Any]:
    """Undo `adopt`; returns the earlier values of the settings' section "model". Raises: ValueError, OSError."""
    before = read_object(run.folder / ADOPTED)
    if before is None:
        raise ValueError(f"{run.folder} does not say what was in use before: choose a model in the settings.")
    source = str(run.checkpoint.absolute())
    (run.folder / ADOPTED).unlink()
    return before | {"folders": tuple(one for one in settings.model.folders if one != source)}
