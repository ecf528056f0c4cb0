"""`python -m training bench`: the speedup of cached features and of grouping rows of similar length.

The same steps in four ways, in turn, so that a busy machine slows down all of them: encoder states computed or cached,
rows in random order or by length. A step is reading its rows, forward and backward of every batch, AdamW. If other
processes use the CPU too, the ratio of process times is more reliable than that of wall-clock times.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from training.data.batches import collate
from training.data.dataset import SpeechRows, StepOrder
from training.data.prepare import PreparedRows
from training.data.sources import model_folder
from training.runs.config import TrainOptions
from training.stages.student import Student, load_student
from training.stages.train import speech_rows
from training.stages.trainer import to_device

_WARM_UP = 1


def bench(
    checkpoint: str, data: Path, *, stage: int = 1, steps: int = 4, size: int = 32, at_once: int = 8
) -> dict[str, Any]:
    """Throughput of the four ways and the ratio of the last to the first; the cache is filled before.

    Raises:
        BadInput: as `train`.
        WeightsMissing: as `train`.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = {"data": data, "model": checkpoint, "run": folder, "stage": stage, "rows_at_once": at_once}
        plain = TrainOptions.of(given)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        student = load_student(plain, model_folder(checkpoint), device)
        prepared = PreparedRows(data, "train")
        rows, _ = speech_rows(plain, student, prepared)
        began = time.perf_counter()
        cached, _ = speech_rows(plain.model_copy(update={"features": (f"{folder}/cache",)}), student, prepared)
        filling = time.perf_counter() - began
        ways = {
            "uncached": (rows, False),
            "uncached_by_length": (rows, True),
            "cached": (cached, False),
            "cached_by_length": (cached, True),
        }
        spent = _measure(student, ways, steps, size, at_once, device)
    rates = {
        f"samples_per_second_{name}": size / statistics.median(wall for wall, _ in times)
        for name, times in spent.items()
    }
    busy = {name: statistics.median(own for _, own in times) for name, times in spent.items()}
    return {
        "device": device,
        "precision": "bf16" if student.half else "fp32",
        "stage": stage,
        "window": student.config.window,
        "rows": len(prepared),
        "batch_size": size,
        "rows_at_once": at_once,
        "steps": steps,
        **rates,
        "ratio": rates["samples_per_second_cached_by_length"] / rates["samples_per_second_uncached"],
        "ratio_cache_alone": rates["samples_per_second_cached"] / rates["samples_per_second_uncached"],
        "ratio_length_alone": rates["samples_per_second_uncached_by_length"] / rates["samples_per_second_uncached"],
        "ratio_processor_time": busy["uncached"] / busy["cached_by_length"],
        "cache_seconds": filling,
    }


def _measure(
    student: Student, ways: dict[str, tuple[SpeechRows, bool]], steps: int, size: int, at_once: int, device: str
) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and process seconds of each step, by way."""
    recipe = student.recipe.train()
    optimiser = torch.optim.AdamW(recipe.trained().values(), 1e-5)
    orders = {
        name: iter(StepOrder(rows.lengths, size, steps + _WARM_UP, 0, by_length=by_length))
        for name, (rows, by_length) in ways.items()
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(steps + _WARM_UP):
        for name, (rows, _) in ways.items():
            numbers = list(islice(orders[name], size))
            began, own = time.perf_counter(), time.process_time()
            for start in range(0, size, at_once):
                batch = collate([rows[number] for number in numbers[start : start + at_once]])
                with torch.autocast(device, torch.bfloat16, enabled=student.half):
                    recipe(to_device(batch, torch.device(device)))["loss"].backward()
            optimiser.step()
            optimiser.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
            spent[name].append((time.perf_counter() - began, time.process_time() - own))
    return {name: times[_WARM_UP:] for name, times in spent.items()}
