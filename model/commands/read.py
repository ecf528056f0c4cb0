"""The command `read`: emotion readings of recordings without replies or transcripts.

Only the encoder and the emotion head are loaded. Several recordings are read in parallel, each on its own thread: torch
and the audio decoders release Python's lock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from assistant.events import SAMPLE_RATE, UNSURE, EmotionReading
from model.audio.files import read_audio
from model.checkpoints.emotion_loader import load_emotion
from model.commands.options import downloads, quiet_libraries
from model.commands.read_table import ReadTable, digest
from model.errors import BadInput, NothingHeard
from model.inference.emotion_reader import EmotionReader

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
"""Suffixes of recordings in a folder."""

Result = dict[str, Any]
"""A JSON line of `read`: file, duration_seconds, reading, why. Without duration, the file could not be read."""

_MOST_WORKERS = 8


def describe(reading: EmotionReading | None, why: str | None, *, contributions: bool = True) -> Result:
    """The fields `reading` and `why` of a JSON line of `read` and `ask`.

    Args:
        reading: None if there is none.
        why: why there is no reading.
        contributions: include the fields `contributions` and `offset`, which explain the reading over time.
    """
    if reading is None:
        return {"reading": None, "why": why}
    values = reading.as_dict()
    values.setdefault("candidates", UNSURE if reading.label == UNSURE else [reading.label])
    order = ["label", "confidence", "probabilities", "candidates", "frame_seconds"]
    order += ["contributions", "offset"] if contributions else []
    return {"reading": {name: values[name] for name in order}, "why": None}


def in_words(reading: EmotionReading | None, why: str | None, *, estimate: bool) -> str:
    """Describe a reading in words.

    Args:
        reading: None if there is none.
        why: why there is no reading.
        estimate: whether it comes from a head on encoder frames and prosody, which the user is told each time.
    """
    if reading is None:
        return f"no reading: {why}"
    remark = " (a prosody estimate)" if estimate else ""
    if len(reading.candidates) == 2:
        return f"sounds {' or '.join(reading.candidates)}{remark}"
    if reading.label == UNSURE:
        return f"unsure, closest to {reading.strongest} with {reading.confidence:.0%}{remark}"
    return f"sounds {reading.label}, {reading.confidence:.0%}{remark}"


@dataclass(slots=True)
class _Totals:
    """Counts for the exit code and the summary."""

    files: int = 0
    failed: int = 0
    without: int = 0
    audio_seconds: float = 0.0
    loading_seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def count(self, result: Result) -> None:
        self.files += 1
        self.failed += result["duration_seconds"] is None
        self.without += result["duration_seconds"] is not None and result["reading"] is None
        self.audio_seconds += result["duration_seconds"] or 0.0

    def __str__(self) -> str:
        seconds = max(time.perf_counter() - self.began, 1e-6)
        figures = (
            f"{self.files} recordings, {self.audio_seconds:.1f} s of audio, read in {seconds:.1f} s "
            f"({self.audio_seconds / seconds:.1f} times real time) after {self.loading_seconds:.1f} s of loading"
        )
        return f"{figures}; {self.without} without a reading, {self.failed} could not be read"


def run(
    given: Sequence[Path],
    *,
    model: str = "mini",
    device: str = "auto",
    quantize: str = "auto",
    reading: str | None = None,
    baseline: Sequence[Path] = (),
    as_json: bool = False,
    table: Path | None = None,
    contributions: bool = True,
) -> int:
    """Read recordings and folders of them in order; print or write each result at once.

    Args:
        given: recordings, and folders to search for them.
        model: as `load_emotion`.
        device: as `load_emotion`.
        quantize: as `load_emotion`.
        reading: as `load_emotion`.
        baseline: recordings of the speaker's normal voice.
        as_json: print JSON lines.
        table: a CSV file to add the results to, instead of printing them; recordings in it are not read again unless
            they have changed.
        contributions: include the contributions over time in JSON lines.

    Returns:
        0, or 2 if a recording could not be read; each of these is reported on stderr.

    Raises:
        BadInput: there is nothing to read, or the baseline or the table cannot be used.
        WeightsMissing: as `load_emotion`.
    """
    if not given:
        raise BadInput("Nothing to read: give recordings or folders (before --baseline, which takes what follows).")
    if table is not None and (table.is_dir() or not os.access(table.resolve().parent, os.W_OK)):
        raise BadInput(f"{table} cannot be written: choose an existing folder with write permission.")
    files = list(recordings(given))
    quiet_libraries()
    totals = _Totals()
    with downloads() as progress:
        loaded = load_emotion(model, device=device, quantize=quantize, reading=reading, progress=progress)
    reader = EmotionReader(loaded.model, loaded.extractor)
    if baseline and loaded.model.emotion_head is not None:
        reader.baseline = reader.mean_of(map(read_audio, recordings(baseline)))
    totals.loading_seconds, totals.began = time.perf_counter() - totals.began, time.perf_counter()
    estimate = loaded.model.config.emotion_source == "encoder"
    if table is None:
        show = _json_line if as_json else lambda *judged: _line(*judged, estimate=estimate)
        for result, found in _read_all(reader, files, totals, contributions):
            sys.stdout.write(show(result, found))
            sys.stdout.flush()
    else:
        with ReadTable(table, f"{loaded.name} {digest(reader, loaded.quantize)}") as rows:
            left = rows.unread(files)
            failed_before = rows.failed(files)
            for result, _ in _read_all(reader, left, totals, contributions=False):
                rows.add(result)
            totals.failed += failed_before
            sys.stderr.write(f"{len(files)} recordings in {table}, {len(files) - len(left)} of them read before\n")
    if totals.files > 1:
        sys.stderr.write(f"{totals}\n")
    return 2 if totals.failed else 0


def recordings(given: Iterable[Path]) -> Iterator[Path]:
    """Recordings among the files, and below the folders, sorted by name; a folder without any is yielded itself."""
    for path in given:
        if not path.is_dir():
            yield path
            continue
        found = False
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    found = True
                    yield Path(folder, name)
        if not found:
            yield path


def read_one(reader: EmotionReader, path: Path, *, contributions: bool = True) -> tuple[Result, EmotionReading | None]:
    """Read one recording; one that cannot be read has `why` and no duration."""
    result: Result = {"file": str(path), "duration_seconds": None}
    try:
        if path.is_dir():
            raise BadInput(f"{path}: no recording in it ({', '.join(SUFFIXES)})")
        samples = read_audio(path)
    except NothingHeard as error:
        return result | {"duration_seconds": round(error.seconds, 3)} | describe(None, _reason(error, path)), None
    except BadInput as error:
        return result | describe(None, _reason(error, path)), None
    reading, why = reader.read(samples)
    result["duration_seconds"] = round(len(samples) / SAMPLE_RATE, 3)
    return result | describe(reading, why, contributions=contributions), reading


def _reason(error: BadInput, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _read_all(
    reader: EmotionReader, files: Sequence[Path], totals: _Totals, contributions: bool
) -> Iterator[tuple[Result, EmotionReading | None]]:
    """All results in order, with a progress bar on stderr unless the results themselves go to the terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("read"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console.is_terminal and not sys.stdout.isatty() and len(files) > 1
    # Standard output is for results only: the bar must not capture it.
    with Progress(*columns, console=console, disable=not shown, transient=True, redirect_stdout=False) as bars:
        task = bars.add_task("read", total=len(files))
        for result, reading in _in_order(lambda path: read_one(reader, path, contributions=contributions), files):
            totals.count(result)
            if result["duration_seconds"] is None:
                sys.stderr.write(f"{_shown(result['file'])}: {result['why']}\n")
            yield result, reading
            bars.advance(task)


def _in_order(
    work: Callable[[Path], tuple[Result, EmotionReading | None]], files: Sequence[Path]
) -> Iterator[tuple[Result, EmotionReading | None]]:
    """The results of `work` for each file, in order, several at a time and only a few ahead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores, len(files), _MOST_WORKERS))
    waiting: deque[Future[tuple[Result, EmotionReading | None]]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, cores // workers),))
    try:
        for path in files:
            waiting.append(pool.submit(work, path))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _json_line(result: Result, _: EmotionReading | None) -> str:
    return json.dumps(result, ensure_ascii=False) + "\n"


def _line(result: Result, reading: EmotionReading | None, *, estimate: bool) -> str:
    if result["duration_seconds"] is None:
        return ""  # it is reported on stderr
    words = in_words(reading, result["why"], estimate=estimate)
    return f"{_shown(result['file'])}  ({result['duration_seconds']:.1f} s)  {words}\n"


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)
