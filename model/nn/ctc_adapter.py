"""The CTC adapter: encoder frames to the language model's own token embeddings, one per recognised token.

A `ConvAdapter` whose frames are decoded by connectionist temporal classification (CTC, Graves et al. 2006). The score
of token k is -s |f - E_k|^2, with E the language model's embeddings projected to where the last layer norm puts frames.
Blank frames are dropped, and repeated tokens are merged. The language model receives each token's expected embedding
under these scores. So it gets embeddings of the kind it was trained on, as few as the words need, and uncertainty is
kept: between two similar-sounding words lies the mean of both.

On disk this adapter has the type "spelling", and its mask of known tokens the name `adapter.spells`.
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
    """The decoded frames of a batch.

    Attributes:
        frames: [B, N, E], one embedding per token; at least one where a row has frames.
        mask: bool [B, N], the valid ones.
        ids: int64 [B, N], the most likely token of each.
    """

    frames: Tensor
    mask: Tensor
    ids: Tensor


class _Targets(NamedTuple):
    """The candidate tokens [n], their embeddings [n, E], and the points that frames are compared with, blank first."""

    tokens: Tensor
    table: Tensor
    near: Tensor


class ContextLayer(nn.Module):
    """Self-attention over a row's frames, then a feed-forward part, both residual and pre-norm.

    Vaswani et al. 2017; pre-norm: Xiong et al. 2020. A depthwise convolution before the attention encodes the order of
    frames (Mohamed et al. 2019), so a row may have any length. A new layer is the identity, so `warm-start --start` can
    add layers to a trained adapter.

    Args:
        size: width E. A head is gcd(E, 64) wide; the feed-forward part is about 8/3 E wide, in multiples of 64.
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
        """[B, N, E] to [B, N, E]; frames outside `mask`, bool [B, N], are not attended to."""
        batch, count, size = hidden.shape
        inner = self.norm1(hidden) * mask[..., None]
        inner = inner + self.near(inner.transpose(1, 2)).transpose(1, 2)
        q, k, v = self.qkv(inner).view(batch, count, 3, size // self.head, self.head).permute(2, 0, 3, 1, 4)
        seen = mask.clone()
        seen[:, 0] = True  # softmax over no key would be NaN
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(batch, count, size))
        return hidden + self.fc2(nn.functional.gelu(self.fc1(self.norm2(hidden))))


class CtcAdapter(ConvAdapter):
    """A convolutional adapter with a CTC decoder over the language model's embeddings.

    Args:
        speech_size: width of the encoder's frames, D.
        text_size: width of the language model's embeddings, E.
        inner_size: width of the bottleneck.
        kernel_sizes: one odd kernel size per convolution.
        vocabulary: size V of the language model's vocabulary.
        layers: number of `ContextLayer`s between the convolutions and the bottleneck.

    Attributes:
        blank: [E], the point of blank frames.
        sharpness: scalar, s above.
        spells: bool [V], the tokens that occurred in the training texts; only these are candidates.
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
        self._cached_targets: _Targets | None = None  # kept between utterances, while weights cannot change

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; what was computed from the weights is dropped.

        Args:
            mode: whether to switch to training.

        Returns:
            This adapter.
        """
        self._cached_targets = None
        return super().train(mode)

    def _apply(self, *arguments: Any, **named: Any) -> Self:
        self._cached_targets = None
        return super()._apply(*arguments, **named)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._cached_targets = None
        super()._load_from_state_dict(*arguments)

    def reset_parameters(self) -> None:
        """Reset the buffers: nothing is known of the language model yet."""
        self._cached_targets = None
        self.blank.zero_()
        self.sharpness.fill_(1)
        self.spells.fill_(True)

    def contextualize(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Run the context layers.

        Args:
            hidden: [B, N, E].
            mask: bool [B, N], valid frames.

        Returns:
            [B, N, E].
        """
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
        """Decode a padded batch greedily, with expected embeddings instead of the best token's.

        Args:
            encoded: [B, T, D] encoder frames, right-padded.
            lengths: int64 [B], valid frames of each row.
            embed: gives the language model's embeddings [n, E] of token ids [n].
            legacy_batching: see `ConvAdapter.forward`.

        Returns:
            One embedding per recognised token.

        Raises:
            WeightsMissing: the adapter knows no token.
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
        # Each token is the mean of its frames: shares [B, F, N] sum to one over F.
        shares = ((places[..., None] == torch.arange(longest, device=counts.device)) & spoken[..., None]).to(frames)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
        ids = torch.zeros_like(mask, dtype=torch.int64)
        ids[mask] = tokens[best[begins] - 1]
        return CtcFrames(shares.transpose(1, 2) @ expected, mask, ids)

    def _targets(self, embed: Callable[[Tensor], Tensor]) -> _Targets:
        if self._cached_targets is not None and not torch.is_grad_enabled():
            return self._cached_targets
        tokens = self.spells.nonzero()[:, 0]
        if not len(tokens):
            raise WeightsMissing("This checkpoint's CTC adapter knows no token: convert or train it again.")
        table = embed(tokens)
        found = _Targets(tokens, table, self._near(table))
        if not self.training and not torch.is_grad_enabled():
            self._cached_targets = found
        return found

    def _near(self, table: Tensor) -> Tensor:
        """[1 + n, E] float32: the points of the blank and of tokens, relative to the centre."""
        centre, spread = self.norm.bias, self.norm.weight
        tokens = self.norm((table.to(centre) - centre) / spread)
        return (torch.cat([self.blank[None], tokens]) - centre).float()

    def scores(self, frames: Tensor, table: Tensor) -> Tensor:
        """Scores of the blank and of tokens.

        Args:
            frames: [B, F, E] adapter frames.
            table: [n, E], the tokens' embeddings.

        Returns:
            [B, F, 1 + n], blank first.
        """
        return self._scores(frames, self._near(table))

    def _scores(self, frames: Tensor, near: Tensor) -> Tensor:
        products = (frames - self.norm.bias).float() @ near.T
        return self.sharpness * (2 * products.float() - near.square().sum(1))


def _at_least_one(scores: Tensor, best: Tensor, heard: Tensor) -> Tensor:
    """`best` [B, F]; in a row of blanks only, the frame nearest to a token is decoded as that token."""
    silent = (~(heard & (best > 0)).any(1)).nonzero()[:, 0]
    lead = scores[silent, :, 1:].amax(-1) - scores[silent, :, 0]
    at = lead.masked_fill(~heard[silent], -torch.inf).argmax(1)
    best[silent, at] = 1 + scores[silent, at, 1:].argmax(-1)
    return best
