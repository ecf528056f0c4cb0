"""The language model in training: frozen weights in bfloat16, a low-rank addition to every linear layer.

A walk over the weights of a Llama-layout model (norm, q k v o with rotary positions, norm, gate up down), as
`model.inference.kv_cache` has one for a decode step. All rows of a batch begin with the same system prompt, which is
computed once for the batch. A CPU with AVX512-BF16 multiplies bfloat16 five times as fast as float32; the residual
stream and the norms stay in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, rms_norm, silu

from model.config import head_size
from model.inference.kv_cache import unsupported

_WIDE = torch.float32
_NARROW = torch.bfloat16
_ROWS = 64  # of logits at a time
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class LowRankLinear(nn.Module):
    """y = W x + b + B A x, with W frozen in bfloat16 and B zero at first; with rank 0 nothing is added."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.register_buffer("weight", base.weight.detach().to(_NARROW), persistent=False)
        self.register_buffer("bias", None if base.bias is None else base.bias.detach().to(_NARROW), persistent=False)
        self.rank = rank
        if rank:
            self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
            self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, in] -> [N, out], both bfloat16."""
        if not self.rank:
            return linear(hidden, self.weight, self.bias)
        low = linear(hidden, self.lora_a.to(_NARROW))
        return torch.addmm(linear(hidden, self.weight, self.bias), low, self.lora_b.to(_NARROW).T)


class ReplyNetwork(nn.Module):
    """A causal language model whose linear layers learn a low-rank addition.

    Args:
        language_model: of transformers, in the Llama layout; its weights are copied.
        rank: of the additions.
        first: the first layer that learns; no gradient goes through those below, which saves their backward pass.

    Raises:
        ValueError: the language model has another layout.
    """

    embedding: Tensor
    output: Tensor

    def __init__(self, language_model: Any, rank: int, first: int = 0) -> None:
        super().__init__()
        if why := unsupported(language_model):
            raise ValueError(why)
        config = language_model.config
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.size, self.eps = head_size(config), config.rms_norm_eps
        self.rotary = language_model.model.rotary_emb
        self.register_buffer("embedding", language_model.get_input_embeddings().weight.detach(), persistent=False)
        output = language_model.get_output_embeddings().weight.detach().to(_NARROW)
        self.register_buffer("output", output, persistent=False)
        self.norm = language_model.model.norm.requires_grad_(False)
        self.layers = nn.ModuleList()
        self.norms = []
        for number, layer in enumerate(language_model.model.layers):
            parts = {name: getattr(layer.self_attn, name) for name in ATTENTION}
            parts |= {name: getattr(layer.mlp, name) for name in MLP}
            wide = {name: LowRankLinear(part, rank if number >= first else 0) for name, part in parts.items()}
            self.layers.append(nn.ModuleDict(wide))
            self.norms.append((layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()))

    def factors(self) -> dict[str, Tensor]:
        """Name the additions as the weights' file holds them.

        Returns:
            By the language model's layers, in float16: NAME.lora_a [rank, in], NAME.lora_b [out, rank].
        """
        found = {}
        for number, layer in enumerate(self.layers):
            for name, part in cast(nn.ModuleDict, layer).items():
                block = "self_attn" if name in ATTENTION else "mlp"
                for factor, value in part.named_parameters():
                    key = f"model.layers.{number}.{block}.{name}.{factor}"
                    found[key] = value.detach().half().contiguous()
        return found

    def hidden(self, prefix: Tensor, rows: Tensor) -> Tensor:
        """The last hidden states of rows that all begin with `prefix`.

        Args:
            prefix: ids [P], at least one.
            rows: ids [B, L] of what follows, filled up on the right with any id.

        Returns:
            float32 [B, L, E] after the last norm.
        """
        (batch, length), first = rows.shape, len(prefix)
        stream = self.embedding[torch.cat([prefix, rows.flatten()])]
        positions = torch.arange(first + length)[None]
        cos, sin = (table[0].to(_NARROW) for table in self.rotary(stream, positions))
        at = torch.cat([torch.arange(first), torch.arange(first, first + length).repeat(batch)])
        cos, sin = cos[at][:, None], sin[at][:, None]
        future = torch.full((first + length, first + length), float("-inf"), dtype=_NARROW).triu(1)
        for parts, norms in zip(self.layers, self.norms, strict=True):
            stream = self._layer(cast(nn.ModuleDict, parts), norms, stream, (cos, sin), future, first)
        normed = rms_norm(stream[first:], (stream.shape[1],), self.norm.weight, self.eps)
        return normed.view(batch, length, -1)

    def _layer(
        self,
        parts: nn.ModuleDict,
        norms: tuple[Tensor, Tensor],
        stream: Tensor,
        rotation: tuple[Tensor, Tensor],
        future: Tensor,
        first: int,
    ) -> Tensor:
        width = (stream.shape[1],)
        normed = rms_norm(stream, width, norms[0], self.eps).to(_NARROW)
        query = _rotated(parts["q_proj"](normed).view(-1, self.heads, self.size), *rotation)
        key = _rotated(parts["k_proj"](normed).view(-1, self.key_heads, self.size), *rotation)
        value = parts["v_proj"](normed).view(-1, self.key_heads, self.size)
        attended = self._attend(query, key, value, future, first)
        stream = stream + parts["o_proj"](attended)
        normed = rms_norm(stream, width, norms[1], self.eps).to(_NARROW)
        inner = silu(parts["gate_proj"](normed)) * parts["up_proj"](normed)
        return stream + cast(Tensor, parts["down_proj"](inner))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, future: Tensor, first: int) -> Tensor:
        """Attention of the prefix to itself, and of every row to the prefix and itself: [P + B L, heads x size]."""
        length = len(future) - first
        batch = (len(query) - first) // length
        group = self.heads // self.key_heads

        def split(states: Tensor) -> tuple[Tensor, Tensor]:
            heads = states.shape[1]
            rows = states[first:].view(batch, length, heads, self.size).transpose(1, 2)
            return states[:first].transpose(0, 1)[None], rows

        query_first, query_rows = split(query)
        key_first, key_rows = split(key)
        value_first, value_rows = split(value)
        own = self._weigh(query_first, key_first, value_first, future[:first, :first], group)
        keys = torch.cat([key_first.expand(batch, -1, -1, -1), key_rows], 2)
        values = torch.cat([value_first.expand(batch, -1, -1, -1), value_rows], 2)
        others = self._weigh(query_rows, keys, values, future[first:], group)
        return torch.cat([own.transpose(1, 2).reshape(first, -1), others.transpose(1, 2).reshape(batch * length, -1)])

    def _weigh(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, group: int) -> Tensor:
        # Written out: on a CPU the backward pass of scaled_dot_product_attention takes twice the time.
        batch, _, length, size = query.shape
        query = (query * size**-0.5).reshape(batch, self.key_heads, group * length, size)
        scores = (query @ key.transpose(2, 3)).view(batch, self.key_heads, group, length, -1)
        weights = (scores + mask).softmax(-1)
        return (weights.view(batch, self.key_heads, group * length, -1) @ value).view(batch, self.heads, length, size)

    def losses(self, hidden: Tensor, targets: Tensor, sampled: Sampled | None = None) -> Tensor:
        """The cross entropy of each target: hidden [N, E] and ids [N] -> float32 [N].

        Args:
            hidden: float32 [N, E], the last layer's states.
            targets: int64 [N], the tokens to predict.
            sampled: the tokens in the normalisation; None: the whole vocabulary.

        Returns:
            float32 [N].
        """
        if sampled is None:
            return _cross_entropy(hidden, self.output, targets, None)
        places = torch.searchsorted(sampled.known, targets)
        ids = torch.cat([sampled.known, sampled.drawn])
        return _cross_entropy(hidden, self.output[ids], places, sampled.offsets)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A part of the vocabulary that stands for all of it (sampled softmax, Bengio & Senecal 2008).

    Attributes:
        known: ids in rising order, every target among them; `drawn`: some of the `others`, at random.
    """

    known: Tensor
    drawn: Tensor
    others: int

    @property
    def offsets(self) -> Tensor:
        """What is added to each token's logit: a drawn one counts as often as it stands for."""
        offsets = torch.zeros(len(self.known) + len(self.drawn))
        offsets[len(self.known) :] = math.log(self.others / len(self.drawn))
        return offsets


