"""What tuning on the conversation corpus has learnt: low-rank additions, merged into a language model as it loads.

    resources/NAME/replies.safetensors    LAYER.lora_a [rank, in] and LAYER.lora_b [out, rank] in float16, for linear
                                          layers by their names in the language model; metadata: the weights that
                                          they were learnt on ("name" and "sha256", as `tuned.part_sums`), "rank",
                                          and "prompt", the settings of the prompt that they were learnt with

After merging, the language model is as large and as fast as before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from model.checkpoints import components
from model.checkpoints.safe_reader import read_shard
from model.checkpoints.tuned import part_sums
from model.errors import WeightsMissing

_RESOURCES = Path(str(files("resources")))
_AGAIN = "install this program again."


def reply_file(preset: Mapping[str, Any]) -> Path | None:
    """The additions that a preset names, or None."""
    return _RESOURCES / preset["replies"] / "replies.safetensors" if "replies" in preset else None


def prompt(preset: Mapping[str, Any]) -> dict[str, str]:
    """Read the prompt that a preset's tuning was learnt with: it takes the place of the preset's own.

    Args:
        preset: its settings.

    Returns:
        Values of `SpeechLanguageConfig`; empty without a tuning.

    Raises:
        WeightsMissing: the file is missing or damaged.
    """
    file = reply_file(preset)
    return json.loads(_metadata(file).get("prompt", "{}")) if file is not None else {}


def _metadata(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise WeightsMissing(f"{file} is not there: {_AGAIN}")
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise WeightsMissing(f"{file} is damaged ({error}): {_AGAIN}") from error


def merge(language_model: nn.Module, preset: Mapping[str, Any]) -> None:
    """Add what a preset's tuning of replies has learnt to the language model's weights; nothing where it has none.

    Args:
        language_model: as loaded from the preset's `text`, not quantised yet.
        preset: its settings.

    Raises:
        WeightsMissing: the file is not there, damaged, or was learnt on other weights.
    """
    file = reply_file(preset)
    if file is None:
        return
    stated = _metadata(file)
    file = file.resolve()  # installers may link the files of a package
    factors = read_shard(file)
    if {key: stated.get(key) for key in ("name", "sha256")} != part_sums(preset)["text"]:
        raise WeightsMissing(f"{file} was made for other weights of {preset['text']} than are here: {_AGAIN}")
    components.refuse_nonfinite(factors.items(), file.parent)
    names = {key.rpartition(".")[0] for key in factors}
    layers = dict(language_model.named_modules())
    if set(factors) != {f"{name}.{factor}" for name in names for factor in ("lora_a", "lora_b")}:
        raise WeightsMissing(f"{file} is of another version: {_AGAIN}")
    for name in sorted(names):
        low, high, layer = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"], layers.get(name)
        fits = low.ndim == high.ndim == 2 and low.shape[0] == high.shape[1]
        if not isinstance(layer, nn.Linear) or not fits or layer.weight.shape != (high.shape[0], low.shape[1]):
            raise WeightsMissing(f"{file} is of another version: {_AGAIN}")
        with torch.no_grad():
            layer.weight.copy_(layer.weight.float().addmm_(high.float(), low.float()))
