"""The KV cache and the decode step: one token in, the next token's logits out.

On a CPU a small model spends most of a step in the overhead of a general forward pass. For language models of the Llama
layout this module runs the same weights in a lean loop; every other model uses its own forward over the same cache. The
tests compare both with transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from model.config import head_size
from model.nn.int8 import join
from model.nn.lora import LoraScope, PartialLoraLinear

LLAMA_LAYOUT = frozenset({"llama", "qwen2", "mistral"})
"""Model types whose decoder layer is norm, q k v o with rotary positions, norm, gate up down."""


class CacheLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers that grow by doubling: [B, heads, capacity, size]."""

    is_croppable = True
    keys: Tensor
    values: Tensor

    def __init__(self, initial_capacity: int = 512) -> None:
        super().__init__()
        self.length = 0
        self.capacity = initial_capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers for keys and values of these shapes; see `CacheLayerMixin`."""
        self.capacity = max(self.capacity, key_states.shape[2])
        shape = (*key_states.shape[:2], self.capacity)
        self.keys = key_states.new_empty(*shape, key_states.shape[3])
        self.values = value_states.new_empty(*shape, value_states.shape[3])
        self.is_initialized = True

    def reserve(self, length: int) -> None:
        """Make room for `length` positions."""
        if length <= self.capacity:
            return
        old, self.capacity = self.length, max(length, 2 * self.capacity)
        keys, values = self.keys, self.values
        self.lazy_initialization(keys, values)
        self.keys[:, :, :old], self.values[:, :, :old] = keys[:, :, :old], values[:, :, :old]

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; returns views of all that are cached. See `CacheLayerMixin`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.reserve(end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the attention mask; see `CacheLayerMixin`."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Cached positions."""
        return self.length

    def get_max_length(self) -> int:
        """-1: no limit."""
        return -1


Layer = TypeVar("Layer", bound=CacheLayer)


class BufferCache(Cache, Generic[Layer]):
    """transformers' cache interface over such layers; `keep` truncates it without copying."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.kept = list(layers)
        super().__init__(layers=list(self.kept))

    def keep(self, length: int) -> None:
        """Drop every position from `length` on."""
        for layer in self.kept:
            layer.length = min(layer.length, length)


class KeyValueCache(BufferCache[CacheLayer]):
    """A cache of growing buffers."""

    def __init__(self, layers: int) -> None:
        super().__init__(CacheLayer() for _ in range(layers))


class Decoder:
    """Steps a language model one token at a time over a `KeyValueCache`.

    Args:
        language_model: any causal language model of transformers.
        everywhere: the LoRA scope, if LoRA is active on generated tokens too; the lean loop runs without LoRA.
    """

    def __init__(self, language_model: PreTrainedModel, everywhere: LoraScope | None = None) -> None:
        self.language_model = language_model
        self._everywhere = everywhere
        lean = everywhere is None and language_model.device.type == "cpu" and unsupported(language_model) is None
        # Its table of rotations is computed once, but rules for long prompts change it between replies.
        lean = lean and not getattr(language_model.model.rotary_emb, "active", False)
        self.lean = _LeanLlama(language_model) if lean else None

    @torch.inference_mode()
    def step(self, token: int, cache: KeyValueCache) -> Tensor:
        """Append `token` to the cache; returns the next token's logits, float32 [vocabulary]."""
        if self.lean is not None:
            return self.lean.step(token, cache)
        ids = torch.tensor([[token]], device=self.language_model.device)
        with nullcontext() if self._everywhere is None else self._everywhere.on(ids >= 0):
            output = self.language_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cast(Tensor, output.logits[0, -1].float())


def unsupported(language_model: PreTrainedModel) -> str | None:
    """Whether the lean loop supports a language model.

    Args:
        language_model: of transformers.

    Returns:
        Why the loop would not compute what the model's own forward does; None if it would.
    """
    config: Any = language_model.config
    if config.model_type not in LLAMA_LAYOUT:
        return f"{config.model_type} has a different layout from {', '.join(sorted(LLAMA_LAYOUT))}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "its attention slides"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    # These rotations depend on the prompt's length.
    return f"its rotary positions are {rope}" if rope in ("dynamic", "longrope") else None


def _plain(layer: Any) -> Any:
    return layer.base if isinstance(layer, PartialLoraLinear) else layer


class _LeanLlama:
    """One decode step of a Llama-layout model, batch size 1, with q k v and gate up joined."""

    def __init__(self, language_model: Any) -> None:
        config = language_model.config
        self.heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads
        self.size = head_size(config)
        self.eps = config.rms_norm_eps
        self.embedding = language_model.get_input_embeddings()
        self.head = language_model.get_output_embeddings()
        self.norm = language_model.model.norm.weight
        self.rotary = language_model.model.rotary_emb
        self.cos = self.sin = torch.empty(0, self.size)
        self.layers = [
            (
                layer.input_layernorm.weight,
                join([_plain(getattr(layer.self_attn, name)) for name in ("q_proj", "k_proj", "v_proj")]),
                _plain(layer.self_attn.o_proj),
                layer.post_attention_layernorm.weight,
                join([_plain(layer.mlp.gate_proj), _plain(layer.mlp.up_proj)]),
                _plain(layer.mlp.down_proj),
            )
            for layer in language_model.model.layers
        ]

    def _rotation(self, position: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin [1, size] of a position; the table grows by doubling, like the cache."""
        if position >= len(self.cos):
            positions = torch.arange(max(512, 2 * position))[None]
            cos, sin = self.rotary(self.embedding.weight.new_empty(0, dtype=torch.float32), positions)
            # The first half of a rotated vector is subtracted; the table includes the sign.
            sign = torch.ones(self.size)
            sign[: self.size // 2] = -1
            self.cos, self.sin = cos[0], sin[0] * sign
        return self.cos[position], self.sin[position]

    def step(self, token: int, cache: KeyValueCache) -> Tensor:
        position = cache.get_seq_length()
        cos, sin = self._rotation(position)
        query_size, half = self.heads * self.size, self.size // 2
        rotated = query_size + self.key_heads * self.size
        hidden = self.embedding.weight[token : token + 1].float()
        width = (hidden.shape[1],)
        for (norm, qkv_layer, out_layer, mlp_norm, up_layer, down_layer), kept in zip(
            self.layers, cache.kept, strict=True
        ):
            qkv = qkv_layer(rms_norm(hidden, width, norm, self.eps))
            qk = qkv[:, :rotated].view(-1, self.size)
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)
            kept.reserve(position + 1)
            kept.keys[0, :, position] = qk[self.heads :]
            kept.values[0, :, position] = qkv[0, rotated:].view(self.key_heads, self.size)
            kept.length = position + 1
            attended = scaled_dot_product_attention(
                qk[: self.heads].view(1, self.key_heads, -1, self.size),
                kept.keys[:, :, : position + 1],
                kept.values[:, :, : position + 1],
            )
            hidden = hidden + out_layer(attended.reshape(1, query_size))
            gate, up = up_layer(rms_norm(hidden, width, mlp_norm, self.eps)).chunk(2, dim=-1)
            hidden = hidden + down_layer(silu(gate).mul_(up))
        logits = self.head(rms_norm(hidden, width, self.norm, self.eps))
        return cast(Tensor, logits[0].float())
