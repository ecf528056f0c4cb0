"""Partial LoRA: a low-rank addition to the language model's linear layers, on speech positions only.

y = W x + b + m (alpha / r) B A dropout(x), with m = 1 on speech positions (BLSP-Emo, section 3.2, after
InternLM-XComposer2's partial LoRA, arXiv 2401.16420). Text positions and all generated tokens use the plain language
model, so its knowledge is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LoraScope:
    """The positions where LoRA is active in one forward pass. All layers of a model share one instance."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    @contextmanager
    def on(self, mask: Tensor | None) -> Iterator[None]:
        """Activate LoRA where `mask` is true.

        While gradients are recorded, the mask stays after the block, because gradient checkpointing runs the layers a
        second time in the backward pass.

        Args:
            mask: bool [B, L]; None: nowhere.

        Yields:
            Nothing.
        """
        self.mask = None if mask is None else mask[..., None]
        try:
            yield
        finally:
            if not torch.is_grad_enabled():
                self.mask = None


class PartialLoraLinear(nn.Module):
    """A linear layer with LoRA on the positions in its scope's mask. `base` may be quantized."""

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
        """Apply the layer.

        Args:
            hidden: [B, L, in].

        Returns:
            [B, L, out].
        """
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
