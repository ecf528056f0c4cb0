"""The emotion head: the mean frame's logits, which split exactly over the frames.

As in the original (BLSP-Emo, arXiv 2406.03872: `hidden2emotion`, a bias-free linear layer over the mean of the valid
frames), plus what a fitted head needs, as buffers: the frames are centred, an offset is added, and a temperature
calibrates (Guo et al. 2017); without hidden units the buffers' defaults are the original's head. Hidden units are
rectified, so around any mean frame the head is linear, and the split stays exact.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from assistant.events import EMOTIONS, UNSURE, EmotionReading


class EmotionHead(nn.Module):
    """Logits = (weight m + outer relu(inner m) + offset) / temperature, m = mean frame - centre.

    Attributes:
        weight: [5, D], trainable; rows in the order of `EMOTIONS`. Standardisation is folded into it, and into inner.
        inner, outer: D -> H with a bias and H -> 5 without, trainable; None without hidden units.
        centre: [D], the neutral mean frame.
        offset: [5], added to the logits before the temperature.
        temperature: scalar.
        threshold: confidence below which a reading is labelled "unsure".
        frame_seconds: duration of one frame.
        group: frames summed into one row of a reading's contributions.
    """

    centre: Tensor
    offset: Tensor
    temperature: Tensor

    def __init__(
        self, size: int, *, hidden: int = 0, threshold: float = 0.0, frame_seconds: float = 0.02, group: int = 1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(EMOTIONS), size))
        self.inner = nn.Linear(size, hidden) if hidden else None
        self.outer = nn.Linear(hidden, len(EMOTIONS), bias=False) if hidden else None
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("offset", torch.zeros(len(EMOTIONS)))
        self.register_buffer("temperature", torch.ones(()))
        self.threshold = threshold
        self.frame_seconds = frame_seconds
        self.group = group

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Logits of a padded batch.

        Args:
            frames: [B, N, D].
            mask: bool [B, N], valid frames, at least one per row.

        Returns:
            [B, 5].
        """
        valid = mask.unsqueeze(-1)
        # where, not a product: padding may be anything, even NaN
        kept = torch.where(valid, frames.to(self.weight.dtype) - self.centre, 0)
        mean = kept.sum(1) / valid.sum(1)
        return self._logits(mean)

    @torch.no_grad()
    def of_means(self, means: Tensor) -> Tensor:
        """Logits of mean frames, without a gradient.

        Args:
            means: [n, D].

        Returns:
            [n, 5].
        """
        return self._logits(means - self.centre)

    def _logits(self, centred: Tensor) -> Tensor:
        logits = centred @ self.weight.T + self.offset
        if self.inner is not None and self.outer is not None:
            logits = logits + self.outer(torch.relu(self.inner(centred)))
        return logits / self.temperature

    @torch.inference_mode()
    def read(self, frames: Tensor, *, frame_seconds: float | None = None) -> EmotionReading:
        """The reading of one utterance.

        Its contributions and its offset sum to the logits of `forward`.

        Args:
            frames: [N, D], valid frames, N >= 1.
            frame_seconds: duration of a frame; by default the head's.

        Returns:
            The reading, with ceil(N / group) rows of contributions.
        """
        centred = frames.to(self.weight.dtype) - self.centre
        weight, constant = self._linear_at(centred.mean(0))
        shares = (centred @ weight.T / (len(frames) * self.temperature)).float().cpu().numpy()
        offset = (constant / self.temperature).float().cpu().numpy()
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

    def _linear_at(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """The weight [5, D] and offset [5] of the linear head that this one is around a centred mean frame [D]."""
        if self.inner is None or self.outer is None:
            return self.weight, self.offset
        outer = self.outer.weight * (self.inner(centred) > 0)
        return self.weight + outer @ self.inner.weight, self.offset + outer @ self.inner.bias
