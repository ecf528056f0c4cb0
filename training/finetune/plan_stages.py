"""The plan of a tuning run that trains stages: labelling, some passes and the comparison, measured on few examples."""

from __future__ import annotations

import gc
import json
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch

from assistant.events import Spoken
from model.checkpoints.memory import memory_of, peak_bytes
from model.files import write_atomically
from training.data.eval_cases import read_cases
from training.data.manifest import Report
from training.evaluation.evaluate import Subject
from training.finetune.examples import print_dropped, read_examples
from training.finetune.options import TuneOptions
from training.finetune.resources import outcome
from training.finetune.stages import CASES, examine_side, prepare_stage, stages_of, train_options
from training.stages.cost_estimate import plan

_PROBED_ROWS = 8


def plan_stages(options: TuneOptions) -> dict[str, Any]:
    """As `training.finetune.plan.plan_tuning`, for stages.

    Raises:
        BadInput, WeightsMissing: as `tune_stages` would.
    """
    began = psutil.Process().create_time()
    stages = stages_of(options)
    examples = read_examples(options, Report(print_dropped))
    free = memory_of("cuda" if torch.cuda.is_available() else "cpu").free
    probe = options.run.with_name(f".{options.run.name}.probe")
    shutil.rmtree(probe, ignore_errors=True)
    probe.mkdir(parents=True)
    try:
        some = examples[:: max(1, len(examples) // _PROBED_ROWS)][:_PROBED_ROWS]
        lines = [json.dumps({**one.row.data, "audio": str(one.audio)}, ensure_ascii=False) + "\n" for one in some]
        write_atomically(probe / "manifest.jsonl", "".join(lines))
        small = options.model_copy(
            update={"run": probe, "manifest": probe / "manifest.jsonl", "validation": 0.3, "replies": 1}
        )
        seconds, share, disk, peak = {"load": time.time() - began}, len(examples) / len(some), 0, 0
        for stage in stages:
            start = time.perf_counter()
            data = prepare_stage(small, probe, stage, lambda _: nullcontext())
            seconds[f"label {stage}"] = share * (time.perf_counter() - start)
            gc.collect()  # the labelling model is still referenced by its own cycles
            start = time.perf_counter()
            measured = plan(train_options(small, probe, stage, options.model, data))
            loading = time.perf_counter() - start
            seconds[f"stage {stage}"] = 3600 * measured.get("hours", 0.0) + loading
            peak = max(peak, measured.get("peak_bytes", measured["weights_bytes"] + measured["needed_bytes"]))
            gc.collect()
            disk += 3 * measured["checkpoint_bytes"] + _folder_bytes(Path(options.model))
        seconds["judge"] = _judging(small, probe / f"data-{stages[-1]}", options, len(examples))
        return outcome(options, seconds, max(peak, peak_bytes()), free, disk)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _judging(small: TuneOptions, data: Path, options: TuneOptions, rows: int) -> float:
    start = time.perf_counter()
    subject = Subject.load(options.model)
    loading = time.perf_counter() - start
    cases, _ = read_cases(data, subject.writer.chat, split="train", limit=2)
    start = time.perf_counter()
    examine_side(subject, cases, small.model_copy(update={"replies": 0}), lambda: None)
    each = (time.perf_counter() - start) / len(cases)
    start = time.perf_counter()
    assert cases[0].samples is not None
    "".join(subject.engine.reply([], Spoken(cases[0].samples)))
    answer = time.perf_counter() - start
    held = min(CASES, round(options.validation * rows))
    return 2 * (loading + held * each + min(options.replies, held) * answer)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
