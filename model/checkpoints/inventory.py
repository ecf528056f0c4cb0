"""The tensors of a checkpoint and their size once loaded, from config.json and file headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from model.checkpoints.blsp_emo import canonical, interpret_config, is_plain
from model.checkpoints.components import language_config, model_config
from model.checkpoints.reply_tuning import reply_file
from model.checkpoints.safe_reader import TensorInfo, list_file, list_tensors, read_config
from model.config import SpeechLanguageConfig
from model.nn.nf4 import nf4_bytes, stored_mode

CONTEXT = 4096
"""Context length in positions, if the language model and the memory allow it."""

_RESOURCES = Path(str(files("resources")))
_FOUR_BIT = {"nf4": {"language_model"}, "nf4-all": {"language_model", "encoder"}}
_EIGHT_BIT = {"language_model", "encoder", "recogniser"}


def longest_context(text_config: PreTrainedConfig) -> int:
    """Maximum context length with a language model, if memory allows.

    Args:
        text_config: of the language model.

    Returns:
        Positions of conversation that are kept.
    """
    return min(getattr(text_config, "max_position_embeddings", 2048), CONTEXT)


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of a checkpoint.

    Attributes:
        part: encoder, adapter, language_model, lora, emotion_head or recogniser.
        kind: "linear"; "output", that of the language model; "tied", an output layer that is the embedding; "packed", a
            piece of a 4-bit layer; "plain".
        rows: outputs of a linear layer, otherwise 1.
        size: elements; bytes for "packed".
    """

    part: str
    kind: str
    rows: int
    size: int

    def bytes(self, mode: str, width: int) -> int:
        """Bytes once loaded, at `width` bytes per number that `mode` does not quantize."""
        if self.kind == "packed":
            return self.size
        if self.kind == "linear" and self.part in _FOUR_BIT.get(mode, ()):
            return nf4_bytes(self.size)
        if mode == "int8" and self.kind != "plain" and self.part in _EIGHT_BIT:
            return self.size + 4 * self.rows
        return 0 if self.kind == "tied" else width * self.size


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of a checkpoint before it is loaded.

    Attributes:
        name: the preset's name or the folder's path.
        weights: its tensors.
        speech: the encoder's config; None for a language model alone.
        text: the language model's config.
        mapped: bytes of narrow weights in files, which a CPU widens while they are memory-mapped.
        stored: the 4-bit mode in which it is stored, or None.
        preset: whether it is composed of parts and quantized when these are loaded.
    """

    name: str
    weights: tuple[Weight, ...]
    speech: PreTrainedConfig | None
    text: PreTrainedConfig
    mapped: int
    stored: str | None = None
    preset: bool = False

    @property
    def longest(self) -> int:
        """Maximum context length, if memory allows."""
        return longest_context(self.text)

    def largest(self, mode: str) -> int:
        """Elements of the largest layer that `mode` quantizes; 0 if there is none."""
        sizes = (one.size for one in self.weights if one.bytes(mode, 8) != one.bytes("none", 8))
        return max(sizes, default=0)


def head_folder(preset: Mapping[str, Any]) -> Path:
    """The folder of a preset's emotion head, or of the tuned head that replaces it."""
    return _RESOURCES / preset["head"]


def adapter_file(preset: Mapping[str, Any]) -> Path:
    """The shipped weights of a preset's adapter and partial LoRA; they exist if its config has kernel sizes."""
    return _RESOURCES / preset["adapter"] / "adapter.safetensors"


