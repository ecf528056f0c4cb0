"""`python -m training plan`: memory and time of a training run, from a few measured passes.

Memory is computed (`training.stages.footprint`) and, if it fits, measured; time is that of whole passes over short,
medium and long rows.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from model.checkpoints.memory import CUDA_CONTEXT_BYTES, peak_bytes
from training.data.batches import collate
from training.data.dataset import SpeechRows
from training.data.prepare import PreparedRows
from training.data.sources import model_folder
from training.runs.config import TrainOptions
from training.stages.footprint import footprint
from training.stages.student import Recipe, load_student
from training.stages.train import plan_steps, speech_rows
from training.stages.trainer import to_device

_QUANTILES = (0.1, 0.5, 1.0)  # the longest rows determine the peak


def plan(options: TrainOptions) -> dict[str, Any]:
    """Plan the run that `train` with the same options would do.

    Args:
        options: of `train`.

    Returns:
        Figures per process. "needed_bytes" is computed, in addition to the weights and what is already loaded;
            "peak_bytes" is the most that this process held in the measured passes, plus the optimiser.

    Raises:
        BadInput: as `train`.
        WeightsMissing: as `train`.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    prepared = PreparedRows(options.data, "train")
    steps = plan_steps(options, len(prepared), processes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = load_student(options, model_folder(options.model), device)
    rows, validation = speech_rows(options, student, prepared)
    order = sorted(range(len(rows)), key=lambda number: rows.lengths[number])
    figures = {
        "device": device,
        "processes": processes,
        "precision": "bf16" if student.half else "fp32",
        "quantize": options.quantize,
        "rows": len(rows),
        "steps": steps.count,
        "batch_size": steps.size,
        "rows_at_once": steps.rows,
        "accumulated": steps.times,
        **footprint(options, student, [rows[number] for number in order[-steps.rows :]], device),
    }
    if figures["needed_bytes"] > figures["free_bytes"]:  # measuring would crash this process
        return figures
    seconds, reading = _pace(student.recipe, rows, order, steps.rows, student.half, device)
    checks = -(-steps.count // options.validate_every)
    spent = steps.count * steps.times * seconds + checks * reading * -(-len(validation) // steps.rows)
    return figures | {
        "peak_bytes": _peak(device) + 2 * 4 * figures["trained_parameters"],
        "seconds_per_step": steps.times * seconds,
        "samples_per_second": steps.rows * processes / seconds,
        "hours": spent / 3600,
    }


def _peak(device: str) -> int:
    """Peak bytes of this process (its present bytes where the system reports no peak), or of the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() + CUDA_CONTEXT_BYTES
    return peak_bytes()


def _pace(
    recipe: Recipe, rows: SpeechRows, order: list[int], size: int, half: bool, device: str
) -> tuple[float, float]:
    """Seconds of a batch's training pass with its reading from disk, and of its validation pass."""
    spent, checked = [], []
    for quantile in (_QUANTILES[0], *_QUANTILES):  # the first one is a warm-up
        start = min(int(quantile * len(order)), max(0, len(order) - size))
        began = time.perf_counter()
        batch = to_device(collate([rows[number] for number in order[start : start + size]]), torch.device(device))
        with torch.autocast(device, torch.bfloat16, enabled=half):
            recipe.train()(batch)["loss"].backward()
        _synchronize(device)
        spent.append(time.perf_counter() - began)
        recipe.zero_grad()
        began = time.perf_counter()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
            recipe.eval()(batch)
        _synchronize(device)
        checked.append(time.perf_counter() - began)
    return sum(spent[1:]) / len(_QUANTILES), sum(checked[1:]) / len(_QUANTILES)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
