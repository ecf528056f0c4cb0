"""Whether a planned run fits into memory and onto the disk, and what to do if not."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from training.finetune.options import TuneOptions

_SAFE_SHARE = 0.9


def outcome(options: TuneOptions, seconds: dict[str, float], peak: int, free: int, disk: int) -> dict[str, Any]:
    """The plan: what is needed, what is available, whether it fits, and remedies."""
    place = next(path for path in (options.run, *options.run.absolute().parents) if path.exists())
    room = shutil.disk_usage(place).free
    remedies = []
    if peak > _SAFE_SHARE * free:
        remedies += ["close other programs"]
        remedies += ["train the head alone"] if options.what != "head" else ["choose a smaller checkpoint"]
        remedies += ["compute fewer rows at once"] if options.what != "head" and options.rows_at_once > 1 else []
    if disk > _SAFE_SHARE * room:
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
