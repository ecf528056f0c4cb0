"""The CFormer adapter: encoder frames -> one embedding a spoken token, by continuous integrate-and-fire.

Encoder layers weigh every frame; the weights are summed along time, and a token is due at every whole
number they pass (CIF, arXiv 1905.11235; as an adapter in BLSP-KD, arXiv 2405.19041).
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
    """What the CFormer made of a batch.

    Attributes:
        frames, mask: [B, N, E] one embedding a token, and which of them are valid, bool [B, N].
        weights: [B, T] the frames' weights, rescaled so that a row sums to its count of tokens.
        mass: [B] the rows' sums before that.
        hidden: [B, N, D] before the projection to the language model; `CFormerAdapter.token_head` reads it.
    """

    frames: Tensor
    mask: Tensor
    weights: Tensor
    mass: Tensor
    hidden: Tensor


class CFormerAdapter(nn.Module):
    """Whisper layers, integrate-and-fire, Whisper layers, projection.

    Args:
        speech_config: the encoder's; the CFormer's layers are of its size.
        text_size: width of the language model's embeddings, E.
        vocabulary: of the language model; the token head guesses tokens in training.
        pre_layers, post_layers: layers before and after the integration.
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
        """As `ConvAdapter.forward`: frames [B, N, E] and their mask, bool [B, N]."""
        integrated = self.integrate(encoded, lengths, legacy_batching=legacy_batching)
        return integrated.frames, integrated.mask

    def integrate(
        self, encoded: Tensor, lengths: Tensor, counts: Tensor | None = None, *, legacy_batching: bool = False
    ) -> Integrated:
        """Adapt a padded batch.

        Args:
            encoded: [B, T, D] encoder frames, right-padded.
            lengths: int64 [B], valid frames a row.
            counts: int64 [B], tokens to make of each row: the transcript's in training. By default the
                rounded sum of the weights, at least 1.
            legacy_batching: let frames of a short row see what stands behind its end, as in the original.
        """
        valid = valid_mask(lengths, encoded.shape[1])
        hidden = encoded
        for layer in self.pre_layers:
            hidden = layer(hidden, None if legacy_batching else _attend(valid, hidden))
        # In float32: 16-bit steps are too coarse to count a hundred tokens by.
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

    Token k is the sum of the frames over that part of their `weights` [B, T] which lies between k and
    k + 1 on the running sum; a frame across a whole number is shared between two tokens.
    """
    ends = weights.double().cumsum(1)
    starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=1)
    first = torch.arange(count, device=weights.device)[None, :, None]
    shares = torch.minimum(ends[:, None], first + 1) - torch.maximum(starts[:, None], first)
    return shares.clamp(min=0).to(frames.dtype) @ frames


def _attend(valid: Tensor, hidden: Tensor) -> Tensor:
    """An additive attention mask [B, 1, T, T] that hides invalid keys; it is finite, so no row becomes NaN."""
    hidden_keys = torch.zeros_like(valid, dtype=hidden.dtype).masked_fill(~valid, torch.finfo(hidden.dtype).min)
    return hidden_keys[:, None, None, :].expand(-1, 1, valid.shape[1], -1)
