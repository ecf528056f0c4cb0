"""The CFormer adapter: encoder frames to one embedding per spoken token, by continuous integrate-and-fire.

Encoder layers predict a weight for every frame; the weights are accumulated over time, and a token fires at every whole
number (CIF, arXiv 1905.11235; as an adapter in BLSP-KD, arXiv 2405.19041).
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from model.nn.adapter import valid_mask


class Integrated(NamedTuple):
    """The CFormer's output for a batch.

    Attributes:
        frames: [B, N, E], one embedding per token.
        mask: bool [B, N], the valid ones.
        weights: [B, T], the frames' weights, rescaled so that a row sums to its number of tokens.
        mass: [B], the rows' sums before rescaling.
        hidden: [B, N, D], before the projection to the language model; input of `CFormerAdapter.token_head`.
    """

    frames: Tensor
    mask: Tensor
    weights: Tensor
    mass: Tensor
    hidden: Tensor


class CFormerAdapter(nn.Module):
    """Whisper layers, integrate-and-fire, Whisper layers, projection.

    Args:
        speech_config: the encoder's; the CFormer's layers have its sizes.
        text_size: width of the language model's embeddings, E.
        vocabulary: size of the language model's vocabulary, for the token head, which is used in training only.
        pre_layers: layers before the integration.
        post_layers: layers after it.
        heads: attention heads of these layers.
    """

    def __init__(
        self,
        speech_config: WhisperConfig,
        text_size: int,
        vocabulary: int,
        pre_layers: int,
        post_layers: int,
        heads: int = 8,
    ) -> None:
        super().__init__()
        size = speech_config.d_model
        config = copy.deepcopy(speech_config)
        config.encoder_attention_heads = heads
        self.pre_layers = nn.ModuleList(WhisperEncoderLayer(config) for _ in range(pre_layers))
        self.projection = nn.Linear(size - 1, size)
        self.post_layers = nn.ModuleList(WhisperEncoderLayer(config) for _ in range(post_layers))
        self.token_projection = nn.Linear(size, text_size)
        self.token_head = nn.Linear(size, vocabulary, bias=False)

    def forward(self, encoded: Tensor, lengths: Tensor, *, legacy_batching: bool = False) -> tuple[Tensor, Tensor]:
        """Adapt a padded batch; see `ConvAdapter.forward`.

        Args:
            encoded: [B, T, D] encoder frames, right-padded.
            lengths: int64 [B], valid frames of each row.
            legacy_batching: see `integrate`.

        Returns:
            Frames [B, N, E] and their mask, bool [B, N].
        """
        integrated = self.integrate(encoded, lengths, legacy_batching=legacy_batching)
        return integrated.frames, integrated.mask

    def integrate(
        self, encoded: Tensor, lengths: Tensor, counts: Tensor | None = None, *, legacy_batching: bool = False
    ) -> Integrated:
        """Adapt a padded batch.

        Args:
            encoded: [B, T, D] encoder frames, right-padded.
            lengths: int64 [B], valid frames of each row.
            counts: int64 [B], number of tokens per row; in training the transcript's. By default the rounded sum of the
                weights, at least 1.
            legacy_batching: let the frames of a short row attend to its padding, as the original does.

        Returns:
            The tokens' embeddings with weights and mass.
        """
        valid = valid_mask(lengths, encoded.shape[1])
        hidden = encoded
        for layer in self.pre_layers:
            hidden = layer(hidden, None if legacy_batching else _attend(valid, hidden))
        # In float32: 16 bits are too coarse to count a hundred tokens.
        weights = hidden[..., -1].float().sigmoid() * valid
        mass = weights.sum(1)
        if counts is None:
            counts = mass.round().clamp(min=1).long()
        weights = weights * (counts / mass)[:, None]
        tokens = fire(weights, hidden[..., :-1].float(), int(counts.max()))
        tokens = self.projection(tokens.to(hidden.dtype))
        mask = valid_mask(counts, tokens.shape[1])
        for layer in self.post_layers:
            tokens = layer(tokens, _attend(mask, tokens))
        return Integrated(self.token_projection(tokens), mask, weights, mass, tokens)


def fire(weights: Tensor, frames: Tensor, count: int) -> Tensor:
    """Integrate `frames` [B, T, D] into tokens [B, count, D].

    Token k is the sum of the frames over the part of their `weights` [B, T] that lies between k and k + 1 on the
    running sum; a frame that crosses a whole number is shared between two tokens.
    """
    ends = weights.double().cumsum(1)
    starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=1)
    first = torch.arange(count, device=weights.device)[None, :, None]
    shares = torch.minimum(ends[:, None], first + 1) - torch.maximum(starts[:, None], first)
    return shares.clamp(min=0).to(frames.dtype) @ frames


def _attend(valid: Tensor, hidden: Tensor) -> Tensor:
    """An additive attention mask [B, 1, T, T] that hides invalid keys. It is finite, so no row becomes NaN."""
    hidden_keys = torch.zeros_like(valid, dtype=hidden.dtype).masked_fill(~valid, torch.finfo(hidden.dtype).min)
    return hidden_keys[:, None, None, :].expand(-1, 1, valid.shape[1], -1)
