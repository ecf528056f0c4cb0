"""Memory plan of a checkpoint: what it needs on a GPU or CPU, and whether it fits, before anything is loaded.

Sizes come from config.json and the headers of the weight files. The need is the larger of two peaks: loading (a CPU
converts 32-bit weights to 8 bits) and answering (weights, KV cache, activations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.checkpoints.inventory import Source
from model.checkpoints.memory import Memory, memory_of
from model.config import head_size
from model.errors import BadInput, WeightsMissing
from model.nn.nf4 import MODES

LEAST_CONTEXT = 1024
"""Minimum context: prompt, utterance and reply. Loading requires only this much."""

RECOGNISER_BYTES = 245_000_000
"""whisper-base, the recogniser of folders on the CPU: its encoder in 32 bits, its decoder in 8."""

_CONTEXT_STEP = 256
_WINDOW = 1500  # encoder frames of 30 s
_PREFILL = 256  # positions per chunk of a prompt
_QUANTIZING = {
    ("cpu", "int8"): 5,
    ("cpu", "nf4"): 20,
    ("cpu", "nf4-all"): 20,
    ("cuda", "nf4"): 4,
    ("cuda", "nf4-all"): 4,
}
"""Bytes per weight of the layer being quantized: copies and codes."""
_MARGIN = 1.05  # "fits" leaves this margin
_DOUBT = 0.9  # a load is not refused if this share of the estimate is free

PREFERENCE = (
    ("cuda", "nf4"), ("cuda", "nf4-all"), ("cuda", "none"),
    ("cpu", "int8"), ("cpu", "none"), ("cpu", "nf4"), ("cpu", "nf4-all"),
)  # fmt: skip
"""Every way to load a checkpoint, best first. On a GPU 4 bits come first: they are read faster than 16."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one way to load a checkpoint needs. All figures in bytes.

    Attributes:
        device: "cpu" or "cuda".
        quantize: the mode.
        context: positions of conversation.
        parts: weights by part, loaded.
        load: peak of loading.
        mapped: pages of files that a CPU maps in addition meanwhile; the system reclaims them when it needs them.
        cache: the KV cache at `context` positions.
        activations: needed in addition while answering.
        memory: the device's memory now.
    """

    device: str
    quantize: str
    context: int
    parts: dict[str, int]
    load: int
    mapped: int
    cache: int
    activations: int
    memory: Memory

    @property
    def total(self) -> int:
        """Peak memory of the process on this device."""
        return self.memory.program + max(self.load + self.mapped, self._answering)

    @property
    def needed(self) -> int:
        """Memory that must be free, in addition to what the process holds."""
        return self.memory.program - self.memory.held + max(self.load, self._answering)

    @property
    def _answering(self) -> int:
        return sum(self.parts.values()) + self.cache + self.activations

    @property
    def verdict(self) -> str:
        """The verdict: "fits", "tight" (it may run, or swap) or "does not fit"."""
        if _MARGIN * self.needed <= self.memory.free:
            return "fits"
        return "tight" if _DOUBT * self.needed <= self.memory.free + self.memory.swap else "does not fit"

    def as_dict(self) -> dict[str, Any]:
        """One object of `plan --json`."""
        return {
            "device": self.device,
            "quantize": self.quantize,
            "verdict": self.verdict,
            "weights_bytes": self.parts,
            "kv_cache_bytes": self.cache,
            "activations_bytes": self.activations,
            "load_peak_bytes": self.load,
            "mapped_bytes": self.mapped,
            "program_bytes": self.memory.program,
            "total_bytes": self.total,
            "needed_bytes": self.needed,
            "held_bytes": self.memory.held,
            "free_bytes": self.memory.free,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The ways to load a checkpoint, best first.

    Attributes:
        name: of the checkpoint.
        context: positions of conversation.
        estimates: one per way.
        remedy: what to do if none fits.
    """

    name: str
    context: int
    estimates: tuple[Estimate, ...]
    remedy: str | None

    @property
    def recommended(self) -> Estimate | None:
        """The best way that fits, otherwise the best that may fit; None if nothing does."""
        return _best(self.estimates)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values.

        Returns:
            The object that `plan --json` prints.
        """
        best = self.recommended
        return {
            "model": self.name,
            "context_positions": self.context,
            "estimates": [one.as_dict() for one in self.estimates],
            "recommended": None if best is None else {"device": best.device, "quantize": best.quantize},
            "remedy": self.remedy,
        }

    def table(self) -> Iterator[str]:
        """The plan as text, in GB of 10^9 bytes.

        Yields:
            Lines.
        """
        parts = list(dict.fromkeys(part for one in self.estimates for part in one.parts))
        titles = [
            "device",
            "quantize",
            *parts,
            "KV cache",
            "at work",
            "loading",
            "program",
            "peak",
            "needed",
            "free",
            "",
        ]
        rows = []
        for one in self.estimates:
            sizes = [one.parts.get(part, 0) for part in parts]
            sizes += [one.cache, one.activations, one.load, one.memory.program, one.total, one.needed, one.memory.free]
            verdict = one.verdict + (" <-" if one is self.recommended else "")
            rows.append([one.device, one.quantize, *map(_gb, sizes), verdict])
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        yield f"{self.name}: GB of memory at {self.context} positions of conversation"
        for row in (titles, *rows):
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if self.remedy:
            yield self.remedy


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _best(estimates: Sequence[Estimate]) -> Estimate | None:
    chosen = [one for verdict in ("fits", "tight") for one in estimates if one.verdict == verdict]
    return chosen[0] if chosen else None


def usable_device(wanted: str) -> str:
    """Resolve a device.

    Args:
        wanted: "auto", "cpu" or "cuda".

    Returns:
        "cpu" or "cuda".

    Raises:
        WeightsMissing: there is no CUDA device.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise WeightsMissing("No CUDA device is available: use --device cpu, or see `doctor` for why.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def usable_mode(quantize: str, device: str, stored: str | None = None) -> str:
    """Resolve a quantization mode.

    Args:
        quantize: "auto", "none", "int8", "nf4" or "nf4-all".
        device: "cpu" or "cuda".
        stored: the 4-bit mode in which the weights are stored, or None.

    Returns:
        The mode in which to load them.

    Raises:
        BadInput: they are stored in 4 bits, and another mode is requested.
        WeightsMissing: int8 on a GPU.
    """
    if stored is not None:
        if quantize not in ("auto", stored):
            raise BadInput(f"It is stored in {stored}: leave out --quantize, or convert the original again.")
        return stored
    if quantize == "auto":
        return "nf4" if device == "cuda" else "int8"
    if quantize == "int8" and device == "cuda":
        raise WeightsMissing("int8 runs on the CPU only: choose --quantize nf4 or none, or --device cpu.")
    return quantize


def plan(about: Source, *, device: str = "auto", quantize: str = "auto", context: int | None = None) -> Plan:
    """Estimate the ways to load a checkpoint.

    Args:
        about: from `loader.inspect`.
        device: "cpu" or "cuda"; "auto": both.
        quantize: one mode; "auto": all.
        context: positions of conversation; by default the engine's maximum.

    Returns:
        The plan.

    Raises:
        WeightsMissing: there is no such device.
        BadInput: it is stored in 4 bits, and another mode is requested; or `context` is not positive.
    """
    places = [usable_device(device)] if device != "auto" else _places()
    if quantize != "auto":
        usable_mode(quantize, places[-1], about.stored)
    if context is not None and context < 1:
        raise BadInput("--context takes a number of positions, 1 or more.")
    positions = min(context or about.longest, about.longest)
    estimates = tuple(one for one in _ways(about, places, positions) if quantize in ("auto", one.quantize))
    best = _best(estimates)
    remedy = None if best is not None and best.verdict == "fits" else _remedy(about, estimates)
    return Plan(about.name, positions, estimates, remedy)


def fitting_context(about: Source, device: str, mode: str) -> int:
    """Positions of conversation that fit into memory; `mode` as `usable_mode` returns it.

    Raises:
        WeightsMissing: not even a short conversation fits; the message says what helps.
    """
    memory, least = memory_of(device), min(LEAST_CONTEXT, about.longest)
    estimates = [
        estimate(about, device, mode, positions, memory)
        for positions in (*range(about.longest, least, -_CONTEXT_STEP), least)
    ]
    if estimates[-1].verdict == "does not fit":
        raise WeightsMissing(_remedy(about, estimates[-1:]))
    return next((one.context for one in estimates if one.verdict == "fits"), least)


def _places() -> list[str]:
    return ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


def _ways(about: Source, places: Sequence[str], context: int) -> list[Estimate]:
    memory = {place: memory_of(place) for place in places}
    return [
        estimate(about, place, mode, context, memory[place])
        for place, mode in PREFERENCE
        if place in places and about.stored in (None, mode)
    ]


def _remedy(about: Source, short: Sequence[Estimate]) -> str:
    """One line: what is short, and what helps."""
    nearest = min(short, key=lambda one: one.needed - one.memory.free)
    where = "of GPU memory" if nearest.device == "cuda" else "of memory"
    ways = [one for one in _ways(about, _places(), nearest.context) if one.verdict == "fits"]
    helps = [f"--device {one.device} --quantize {one.quantize}" for one in ways[:2]]
    if not ways and nearest.context > LEAST_CONTEXT:
        smaller = estimate(about, nearest.device, nearest.quantize, LEAST_CONTEXT, nearest.memory)
        helps += [f"--context {LEAST_CONTEXT}"] if smaller.verdict == "fits" else []
    return (
        f"{about.name} needs {_gb(nearest.needed)} GB more {where}, and {_gb(nearest.memory.free)} GB is free: "
        f"{', or '.join([*helps, 'close other programs', 'choose a smaller model'])}."
    )


def estimate(about: Source, device: str, mode: str, context: int, memory: Memory) -> Estimate:
    """What one way to load a checkpoint needs at `context` positions of conversation."""
    parts, plain = Counter[str](), Counter[str]()
    width = 2 if device == "cuda" else 4
    for weight in about.weights:
        part = weight.part
        stated = 4 if about.preset and part != "language_model" else width  # a preset's Whisper stays in 32 bits
        parts[part] += weight.bytes("int8" if part == "recogniser" and device == "cpu" else mode, stated)
        plain[part] += weight.bytes("none", stated)
    if about.speech is not None and not about.preset and device == "cpu":
        parts["recogniser"] = RECOGNISER_BYTES
    text: Any = about.text
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = head_size(text)
    load, first = _loading(about, device, mode, parts, plain)
    return Estimate(
        device=device,
        quantize=mode,
        context=context,
        parts=dict(parts),
        load=load,
        mapped=max(0, first + about.mapped - load) if device == "cpu" else 0,
        cache=context * text.num_hidden_layers * 2 * heads * size * width,
        activations=_activations(about, width, mode),
        memory=memory,
    )


def _loading(about: Source, device: str, mode: str, parts: Counter[str], plain: Counter[str]) -> tuple[int, int]:
    """Bytes at the peak of loading, and right after the files were read."""
    loaded = parts.total()
    if mode == "none" or about.stored is not None:
        return loaded, loaded
    temporary = _QUANTIZING[device, mode] * about.largest(mode)
    if mode in MODES and not about.preset:  # tensor by tensor, while the files are read
        return loaded + temporary, loaded
    wide = parts["recogniser"] + plain.total() - plain["recogniser"]
    return wide + temporary, wide


def _activations(about: Source, width: int, mode: str) -> int:
    """The larger of 30 s through the encoder, all of whose states are kept, and one chunk of a prompt."""
    text: Any = about.text
    encoder = 0
    if about.speech is not None:
        speech: Any = about.speech
        encoder = width * _WINDOW * (speech.d_model * (speech.encoder_layers + 8) + 2 * speech.encoder_ffn_dim)
    prefill = _PREFILL * width * (6 * text.hidden_size + 3 * text.intermediate_size) + 16 * text.vocab_size
    # A 4-bit layer is expanded first for many positions.
    return max(encoder, prefill) + (width * about.largest(mode) if mode in MODES else 0)
