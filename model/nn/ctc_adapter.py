"""The spelling adapter: encoder frames -> the language model's own token embeddings, one for each token it hears.

A `ConvAdapter` whose frames are read as in connectionist temporal classification (Graves et al. 2006): the score of
token k is -s |f - E_k|^2, with E the language model's embeddings moved to where the last layer norm lets frames lie.
Frames that are read as the blank are left out, neighbours that are read alike are one token, and the language model
receives the embedding that their scores expect. So it gets embeddings of the kind that it knows, as few as the words
need, and what is in doubt stays in doubt: between two words that sound alike lies the mean of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from model.errors import WeightsMissing
from model.nn.adapter import ConvAdapter


class CtcFrames(NamedTuple):
    """What a batch's frames were read as.

    Attributes:
        frames, mask: [B, N, E] one embedding a token, at least one where a row has frames, and which of them are valid,
            bool [B, N].
        ids: int64 [B, N], the likeliest token of each.
    """

    frames: Tensor
    mask: Tensor
    ids: Tensor


class _Targets(NamedTuple):
    """The tokens [n] that are considered, their embeddings [n, E], and where frames lie, blank first [1 + n, E]."""

    tokens: Tensor
    table: Tensor
    near: Tensor


class ContextLayer(nn.Module):
    """Self-attention over a row's frames, then a feed-forward part, each added to what comes in (Vaswani et al. 2017;
    norms first, Xiong et al. 2020).

    The order of frames comes from a depthwise convolution before the attention (Mohamed et al. 2019), so a row may be
    of any length. As it is built, a layer changes nothing: `warm-start --start` adds some to a trained adapter.

    Args:
        size: E. A head is gcd(E, 64) wide, the feed-forward part about 8/3 E, in whole 64s for a GPU's sake.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head = math.gcd(size, 64)
        inner = 64 * math.ceil(size / 24)
        self.norm1 = nn.LayerNorm(size)
        self.near = nn.Conv1d(size, size, 7, padding=3, groups=size)
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.norm2 = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, inner, bias=False)
        self.fc2 = nn.Linear(inner, size, bias=False)
        for new in (self.near.weight, self.near.bias, self.out.weight, self.fc2.weight):
            nn.init.zeros_(new)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, N, E] of [B, N, E]; frames outside `mask`, bool [B, N], are not looked at."""
        batch, count, size = hidden.shape
        inner = self.norm1(hidden) * mask[..., None]
        inner = inner + self.near(inner.transpose(1, 2)).transpose(1, 2)
        q, k, v = self.qkv(inner).view(batch, count, 3, size // self.head, self.head).permute(2, 0, 3, 1, 4)
        seen = mask.clone()
        seen[:, 0] = True  # a row without frames would be a mean over nothing
        looked = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        hidden = hidden + self.out(looked.transpose(1, 2).reshape(batch, count, size))
        return hidden + self.fc2(nn.functional.gelu(self.fc1(self.norm2(hidden))))


class CtcAdapter(ConvAdapter):
    """A convolutional adapter that spells.

    Args:
        speech_size, text_size, inner_size, kernel_sizes: see `ConvAdapter`.
        vocabulary: V, of the language model.
        layers: `ContextLayer`s between the convolutions and the bottleneck.

    Attributes:
        blank: [E], where frames between tokens lie. sharpness: s above, a scalar.
        spells: bool [V], the tokens that were in the training's texts; no others are considered.
    """

    blank: Tensor
    sharpness: Tensor
    spells: Tensor

    def __init__(
        self,
        speech_size: int,
        text_size: int,
        inner_size: int,
        kernel_sizes: Sequence[int],
        vocabulary: int,
        layers: int = 0,
    ) -> None:
        super().__init__(speech_size, text_size, inner_size, kernel_sizes)
        self.layers = nn.ModuleList(ContextLayer(text_size) for _ in range(layers))
        self.register_buffer("blank", torch.zeros(text_size))
        self.register_buffer("sharpness", torch.ones(()))
        self.register_buffer("spells", torch.ones(vocabulary, dtype=torch.bool))
        self._kept: _Targets | None = None  # between utterances, while no weight can change

    def train(self, mode: bool = True) -> Self:
        """As every module; what was computed from the weights is dropped."""
        self._kept = None
        return super().train(mode)

    def _apply(self, *arguments: Any, **named: Any) -> Self:
        self._kept = None
        return super()._apply(*arguments, **named)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*arguments)

    def reset_parameters(self) -> None:
        """The buffers as at the start: nothing is known of the language model yet."""
        self._kept = None
        self.blank.zero_()
        self.sharpness.fill_(1)
        self.spells.fill_(True)

    def among(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The context layers."""
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden

    def decode(
        self,
        encoded: Tensor,
        lengths: Tensor,
        embed: Callable[[Tensor], Tensor],
        *,
        legacy_batching: bool = False,
    ) -> CtcFrames:
        """Read a padded batch.

        Args:
            encoded, lengths, legacy_batching: see `ConvAdapter.forward`.
            embed: the language model's embeddings [n, E] of token ids [n].
        """
        frames, heard = self(encoded, lengths, legacy_batching=legacy_batching)
        tokens, table, near = self._targets(embed)
        table = table.to(frames.dtype)
        scores = self._scores(frames, near)
        best = _at_least_one(scores, scores.argmax(-1), heard)
        before = nn.functional.pad(best, (1, 0))[:, :-1]
        spoken = heard & (best > 0)
        begins = spoken & (best != before)
        places = begins.cumsum(1) - 1
        counts = begins.sum(1)
        longest = int(counts.max())
        mask = torch.arange(longest, device=counts.device) < counts[:, None]
        expected = scores[..., 1:].softmax(-1).to(table.dtype) @ table
        # Each token is the mean of its frames: [B, F, N] shares, of which a row sums to one.
        shares = ((places[..., None] == torch.arange(longest, device=counts.device)) & spoken[..., None]).to(frames)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
        ids = torch.zeros_like(mask, dtype=torch.int64)
        ids[mask] = tokens[best[begins] - 1]
        return CtcFrames(shares.transpose(1, 2) @ expected, mask, ids)

    def _targets(self, embed: Callable[[Tensor], Tensor]) -> _Targets:
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        tokens = self.spells.nonzero()[:, 0]
        if not len(tokens):
            raise WeightsMissing("This checkpoint's adapter spells no token at all: convert or train it again.")
        table = embed(tokens)
        found = _Targets(tokens, table, self._near(table))
        if not self.training and not torch.is_grad_enabled():
            self._kept = found
        return found

    def _near(self, table: Tensor) -> Tensor:
        """[1 + n, E] float32, where frames of the blank and of tokens lie, from the centre of all."""
        centre, spread = self.norm.bias, self.norm.weight
        tokens = self.norm((table.to(centre) - centre) / spread)
        return (torch.cat([self.blank[None], tokens]) - centre).float()

    def scores(self, frames: Tensor, table: Tensor) -> Tensor:
        """[B, F, 1 + n] scores of frames [B, F, E] for the blank and tokens whose embeddings are `table` [n, E]."""
        return self._scores(frames, self._near(table))

    def _scores(self, frames: Tensor, near: Tensor) -> Tensor:
        products = (frames - self.norm.bias).float() @ near.T
        return self.sharpness * (2 * products.float() - near.square().sum(1))


def _at_least_one(scores: Tensor, best: Tensor, heard: Tensor) -> Tensor:
    """`best` [B, F], with the frame that is nearest to a token read as it where a row is all blank."""
    silent = (~(heard & (best > 0)).any(1)).nonzero()[:, 0]
    lead = scores[silent, :, 1:].amax(-1) - scores[silent, :, 0]
    at = lead.masked_fill(~heard[silent], -torch.inf).argmax(1)
    best[silent, at] = 1 + scores[silent, at, 1:].argmax(-1)
    return best
