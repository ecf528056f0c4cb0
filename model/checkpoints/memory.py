"""Free memory of a GPU or this machine, memory of this process, and returning freed memory to the system."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

CUDA_CONTEXT_BYTES = 600 << 20
"""Assumed, not measured: the CUDA context with its kernels and the workspace of cuBLAS."""

CPU_WORKSPACE_BYTES = 80 << 20
"""Assumed: the tokenizer, thread stacks, and libraries' workspaces."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A device's memory in bytes.

    Attributes:
        program: what this process needs besides a model: code and libraries, or the CUDA context.
        held: the part of it that the process has already.
        free: free memory, without swap space.
        swap: free swap space.
    """

    program: int
    held: int
    free: int
    swap: int = 0


def memory_of(device: str) -> Memory:
    """The memory of a device now.

    Args:
        device: "cpu" or "cuda".

    Returns:
        Program, held and free memory.
    """
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()  # this call creates the context, so it is no longer counted as free
        return Memory(CUDA_CONTEXT_BYTES, CUDA_CONTEXT_BYTES, free)
    held = psutil.Process().memory_info().rss
    left = min(psutil.virtual_memory().available, group_available())
    return Memory(held + CPU_WORKSPACE_BYTES, held, int(left), psutil.swap_memory().free)


def peak_bytes() -> int:
    """Peak memory of this process, file pages included.

    Returns:
        Bytes; the current value where the system does not report a peak.
    """
    status = Path("/proc/self/status")  # Linux; ru_maxrss begins with a parent's
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text("utf-8"))):
        return 1024 * int(peak[1])
    return int(psutil.Process().memory_info().rss)


def group_available(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes left under the limits of this process's control groups (containers), which psutil does not see.

    Reads version 2 at `root`, every group from the process's own up, and version 1 as seen in a container. Infinite if
    there is no limit.
    """
    if not own.is_file():
        return math.inf
    path = next((line[3:] for line in own.read_text("utf-8").splitlines() if line.startswith("0::")), "/")
    group, old = root / path.strip("/"), root / "memory"
    groups = [one for one in (group, *group.parents) if one.is_relative_to(root)]
    left = [_left(one, "memory.max", "memory.current", "inactive_file") for one in groups]
    return min(*left, _left(old, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))


def _left(group: Path, limit: str, used: str, reclaimable: str) -> float:
    try:
        most, now = ((group / name).read_text("utf-8").strip() for name in (limit, used))
        files = dict(line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines())
        return math.inf if most == "max" else max(0, int(most) - int(now) + int(files.get(reclaimable, 0)))
    except (OSError, ValueError):
        return math.inf


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # mallopt's constants
_LOADING, _RUNNING = 1 << 20, 32 << 20  # bytes from which a block has its own mapping; 32 MiB is glibc's upper limit


@contextmanager
def returning_freed_blocks() -> Iterator[None]:
    """Within this context, glibc returns freed blocks of 1 MiB and more to the system.

    By default it keeps the gaps that wide layers leave between the narrow ones made of them: mini in int8 then holds
    1610 MiB after loading instead of 718. Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LOADING)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _RUNNING)
        mallopt(_TRIM_THRESHOLD, 2 * _RUNNING)
