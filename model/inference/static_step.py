"""One decode step of a Llama-layout language model over static buffers.

No step depends on a value that only the device knows, so a CUDA graph can contain it: the token and its position are
read from tensors, attention reads a fixed range of the cache, and a mask computed from the position hides what follows.
It also launches few kernels: queries, keys and values are rotated together, and a 4-bit layer adds the residual in its
own kernel. On a CPU the same code runs uncaptured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, rms_norm, scaled_dot_product_attention, silu
from transformers import PreTrainedModel

from model.config import head_size
from model.errors import BadInput
from model.inference.kv_cache import BufferCache, CacheLayer
from model.nn.lora import LoraScope, PartialLoraLinear
from model.nn.nf4 import BLOCK


class _FixedLayer(CacheLayer):
    """Keys and values of one layer in one buffer [2, heads, capacity, size] that never moves."""

    def __init__(self, heads: int, capacity: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(capacity)
        # Zeros: unwritten slots are masked, but a NaN there would pass the mask.
        self.both = torch.zeros(2, heads, capacity, size, dtype=dtype, device=device)
        self.keys, self.values = self.both[0, None], self.both[1, None]
        self.is_initialized = True

    def reserve(self, length: int) -> None:
        if length > self.capacity:
            raise BadInput(f"The conversation needs more than {self.capacity} positions: start a new one.")

    def get_max_length(self) -> int:
        return self.capacity


class FixedCache(BufferCache[_FixedLayer]):
    """A cache of buffers of fixed capacity, batch size 1.

    Args:
        language_model: of the Llama layout; the buffers have its dtype and device.
        capacity: maximum number of positions.
    """

    def __init__(self, language_model: PreTrainedModel, capacity: int) -> None:
        config: Any = language_model.config
        weight: Any = language_model.get_input_embeddings().weight
        self.capacity = capacity
        super().__init__(
            _FixedLayer(config.num_key_value_heads, capacity, head_size(config), weight.dtype, weight.device)
            for _ in range(config.num_hidden_layers)
        )

    def filled(self, length: int) -> None:
        """Record that the device wrote every position below `length`.

        Args:
            length: positions now cached.
        """
        for layer in self.kept:
            layer.length = length


class StaticStep:
    """One decode step of a Llama-layout model over static buffers: `token` at `position` -> `logits`.

    Attributes:
        token: int64 [1], the step's input.
        position: int64 [1], its position.
        logits: float32 [vocabulary], the step's output; keys and values go into the cache's buffers.
    """

    def __init__(self, language_model: Any, cache: FixedCache, everywhere: LoraScope | None) -> None:
        config = language_model.config
        self.embedding = language_model.get_input_embeddings().weight
        self.head = language_model.get_output_embeddings()
        self.norm = language_model.model.norm.weight
        self.rotary = language_model.model.rotary_emb
        self.layers = list(language_model.model.layers)
        self.cache = cache
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.size, self.eps = head_size(config), config.rms_norm_eps
        self._everywhere = everywhere
        device, dtype = self.embedding.device, self.embedding.dtype
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(self.head.out_features, dtype=torch.float32, device=device)
        self._lora_mask = torch.ones(1, dtype=torch.bool, device=device)
        self._slots = torch.arange(cache.capacity, device=device)
        self._closed = torch.full((cache.capacity,), -torch.inf, dtype=dtype, device=device)
        # cos and sin [capacity, 2, 3, size]: for a query, for a key, and 1 and 0 for a value
        self._turns = torch.zeros(cache.capacity, 2, 3, self.size, dtype=dtype, device=device)
        kinds = [0] * self.heads + [1] * self.key_heads + [2] * self.key_heads
        self._kinds = torch.tensor(kinds, device=device)

    def begin(self) -> None:
        """Compute the rotations of all positions with the model's rotary embedding, as configured for this reply."""
        cos, sin = self.rotary(self._turns, self._slots[None])
        scale = getattr(self.rotary, "query_scale", None)  # log-n of long prompts, [1, capacity, 1]
        scale = torch.ones_like(cos[..., :1]) if scale is None else scale
        # The first half of a rotated vector is subtracted; the table includes the sign.
        sign = torch.ones_like(sin).index_fill_(2, torch.arange(self.size // 2, device=sin.device), -1.0)
        self._turns[:, 0] = torch.stack([cos * scale, cos, torch.ones_like(cos)], 2)[0]
        self._turns[:, 1] = torch.stack([sin * sign * scale, sin * sign, torch.zeros_like(sin)], 2)[0]

    def run(self, reach: int) -> None:
        """Run the step; `position` is below `reach`, the slots that attention reads. Captured once per `reach`."""
        cos, sin = self._turns.index_select(0, self.position)[0].index_select(1, self._kinds)
        mask = self._closed[:reach].masked_fill(self._slots[:reach] <= self.position, 0.0)
        hidden = embedding(self.token, self.embedding)
        scope = nullcontext() if self._everywhere is None else self._everywhere.on(self._lora_mask)
        with scope, _attention_kernels(hidden.device):
            for layer, kept in zip(self.layers, self.cache.kept, strict=True):
                attended = self._attend(layer, kept, self._normed(hidden, layer.input_layernorm), cos, sin, mask)
                hidden = self._plus(layer.self_attn.o_proj, attended, hidden)
                normed = self._normed(hidden, layer.post_attention_layernorm)
                gate, up = self._forward_of(layer.mlp.gate_proj)(normed), self._forward_of(layer.mlp.up_proj)(normed)
                hidden = self._plus(layer.mlp.down_proj, silu(gate).mul_(up), hidden)
        self.logits.copy_(self.head.forward(rms_norm(hidden, hidden.shape[1:], self.norm, self.eps))[0])

    def _normed(self, hidden: Tensor, norm: Any) -> Tensor:
        return rms_norm(hidden, hidden.shape[1:], norm.weight, self.eps)

    def _attend(self, layer: Any, kept: _FixedLayer, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """[1, hidden] -> [1, heads * size]; writes the position's key and value."""
        attention, rows = layer.self_attn, self.heads + 2 * self.key_heads
        parts = [self._forward_of(part)(hidden) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        qkv = torch.cat(parts, -1).view(rows, self.size)
        qkv = torch.addcmul(qkv * cos, qkv.roll(self.size // 2, -1), sin)
        kept.both.index_copy_(2, self.position, qkv[self.heads :].view(2, self.key_heads, 1, self.size))
        keys, values = (kept.both[which, None, :, : len(mask)] for which in (0, 1))
        query = qkv[: self.heads].view(1, self.key_heads, -1, self.size)
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask[None, None, None]).reshape(1, -1)

    def _acting(self, layer: Any) -> Any:
        """The layer with or without its LoRA."""
        return layer.base if isinstance(layer, PartialLoraLinear) and self._everywhere is None else layer

    def _forward_of(self, layer: Any) -> Callable[[Tensor], Tensor]:
        """The layer's forward without hooks, which are for the model's own pass."""
        return self._acting(layer).forward

    def _plus(self, layer: Any, hidden: Tensor, residual: Tensor) -> Tensor:
        """Compute residual + layer(hidden); a 4-bit layer adds the residual in its own kernel, as its bias."""
        layer = self._acting(layer)
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is None or layer.bias is not None or layer.compute_dtype not in (None, hidden.dtype):
            return residual + layer.forward(hidden)
        if layer.in_features % BLOCK:  # on a CPU such layers have their own forward (`model.nn.nf4`)
            return residual + layer.forward(hidden)
        from bitsandbytes import matmul_4bit  # type: ignore[attr-defined]  # public, but not exported explicitly

        return matmul_4bit(hidden, layer.weight, bias=residual[0], quant_state=state)


def _attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    # With a mask CUDA has this kernel and, on some cards, cuDNN's, which builds its plans on the host.
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if device.type == "cuda" else nullcontext()
