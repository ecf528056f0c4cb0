"""Evaluation cases from a prepared data set or a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from assistant.events import Samples
from model.audio.features import LONGEST_SECONDS
from model.errors import BadInput
from training.data.batches import TrainingRow
from training.data.chat import Chat
from training.data.feature_cache import FeatureCache
from training.data.manifest import Report, Row, Rules, inspect, read_clip, read_rows
from training.data.prepare import PreparedRows, clip_of, row_ids
from training.runs.config import CONTINUE, PrepareOptions


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A recording with its known transcript, emotion and continuation.

    Attributes:
        transcript: its words.
        ids: tokenised; the answer is empty if no continuation is known.
        samples: mono, 16 kHz, or None if only `encoded` is available.
        encoded: [T, D] encoder states, or None.
    """

    transcript: str
    ids: TrainingRow
    samples: Samples | None
    encoded: Tensor | None = None


def read_cases(
    data: Path, chat: Chat, *, split: str = "validation", limit: int = 100, caches: Sequence[FeatureCache] = ()
) -> tuple[list[Case], dict[str, Any]]:
    """Read evaluation cases.

    Args:
        data: a prepared data set, or a manifest with audio, text, and optionally emotion, instruction and output.
        chat: to tokenise with.
        split: of the data set.
        limit: maximum number of cases, evenly chosen.
        caches: feature caches for rows without recordings.

    Returns:
        The cases, and the counts of dropped rows.

    Raises:
        BadInput: there is no case.
    """
    if data.is_dir():
        rows = PreparedRows(data, split)
        if not len(rows):
            raise BadInput(f"{data} has no {split} rows: choose another --split, or a manifest.")
        return [_prepared_case(rows, number, caches) for number in evenly_spaced(len(rows), limit)], {}
    report = Report()
    valid = list(read_rows([data], Rules(emotions="optional"), report))
    cases = []
    for number in evenly_spaced(len(valid), limit):
        row = valid[number]
        found = inspect(row, 0.1, LONGEST_SECONDS)
        if found.clip is None:
            reason, message = found.problem or ("no audio", "it has only a key")
            report.drop(row.file, row.line, reason, message)
        else:
            cases.append(Case(row.text, _ids(row, chat, data), read_clip(found.clip)))
    if not cases:
        raise BadInput(f"{data} has no usable row{report.first()}.")
    return cases, report.counts()


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Choose evenly spaced indices.

    Args:
        count: number of items.
        limit: maximum number of indices.

    Returns:
        Ascending indices from 0 to `count` - 1.
    """
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, limit))})


def _prepared_case(rows: PreparedRows, number: int, caches: Sequence[FeatureCache]) -> Case:
    row, clip = rows[number], clip_of(rows[number])
    cached = next((cache for cache in caches if row["key"] in cache), None)
    if clip is None and cached is None:
        raise BadInput(f"{row['manifest']}:{row['line']}: its speech is only in a feature cache: give --features.")
    samples = read_clip(clip) if clip is not None else None
    return Case(row["transcript"], rows.ids(number), samples, cached[row["key"]] if cached is not None else None)


def _ids(row: Row, chat: Chat, data: Path) -> TrainingRow:
    """The row's ids; without its own instruction it is to be continued, as in stage 1."""
    options = PrepareOptions.of(
        {"dataroot": data.parent, "save_dir": data.parent, "model": "", "instruction": CONTINUE}
    )
    known = "output" in row.data and isinstance(row.data["output"], str)
    ids = row_ids(replace(row, data={**row.data, "output": row.data["output"] if known else ""}), chat, options)
    return ids if known else replace(ids, answer=[])
