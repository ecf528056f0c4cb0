"""`python -m training tune RUN --plan`: memory, time and disk space of a tuning run, from a short measured probe.

The probe does what the run will do, on a few recordings, in its own process: its peak memory is the run's, and its
times are multiplied by the counts.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from model.checkpoints import loader
from model.checkpoints.memory import memory_of, peak_bytes
from model.inference.engine import Engine
from model.nn.emotion import EmotionHead
from training.data.manifest import Report, read_clip
from training.finetune.examples import Example, print_dropped, read_examples
from training.finetune.features import copy_head, mean_frame, prosody_size
from training.finetune.head import Rows, assign_folds, tune_head
from training.finetune.judge import ComparedReading, FixedReadingEngine, compare_replies, neutral_losses
from training.finetune.options import TuneOptions
from training.finetune.resources import outcome

_PROBED = 6
_ROW_BYTES = 8192  # a mean frame's file, and its lines in manifest and summary


def plan_tuning(options: TuneOptions) -> dict[str, Any]:
    """Plan the run that `tune` with these options would do.

    Args:
        options: of `tune`.

    Returns:
        peak_bytes, seconds, disk_bytes, whether it fits, and remedies.

    Raises:
        BadInput: as `tune`.
        WeightsMissing: as `tune`.
    """
    if options.what != "head":
        from training.finetune.plan_stages import plan_stages

        return plan_stages(options)
    began = psutil.Process().create_time()
    examples = read_examples(options, Report(print_dropped))
    free = memory_of("cuda" if torch.cuda.is_available() else "cpu").free
    loaded = loader.load(options.model)
    head, engine = copy_head(loaded), Engine(loaded)
    ready = time.time() - began
    seconds = {
        "load": ready,
        "listen": _listening(loaded, examples),
        "fit": _fitting(head, prosody_size(loaded), examples, options),
    }
    seconds["judge"] = _judging(engine, examples, options)
    return outcome(options, seconds, peak_bytes(), free, _ROW_BYTES * len(examples) + _tuned_bytes(options.model))


def _tuned_bytes(source: str) -> int:
    if loader.preset_of(source) is not None:
        return 1 << 22
    return sum(path.stat().st_size for path in Path(source).iterdir() if path.is_file())


def _some(examples: list[Example]) -> list[Example]:
    """Some examples, of all lengths."""
    order = sorted(examples, key=lambda one: one.found.samples)
    return [order[int(at)] for at in np.linspace(0, len(order) - 1, min(_PROBED, len(order)))]


def _listening(loaded: loader.Checkpoint, examples: list[Example]) -> float:
    """Seconds for all recordings, extrapolated from a few."""
    taken, heard = 0.0, 0
    for number, one in enumerate([examples[0], *_some(examples)]):  # the first one is a warm-up
        began = time.perf_counter()
        assert one.found.clip is not None
        mean_frame(loaded, read_clip(one.found.clip))
        if number:
            taken += time.perf_counter() - began
            heard += one.found.samples
    return taken * sum(one.found.samples for one in examples) / heard


def _fitting(head: EmotionHead, prosody: int, examples: list[Example], options: TuneOptions) -> float:
    """Seconds of the whole fit, measured with random frames."""
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([one.label for one in examples])
    size = head.weight.shape[1]
    frames = head.centre + torch.randn(len(examples), size, generator=random) * 0.1
    frames[:, :5] += torch.nn.functional.one_hot(labels, 5)  # so that there is something to learn
    folds, _ = assign_folds(
        [str(label) for label in labels.tolist()], [""] * len(examples), [""] * len(examples), options.folds
    )
    began = time.perf_counter()
    tune_head(head, head.threshold, Rows(frames, labels, np.array(folds)), prosody, options.steps)
    return time.perf_counter() - began


def _judging(engine: Engine, examples: list[Example], options: TuneOptions) -> float:
    """Seconds of the comparison, measured with two recordings."""
    if not engine.model.config.tells_tone:
        return 0.0
    even = torch.full((5,), 0.2)
    sad = torch.tensor([0.02, 0.02, 0.02, 0.92, 0.02])
    some = _some(examples)
    rows = [
        ComparedReading(one.audio, "", one.label, even, sad) for one in (some[len(some) // 2], some[len(some) // 3])
    ]
    listener, thresholds = FixedReadingEngine(engine), (0.5, 0.5)
    neutral = min(options.judged, sum(one.label == 0 for one in examples))
    answered = min(options.replies, len(examples))
    total = 0.0
    for count, work in ((neutral, neutral_losses), (answered, compare_replies)):
        if count:
            began = time.perf_counter()
            work(listener, rows, thresholds, lambda: None)
            total += count * (time.perf_counter() - began) / len(rows)
    return total
