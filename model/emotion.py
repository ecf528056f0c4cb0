"""The emotion head: a linear layer over the mean frame, whose logits split exactly over the frames.

As in the original (BLSP-Emo, arXiv 2406.03872: `hidden2emotion`, bias-free, over the mean of the valid frames),
plus what a fitted head needs, as buffers: the frames are centred, an offset holds the classes' constant, and a
temperature calibrates (Guo et al. 2017). The buffers' defaults are the original's head.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from assistant.events import EMOTIONS, UNSURE, EmotionReading


class EmotionHead(nn.Module):
    """Logits = (weight (mean frame - centre) + offset) / temperature.

    Attributes:
        weight: [5, D], trainable; rows in the order of `EMOTIONS`. Standardisation is folded into it.
        centre: [D], the frame that says nothing.
        offset: [5], the logits of the centre frame before the temperature.
        temperature: scalar.
        threshold: confidence below which a reading is labelled "unsure".
        frame_seconds: duration of one frame.
        group: frames summed into one row of a reading's contributions.
    """

    centre: Tensor
    offset: Tensor
    temperature: Tensor

    def __init__(self, size: int, *, threshold: float = 0.0, frame_seconds: float = 0.02, group: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(EMOTIONS), size))
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("offset", torch.zeros(len(EMOTIONS)))
        self.register_buffer("temperature", torch.ones(()))
        self.threshold = threshold
        self.frame_seconds = frame_seconds
        self.group = group

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, 5] of frames [B, N, D]; mask [B, N] is True on valid frames, at least one a row."""
        valid = mask.unsqueeze(-1)
        # where, not a product: what stands behind a row's end may be anything, NaN included
        kept = torch.where(valid, frames.to(self.weight.dtype) - self.centre, 0)
        mean = kept.sum(1) / valid.sum(1)
        return (mean @ self.weight.T + self.offset) / self.temperature

    @torch.inference_mode()
    def read(self, frames: Tensor, *, frame_seconds: float | None = None) -> EmotionReading:
        """The reading of one utterance's valid frames [N, D], N >= 1, each of the head's `frame_seconds` by default.

        Its contributions have ceil(N / group) rows; with its offset they sum to the logits of `forward`.
        """
        centred = frames.to(self.weight.dtype) - self.centre
        shares = (centred @ self.weight.T / (len(frames) * self.temperature)).float().cpu().numpy()
        offset = (self.offset / self.temperature).float().cpu().numpy()
        contributions = np.add.reduceat(shares, np.arange(0, len(shares), self.group), axis=0)
        logits = torch.from_numpy(contributions.sum(0) + offset)
        probabilities = torch.softmax(logits, 0).numpy()
        best = int(probabilities.argmax())
        return EmotionReading(
            probabilities=probabilities,
            label=EMOTIONS[best] if probabilities[best] >= self.threshold else UNSURE,
            frame_seconds=(frame_seconds or self.frame_seconds) * self.group,
            contributions=contributions,
            offset=offset,
        )
