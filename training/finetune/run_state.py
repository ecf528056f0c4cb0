"""Shared parts of a tuning run: file names, clock, stopping on request, card and summary."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

import psutil

from model.checkpoints.memory import peak_bytes
from model.files import write_atomically
from training.finetune.card import tuning_card
from training.finetune.options import TuneOptions
from training.runs.run_folder import Run, read_progress

MODEL, SUMMARY = "model", "summary.json"


class StopRequested(Exception):
    """The watcher asked the run to stop; finished work is kept."""


class Clock:
    """Seconds of work on a run, over all its starts, and memory in use; for reports."""

    def __init__(self, run: Run) -> None:
        self.earlier = max((float(line.get("seconds") or 0) for line in read_progress(run.folder)), default=0.0)
        self._began = psutil.Process().create_time()  # includes the start of the process
        self._process = psutil.Process()

    def figures(self) -> dict[str, Any]:
        """As of now."""
        seconds = round(self.earlier + time.time() - self._began, 2)
        return {"seconds": seconds, "memory_bytes": self._process.memory_info().rss}


def stop_if_requested(run: Run) -> None:
    """Raise `StopRequested` if the watcher asked the run to stop."""
    if run.stop_requested:
        raise StopRequested


def finish(options: TuneOptions, run: Run, clock: Clock, summary: dict[str, Any]) -> dict[str, Any]:
    """Write card and summary."""
    summary |= {"seconds": clock.figures()["seconds"], "peak_bytes": peak_bytes()}
    run.write_card(tuning_card(options, summary))
    shutil.copyfile(run.folder / "card.md", run.folder / MODEL / "card.md")
    run.report("done", 1, 1, **clock.figures())
    write_atomically(run.folder / SUMMARY, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    return summary
