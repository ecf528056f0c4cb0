"""`python -m training tune RUN --plan`: the memory, time and disk that a tuning run takes, from a short measured probe.

The probe does what the run will do, on a few recordings, in a process of its own: what it held at most is what the run
will hold, and its times are multiplied by the counts.
"""

from __future__ import annotations

import shutil
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
from training.finetune.features import mean_frame
from training.finetune.head import Rows, divide, tune_head
from training.finetune.judge import Heard, Listener, neutral_losses, replies_beside
from training.finetune.options import TuneOptions
from training.finetune.tune import Said, head_of, notify, prosody_of, read_manifest

_PROBED = 6
_CAREFUL = 0.9
_ROW_BYTES = 8192  # a mean frame's file, and its lines in manifest and summary


def plan_tuning(options: TuneOptions) -> dict[str, Any]:
    """What `tune` with these options will take: peak_bytes, seconds, disk_bytes, whether it fits, and remedies.

    Raises:
        BadInput, WeightsMissing: as `tune` would.
    """
    if options.what != "head":
        from training.finetune.stages import plan_stages

        return plan_stages(options)
    began = psutil.Process().create_time()
    said = read_manifest(options, Report(notify))
    free = memory_of("cuda" if torch.cuda.is_available() else "cpu").free
    loaded = loader.load(options.model)
    head, engine = head_of(loaded), Engine(loaded)
    ready = time.time() - began
    seconds = {
        "load": ready,
        "listen": _listening(loaded, said),
        "fit": _fitting(head, prosody_of(loaded), said, options),
    }
    seconds["judge"] = _judging(engine, said, options)
    return outcome(options, seconds, peak_bytes(), free, _ROW_BYTES * len(said) + _tuned_bytes(options.model))


def outcome(options: TuneOptions, seconds: dict[str, float], peak: int, free: int, disk: int) -> dict[str, Any]:
    """The plan: what is needed, what there is, whether it fits and what to do if not."""
    place = next(path for path in (options.run, *options.run.absolute().parents) if path.exists())
    room = shutil.disk_usage(place).free
    remedies = []
    if peak > _CAREFUL * free:
        remedies += ["close other programs"]
        remedies += ["train the head alone"] if options.what != "head" else ["choose a smaller checkpoint"]
        remedies += ["compute fewer rows at once"] if options.what != "head" and options.rows_at_once > 1 else []
    if disk > _CAREFUL * room:
        remedies.append(f"make room on the disk of {place}")
    return {
        "peak_bytes": peak,
        "free_bytes": free,
        "disk_bytes": disk,
        "free_disk_bytes": room,
        "seconds": round(sum(seconds.values()), 1),
        "parts": {name: round(value, 2) for name, value in seconds.items()},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "fits": not remedies,
        "remedies": remedies,
    }


def _tuned_bytes(source: str) -> int:
    if loader.preset_of(source) is not None:
        return 1 << 22
    return sum(path.stat().st_size for path in Path(source).iterdir() if path.is_file())


def _some(said: list[Said]) -> list[Said]:
    """Of all lengths alike."""
    order = sorted(said, key=lambda one: one.found.samples)
    return [order[int(at)] for at in np.linspace(0, len(order) - 1, min(_PROBED, len(order)))]


def _listening(loaded: loader.Checkpoint, said: list[Said]) -> float:
    """Seconds for all recordings, by what a few take a second of sound."""
    taken, heard = 0.0, 0
    for number, one in enumerate([said[0], *_some(said)]):  # the first one warms up
        began = time.perf_counter()
        assert one.found.clip is not None
        mean_frame(loaded, read_clip(one.found.clip))
        if number:
            taken += time.perf_counter() - began
            heard += one.found.samples
    return taken * sum(one.found.samples for one in said) / heard


def _fitting(head: EmotionHead, prosody: int, said: list[Said], options: TuneOptions) -> float:
    """Seconds of the whole fit, made on frames that are chance."""
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([one.label for one in said])
    size = head.weight.shape[1]
    frames = head.centre + torch.randn(len(said), size, generator=random) * 0.1
    frames[:, :5] += torch.nn.functional.one_hot(labels, 5)  # so that there is something to be learnt
    folds, _ = divide([str(label) for label in labels.tolist()], [""] * len(said), [""] * len(said), options.folds)
    began = time.perf_counter()
    tune_head(head, head.threshold, Rows(frames, labels, np.array(folds)), prosody, options.steps)
    return time.perf_counter() - began


def _judging(engine: Engine, said: list[Said], options: TuneOptions) -> float:
    """Seconds of the comparison, by two recordings answered and one reply weighed."""
    if not engine.model.config.tells_tone:
        return 0.0
    even = torch.full((5,), 0.2)
    sad = torch.tensor([0.02, 0.02, 0.02, 0.92, 0.02])
    some = _some(said)
    rows = [Heard(one.audio, "", one.label, even, sad) for one in (some[len(some) // 2], some[len(some) // 3])]
    listener, thresholds = Listener(engine), (0.5, 0.5)
    neutral = min(options.judged, sum(one.label == 0 for one in said))
    answered = min(options.replies, len(said))
    total = 0.0
    for count, work in ((neutral, neutral_losses), (answered, replies_beside)):
        if count:
            began = time.perf_counter()
            work(listener, rows, thresholds, lambda: None)
            total += count * (time.perf_counter() - began) / len(rows)
    return total
