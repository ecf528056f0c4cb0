"""The trainer's own checkpoints: `checkpoint-N` folders that are verified before a run resumes from them.

In addition to the trainer's files each has `sums.json`, the size and CRC-32 of all of them, written last.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Container
from pathlib import Path
from typing import Any

from model.files import write_atomically
from training.runs.run_folder import checkpoints

SUMS, STATE, WEIGHTS = "sums.json", "trainer_state.json", "model.safetensors"
_BLOCK = 1 << 20


def write_checksums(checkpoint: Path) -> None:
    """Write the checksums of an otherwise complete checkpoint.

    Args:
        checkpoint: its folder.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SUMS)
    sums = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _sum(path)] for path in files}
    write_atomically(checkpoint / SUMS, json.dumps(sums, indent=2) + "\n")


def damage_in(checkpoint: Path) -> str | None:
    """Verify a checkpoint.

    Args:
        checkpoint: its folder.

    Returns:
        What is wrong with it, in one phrase; None if it is intact.
    """
    try:
        sums = json.loads((checkpoint / SUMS).read_text("utf-8"))
        for name, (size, crc) in sums.items():
            if (checkpoint / name).stat().st_size != size or _sum(checkpoint / name) != crc:
                return f"{name} is damaged"
        return None if WEIGHTS in sums and STATE in sums else "it is not complete"
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        return "it is incomplete" if missing == SUMS else f"{missing} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """Find the newest intact checkpoint of a run.

    Args:
        run: the run folder.

    Returns:
        The checkpoint, or None, and one line for each newer one that is not intact.
    """
    unfinished = {path for path in run.glob("checkpoint-*") if path.is_dir()} - set(checkpoints(run))
    problems = [f"{path}: it is incomplete and is skipped." for path in sorted(unfinished)]
    for path in reversed(checkpoints(run)):
        problem = damage_in(path)
        if problem is None:
            return path, problems
        problems.append(f"{path}: {problem}; the previous one is used.")
    return None, problems


def prune(run: Path, keep: int, protected: Container[Path]) -> None:
    """Remove all but the newest `keep` checkpoints and the protected ones.

    Args:
        run: the run folder.
        keep: how many to keep.
        protected: checkpoints to keep in any case.
    """
    for path in checkpoints(run)[:-keep]:
        if path not in protected:
            shutil.rmtree(path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the trainer's state of a checkpoint.

    Args:
        checkpoint: its folder.

    Returns:
        global_step, best_global_step, best_metric, ...
    """
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text("utf-8"))
    return state


def _sum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