class _CrossEntropy(torch.autograd.Function):
    """Cross entropy behind the frozen output layer, some rows at a time: all logits at once leave the CPU's cache."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, output: Tensor, targets: Tensor, offsets: Tensor | None) -> Tensor:
        losses, gradients = [], []
        for rows, wanted in zip(torch.split(hidden, _ROWS), torch.split(targets, _ROWS), strict=True):
            logits = linear(rows.to(_NARROW), output).to(_WIDE)
            logits += 0.0 if offsets is None else offsets
            own = logits.gather(1, wanted[:, None])
            logits -= (total := logits.logsumexp(1, keepdim=True))
            losses.append((total - own)[:, 0])
            if hidden.requires_grad:
                likely = logits.exp_().scatter_add_(1, wanted[:, None], torch.full_like(own, -1.0))
                gradients.append((likely.to(_NARROW) @ output).to(_WIDE))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (own,) = ctx.saved_tensors
        return own * gradient[:, None], None, None, None


def _cross_entropy(hidden: Tensor, output: Tensor, targets: Tensor, offsets: Tensor | None) -> Tensor:
    applied: Any = _CrossEntropy
    return cast(Tensor, applied.apply(hidden, output, targets, offsets))


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], -1)
    return states * cos + turned * sin


def filled(rows: list[list[int]]) -> Tensor:
    """Ids [B, longest], filled up on the right with 0."""
    longest = max(map(len, rows))
    return torch.stack([pad(torch.tensor(row), (0, longest - len(row))) for row in rows])
