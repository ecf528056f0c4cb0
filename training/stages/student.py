"""The student: which weights are trained, how they are loaded, and the checkpoint written at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperFeatureExtractor

from model.checkpoints import components
from model.checkpoints.loader import inspect, read_model
from model.checkpoints.memory_plan import usable_mode
from model.checkpoints.safe_reader import list_tensors, read_shard
from model.config import SpeechLanguageConfig
from model.errors import BadInput
from model.files import replacing_folder
from model.nn.lora import PartialLoraLinear
from model.nn.speech_llm import SpeechLanguageModel
from training.runs.config import TrainOptions
from training.stages.losses import RecipeLosses

LANGUAGE_LOSSES = {"response_ce", "response_kl", "input_kl"}


class Recipe(RecipeLosses):
    """The losses, with frozen parts kept in evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; a frozen encoder and frozen LoRA stay in evaluation mode, without dropout."""
        super().train(mode)
        for module in self.model.modules():
            quiet = module is self.model.encoder or isinstance(module, PartialLoraLinear)
            if quiet and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    def trained(self) -> dict[str, Tensor]:
        """The trained weights, by their names in the checkpoint."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """A model loaded for training.

    Attributes:
        folder: its checkpoint.
        recipe: model and losses.
        extractor: of its features.
        half: whether it computes in bfloat16.
    """

    folder: Path
    recipe: Recipe
    extractor: WhisperFeatureExtractor
    half: bool

    @property
    def config(self) -> SpeechLanguageConfig:
        """The checkpoint's configuration."""
        return self.recipe.model.config


def losses_of(options: TrainOptions, config: SpeechLanguageConfig) -> tuple[str, ...]:
    """The losses that the options choose.

    A CFormer also learns its number of tokens, and in stage 1 its tokens (BLSP-KD, arXiv 2405.19041).
    """
    if options.losses is not None:
        return options.losses
    if options.only == "head":
        return ("input_er",)
    own: tuple[str, ...] = options.recipe()["losses"]
    if config.adapter_type == "cformer":
        own += ("input_kl", "cif") if options.stage == 1 else ("cif",)
    return own


def is_trained(name: str, options: TrainOptions, losses: tuple[str, ...], adapter: str) -> bool:
    """Whether the weight of this name is trained: the stage trains it, and a loss reaches it."""
    if name.startswith("emotion_head."):
        return "input_er" in losses and (options.stage == 2 or options.only == "head")
    if options.only == "head" or name.startswith("adapter.token_head."):  # no loss uses the latter
        return False
    if name.startswith("encoder."):
        return options.stage == 2 and options.train_encoder and not name.startswith("encoder.embed_positions.")
    if ".lora_" in name:
        return options.stage == 2 and not LANGUAGE_LOSSES.isdisjoint(losses)
    # A CTC adapter's norm is fixed by the language model's embeddings, which are frozen.
    return name.startswith("adapter.") and not (name.startswith("adapter.norm.") and adapter == "spelling")


def computes_in_half(options: TrainOptions, device: str) -> bool:
    """Whether to compute in bfloat16."""
    if options.precision == "auto":
        return device == "cuda" and torch.cuda.is_bf16_supported()
    return options.precision == "bf16"


def load_student(options: TrainOptions, folder: Path, device: str) -> Student:
    """Load a checkpoint for training: trained weights in float32, the rest in the precision of the options.

    Args:
        options: of `train`.
        folder: of the checkpoint.
        device: "cpu" or "cuda".

    Returns:
        The student.

    Raises:
        BadInput: losses, stage or quantization do not fit the checkpoint, or nothing would be trained.
        WeightsMissing: it is missing or damaged.
    """
    half = computes_in_half(options, device)
    stored = inspect(str(folder)).stored
    mode = usable_mode(stored or options.quantize, device, stored)
    model = read_model(folder, device, mode, torch.bfloat16 if half else torch.float32)
    losses = losses_of(options, model.config)
    if options.train_encoder and (options.features or mode == "nf4-all"):
        raise BadInput("--train-encoder: an encoder in 4 bits, or with --features, cannot be trained.")
    recipe = Recipe(model, losses)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = is_trained(name, options, losses, model.config.adapter_type)
    if not recipe.trained():
        raise BadInput(f"With --stage {options.stage} and the losses {', '.join(losses)} nothing would be trained.")
    if half:
        _widen(recipe, folder)
    return Student(folder, recipe, components.extractor(folder, model.config.speech_config.num_mel_bins), half)


def _widen(recipe: Recipe, folder: Path) -> None:
    """Restore the stored 32 bits of trained weights."""
    names = recipe.trained()
    for file in {info.file for name, info in list_tensors(folder).items() if name in names}:
        for name, value in read_shard(file).items():
            if name in names:
                names[name].data = value.to(names[name].device, torch.float32)


def apply_trained(model: SpeechLanguageModel, trained: Mapping[str, Tensor]) -> None:
    """Put trained weights, by their names in the checkpoint, into a model that has them."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in trained.items():
            own[name].copy_(value)


def write_checkpoint(source: Path, trained: Mapping[str, Tensor], out: Path) -> None:
    """Write a copy of a checkpoint with other trained weights, in float32.

    What was not trained keeps its bytes, quantized or not. A kill leaves `out` unchanged.

    Args:
        source: the checkpoint folder.
        trained: weights by name.
        out: the folder to write, new or replaced.
    """
    with replacing_folder(out) as staging:
        _copy_with(source, trained, staging)


def _copy_with(source: Path, trained: Mapping[str, Tensor], staging: Path) -> None:
    files = {info.file.name for info in list_tensors(source).values()}
    grown = 0
    for path in sorted(source.iterdir()):
        if path.name in files:
            tensors = read_shard(path)
            new = {name: trained[name].float().cpu().contiguous() for name in tensors.keys() & trained.keys()}
            grown += sum(value.nbytes - tensors[name].nbytes for name, value in new.items())
            save_file(tensors | new, staging / path.name, {"format": "pt"})
        elif path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, staging / path.name)
    index = staging / "model.safetensors.index.json"
    if index.exists():
        about: dict[str, Any] = json.loads(index.read_text("utf-8"))
        about["metadata"]["total_size"] += grown
        index.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
