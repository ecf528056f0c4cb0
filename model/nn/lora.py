"""Partial LoRA: the language model's linear layers get a low-rank addition on speech positions only.

y = W x + b + m (alpha / r) B A dropout(x), with m = 1 where a position holds speech (BLSP-Emo, section
3.2, after InternLM-XComposer2's partial LoRA, arXiv 2401.16420). Text positions and every generated
token run the plain language model, so its knowledge stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LoraScope:
    """Where LoRA acts during one forward pass. One instance is shared by all layers of a model."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    @contextmanager
    def on(self, mask: Tensor | None) -> Iterator[None]:
        """Let LoRA act where `mask` (bool [B, L]) is true; None: nowhere.

        The mask stays after the block while gradients are wanted, because gradient checkpointing runs
        the layers a second time during the backward pass.
        """
        self.mask = None if mask is None else mask[..., None]
        try:
            yield
        finally:
            if not torch.is_grad_enabled():
                self.mask = None


class PartialLoraLinear(nn.Module):
    """A linear layer with LoRA on the positions that its scope's mask names. `base` may be quantised."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float, scope: LoraScope) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.scope = scope
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, in] -> [B, L, out]."""
        output = self.base(hidden)
        mask = self.scope.mask
        if mask is None:
            return output
        low = nn.functional.linear(self.dropout(hidden.to(self.lora_a.dtype)), self.lora_a)
        return output + (mask * self.scaling * nn.functional.linear(low, self.lora_b)).to(output.dtype)


def add_lora(module: nn.Module, targets: Iterable[str], rank: int, alpha: float, dropout: float) -> LoraScope:
    """Wrap every linear layer of `module` whose name ends in one of `targets`; returns their shared scope."""
    scope, wanted = LoraScope(), set(targets)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if name in wanted and isinstance(child, nn.Linear):
                setattr(parent, name, PartialLoraLinear(child, rank, alpha, dropout, scope))
    return scope
