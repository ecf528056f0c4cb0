"""A report on what this machine has for running the model."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import psutil
import torch

from model.checkpoints.loader import inspect, presets
from model.checkpoints.memory_plan import plan
from model.errors import ModelError
from model.weights.packages import load_manifest
from model.weights.store import complete, home

VERSIONS = ("torch", "transformers", "bitsandbytes", "accelerate", "numpy", "PySide6-Essentials", "pyttsx3")
ESSENTIAL = ("torch", "transformers", "numpy")
_GIB = 1 << 30
_LEAST_MEMORY = 2 * _GIB  # mini with its recogniser, loaded
_LEAST_DISK = 1 * _GIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was checked; a key in the JSON report.
        value: what was found.
        remedy: what to do about it; None if all is well.
        essential: whether not even the mini model runs without it.
    """

    name: str
    value: str
    remedy: str | None = None
    essential: bool = False


def findings() -> list[Finding]:
    """Check versions, devices, memory, disk and weights.

    Returns:
        The report.
    """
    return [
        Finding("python", platform.python_version()),
        *(_version(name) for name in VERSIONS),
        _cpu(),
        _gpu(),
        _memory(),
        _disk(),
        *_weights(),
    ]


def _version(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", f"Run: python -m pip install {name}", essential=name in ESSENTIAL)


def _cpu() -> Finding:
    return Finding("cpu", f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}")


def _gpu() -> Finding:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding("gpu", f"{torch.cuda.get_device_name()}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")
    if torch.version.cuda is None:
        why = "this torch is built for the CPU only"
    elif shutil.which("nvidia-smi") is None:
        why = "no NVIDIA driver was found"
    else:
        why = "the NVIDIA driver does not respond (see nvidia-smi)"
    return Finding("gpu", f"none: {why}", "The mini model needs none; the released BLSP-Emo needs one with 12 GB.")


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    short = free < _LEAST_MEMORY
    remedy = "Close other programs: the mini model needs 2 GiB." if short else None
    return Finding("memory", f"{free / _GIB:.1f} GiB free", remedy, essential=short)


def _disk() -> Finding:
    free = shutil.disk_usage(home()).free
    short = free < _LEAST_DISK
    remedy = "Free 1 GiB there, or move it with the variable UNDERTONE_HOME." if short else None
    return Finding("disk", f"{free / _GIB:.1f} GiB free at {home()}", remedy, essential=short)


def _weights() -> list[Finding]:
    report = []
    for name, preset in presets().items():
        parts = [preset["speech"], preset["text"]]
        manifest = load_manifest()
        accepted = {part: [source.key for source in manifest[part].sources] for part in parts}
        missing = [part for part in parts if not complete(home() / "models" / part, accepted[part])]
        megabytes = sum(one.size for part in missing for one in manifest[part].sources[0].packages) / 1e6
        report.append(
            Finding(
                f"model {name}",
                f"not downloaded yet: {', '.join(missing)}" if missing else "ready",
                f"The first `undertone ask --model {name}` downloads {megabytes:.0f} MB." if missing else None,
            )
        )
    return report


def about(source: str) -> list[Finding]:
    """Describe a checkpoint and how it fits this machine, without loading it.

    Args:
        source: a preset or a checkpoint folder.

    Returns:
        The report.
    """
    try:
        found = inspect(source)
        made = plan(found)
    except ModelError as error:
        return [Finding("model", source, str(error), essential=True)]
    best = made.recommended
    head = any(weight.part == "emotion_head" for weight in found.weights)
    read = "reads emotion" if head or found.preset else "no emotion head: no reading is shown until one is fitted"
    if best is None:
        return [Finding("model", f"{source}; {read}", made.remedy, essential=True)]
    return [
        Finding("model", f"{source}; {read}"),
        Finding("fits as", f"{best.quantize} on {best.device} with {made.context} positions of conversation"),
    ]


def as_dict(report: Sequence[Finding]) -> dict[str, dict[str, str | None]]:
    """The report as JSON values.

    Args:
        report: from `findings` or `about`.

    Returns:
        The object that `doctor --json` prints.
    """
    return {one.name: {"value": one.value, "remedy": one.remedy} for one in report}


def lines(report: Sequence[Finding]) -> Iterator[str]:
    """The report as text; findings with a remedy are marked.

    Args:
        report: from `findings` or `about`.

    Yields:
        Lines.
    """
    width = max(len(one.name) for one in report)
    for one in report:
        yield f"{'!' if one.remedy else ' '} {one.name:{width}}  {one.value}"
        if one.remedy:
            yield f"  {'':{width}}  -> {one.remedy}"
