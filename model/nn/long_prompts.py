"""Prompts longer than the language model was trained on, as Qwen-1 handles them.

Two rules, in inference only. Dynamic NTK: the rotary base grows with a factor alpha, which the prompt's length
determines and decoding keeps. Log-n: a query at position p is scaled by log(p + 1) / log(trained length) once p + 1
exceeds that length (arXiv 2202.12172). Up to the trained length both do nothing.

The rules live in a module that replaces the model's rotary embedding. It has no weights, so a checkpoint with these
rules is an ordinary one of its architecture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from model.config import head_size


class LongPrompts(nn.Module):
    """Rotary positions with a prompt's NTK alpha, and the log-n scale of queries.

    Args:
        rotary: the language model's own rotary embedding, used for prompts of ordinary length.
        trained_length: positions that the model was trained on.
        dynamic_ntk: whether the NTK rule is active.
        logn: whether the log-n rule is active.
    """

    def __init__(self, rotary: Any, trained_length: int, *, dynamic_ntk: bool, logn: bool) -> None:
        super().__init__()
        self.rotary = rotary
        self.trained_length = trained_length
        self.dynamic_ntk = dynamic_ntk
        self.logn = logn
        self.active = True
        """Set to False to switch both rules off, when no prompt exceeds the trained length."""
        self.query_scale: Tensor | None = None
        self._alphas = [1]
        self._attached: WeakSet[nn.Module] = WeakSet()

    def alpha(self, length: int) -> int:
        """The NTK factor of a prompt of `length` positions: 1, 3, 7, ... for every doubling begun."""
        if not self.dynamic_ntk or length <= self.trained_length:
            return 1
        return 2 ** math.ceil(math.log2(length / self.trained_length) + 1) - 1

    def attach(self, language_model: Any) -> None:
        """Scale the queries of every layer, including projections that were replaced by 4-bit or int8 ones."""
        for layer in language_model.model.layers:
            projection = layer.self_attn.q_proj
            if projection not in self._attached:
                projection.register_forward_hook(self.scale_query)
                self._attached.add(projection)

    def begin(self, lengths: Sequence[int]) -> None:
        """Set the alphas of a batch by its prompts' lengths; they hold until the next call."""
        self._alphas = [self.alpha(length) for length in lengths]

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin [B, L, size] at `position_ids` [B, L]; sets the scale [B, L, 1] that `scale_query` applies."""
        self.query_scale = None
        if self.training or not self.active:
            return self.rotary(hidden, position_ids)
        if self.logn:
            count = (position_ids + 1).clamp(min=self.trained_length)
            self.query_scale = (count.double().log() / math.log(self.trained_length))[..., None].to(hidden.dtype)
        if all(alpha == 1 for alpha in self._alphas):
            return self.rotary(hidden, position_ids)
        config = self.rotary.config
        size = head_size(config)
        exponents = torch.arange(0, size, 2, device=hidden.device, dtype=torch.float32) / size
        alphas = torch.tensor(self._alphas, device=hidden.device, dtype=torch.float32)[:, None]
        bases = config.rope_parameters["rope_theta"] * alphas ** (size / (size - 2))
        angles = position_ids[..., None].float() * (1.0 / bases**exponents)[:, None, :]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)

    def scale_query(self, _layer: nn.Module, _inputs: Any, query: Tensor) -> Tensor:
        """A forward hook of every query projection; the scale commutes with the rotation that follows."""
        return query if self.query_scale is None else query * self.query_scale.to(query.dtype)


def add_long_prompts(language_model: Any) -> LongPrompts | None:
    """Give a Llama-layout model the rules of its config's `long_prompts`; None if there are none."""
    settings = getattr(language_model.config, "long_prompts", None)
    if not settings:
        return None
    rules = LongPrompts(language_model.model.rotary_emb, **settings)
    language_model.model.rotary_emb = rules
    rules.attach(language_model)
    return rules