def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to the adapter or to the partial LoRA trained with it.

    Args:
        name: of the tensor in a checkpoint.

    Returns:
        True for both.
    """
    return _part(name) in ("adapter", "lora")


def inspect_preset(name: str, preset: Mapping[str, Any], speech: Path, text: Path) -> Source:
    """Inspect a preset, given its settings and the folders of its Whisper and its language model."""
    shapes = {key.removeprefix("model."): info.shape for key, info in list_tensors(speech).items()}
    named = {key if key.startswith("encoder.") else f"recogniser.{key}": shape for key, shape in shapes.items()}
    texts = list_tensors(text)
    named |= {f"language_model.{key}": info.shape for key, info in texts.items()}
    head = _shapes(head_folder(preset) / "head.safetensors")
    named |= {f"emotion_head.{key}": shape for key, shape in head.items()}
    if preset["config"]["adapter_kernel_sizes"]:
        named |= _shapes(adapter_file(preset))
    configs = [AutoConfig.from_pretrained(folder) for folder in (speech, text)]
    replies = reply_file(preset)
    mapped = _narrow(texts) + (_narrow(list_file(replies.resolve())) if replies is not None else 0)
    return Source(name, tuple(_weights(named)), speech=configs[0], text=configs[1], mapped=mapped, preset=True)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    # Resolved, since installers may link the files of a package.
    return {name: info.shape for name, info in list_file(file.resolve()).items()}


def inspect_folder(folder: Path) -> Source:
    """Inspect a checkpoint folder, an original that is not converted yet, or a language model alone.

    Raises:
        WeightsMissing: it cannot be read.
    """
    stated, tensors = read_config(folder), list_tensors(folder)
    config: PreTrainedConfig
    packed: list[Weight] = []
    if "qwen_config" in stated or is_plain(stated):
        found = [canonical(name, plain=is_plain(stated)) for name in tensors]
        original = interpret_config(stated, [name for name in found if name is not None])
        config, prefix = original.config, "language_model." if is_plain(stated) else ""
        shapes = {
            f"{prefix}{target}": (end - first, *move.shape[1:])
            for move in original.moves.values()
            for target, first, end in move.pieces()
        }
    else:
        own = stated.get("model_type") == SpeechLanguageConfig.model_type
        config = model_config(stated, folder) if own else language_config(stated, folder / "config.json")
        named = {name if own else f"language_model.{name}": info for name, info in tensors.items()}
        packed = [_packed(name, info) for name, info in named.items() if _is_packed(name, info)]
        shapes = {name: info.shape for name, info in named.items() if not _is_packed(name, info)}
    speech = getattr(config, "speech_config", None)
    weights = (*_weights(shapes), *packed)
    return Source(str(folder), weights, speech, config.get_text_config(), _narrow(tensors), stored_mode(stated))


def _narrow(tensors: Mapping[str, TensorInfo]) -> int:
    sizes = (math.prod(one.shape) * one.dtype.itemsize for one in tensors.values() if one.dtype.itemsize < 4)
    return sum(sizes)


def _is_packed(name: str, info: TensorInfo) -> bool:
    """Whether it is a 4-bit layer's weights, or their scales and codes."""
    return info.dtype == torch.uint8 or re.search(r"\.weight\.(nested_)?(absmax|quant_)", name) is not None


def _packed(name: str, info: TensorInfo) -> Weight:
    return Weight(_part(name), "packed", 1, math.prod(info.shape) * info.dtype.itemsize)


def _part(name: str) -> str:
    if ".lora_" in name:
        return "lora"
    first = name.split(".")[0]
    return first if first in ("encoder", "adapter", "emotion_head", "recogniser") else "language_model"


def _weights(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Weight]:
    """The tensors of a checkpoint by name, and the output layers that are embeddings."""
    tied = {"language_model", "recogniser"}
    for name, shape in shapes.items():
        matrix = len(shape) == 2 and name.endswith(".weight") and not re.search(r"embed|\.lora_", name)
        kind = ("output" if name.endswith("lm_head.weight") else "linear") if matrix else "plain"
        yield Weight(_part(name), kind, shape[0] if matrix else 1, math.prod(shape))
        tied -= {_part(name)} if kind == "output" else set()
    for name, shape in shapes.items():
        if name.endswith("embed_tokens.weight") and _part(name) in tied:
            yield Weight(_part(name), "tied", shape[0], math.prod(shape))
