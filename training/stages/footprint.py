"""Memory of a training step, measured in passes over one or two rows.

Activations are measured, not estimated: the bytes that autograd saves for the backward pass, with and without gradient
checkpointing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.memory import memory_of
from training.data.batches import PADDING, Batch, TrainingRow, collate
from training.runs.config import TrainOptions
from training.stages.losses import LOGITS_AT_ONCE, RecipeLosses
from training.stages.student import LANGUAGE_LOSSES, Recipe, Student
from training.stages.trainer import to_device

_ADAM_BYTES = 3 * 4  # a trained weight's gradient and its two moments
_SAFE_SHARE = 0.9
_LOGITS = 5  # of student and teacher, their logarithms and gradients


def step_bytes(recipe: RecipeLosses, batch: Batch) -> int:
    """Bytes that autograd saves for the backward pass of a batch; the random state is restored."""
    own = {parameter.untyped_storage().data_ptr() for parameter in recipe.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a saved output would keep its own graph alive

    device = next(recipe.parameters()).device
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = recipe.train()(to_device(batch, device))
    del losses
    return sum(kept.values())


def footprint(options: TrainOptions, student: Student, longest: list[TrainingRow], device: str) -> dict[str, Any]:
    """The memory that a pass over these rows needs in addition to what is loaded, in bytes, and whether it fits.

    Switches gradient checkpointing on if the options say so, or if memory requires it and they leave it open.
    """
    recipe, free = student.recipe, memory_of(device).free
    trained = sum(value.numel() for value in recipe.trained().values())
    some = [_worst(longest), longest[0]][: len(longest)]  # padding changes the attention kernel
    few = collate(some)
    plain = len(longest) * _kept(recipe, few, student.half, device) // len(some)
    recipe.model.activation_checkpointing_enable()
    sparing = len(longest) * _kept(recipe, few, student.half, device) // len(some)
    # One layer at a time is recomputed in the backward pass.
    sparing += max(0, plain - sparing) // int(recipe.model.config.text_config.num_hidden_layers)
    logits = _logits_bytes(recipe, collate(longest))
    fixed = logits + _ADAM_BYTES * trained
    wanted = options.gradient_checkpointing
    checkpointing = wanted == "on" or (wanted == "auto" and device == "cuda" and plain + fixed > _SAFE_SHARE * free)
    if not checkpointing:
        recipe.model.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
    needed = fixed + (sparing if checkpointing else plain)
    return {
        "gradient_checkpointing": checkpointing,
        "trained_parameters": trained,
        "weights_bytes": sum(value.nbytes for value in (*recipe.parameters(), *recipe.buffers())),
        "gradients_and_optimiser_bytes": _ADAM_BYTES * trained,
        "logits_bytes": logits,
        "activations_plain_bytes": plain,
        "activations_checkpointed_bytes": sparing,
        "needed_bytes": needed,
        "free_bytes": free,
        "verdict": "fits"
        if needed <= _SAFE_SHARE * free
        else "does not fit: use fewer --rows-at-once, or --quantize nf4",
        "checkpoint_bytes": _ADAM_BYTES * trained,
    }


def _worst(rows: list[TrainingRow]) -> TrainingRow:
    """A row with the longest of every segment: the maximum that each row is padded to."""
    segments = ("opening", "speech_instruction", "text_instruction", "text", "closing", "answer")
    longest = {name: max((getattr(row, name) for row in rows), key=len) for name in segments}
    return replace(max(rows, key=lambda row: row.encoder_frames), **longest)


def _logits_bytes(recipe: Recipe, batch: Batch) -> int:
    """Memory of a chunk's logits while its loss is computed."""
    if LANGUAGE_LOSSES.isdisjoint(recipe.names):
        return 0
    rows = int((batch["answer"] != PADDING).sum() + (batch["text"] != PADDING).sum())
    return _LOGITS * 4 * min(LOGITS_AT_ONCE, rows * int(recipe.model.config.text_config.vocab_size))


def _kept(recipe: Recipe, batch: Batch, half: bool, device: str) -> int:
    with torch.autocast(device, torch.bfloat16, enabled=half):
        return step_bytes(recipe, batch)
