"""The emotion head: the mean frame's logits, which split exactly over the frames.

As in the original (BLSP-Emo, arXiv 2406.03872: `hidden2emotion`, a bias-free linear layer over the mean of the valid
frames), plus what a fitted head needs, as buffers: the frames are centred, an offset is added, and a temperature
calibrates (Guo et al. 2017); without hidden units the buffers' defaults are the original's head. Hidden units are
rectified, so around any mean frame the head is linear, and the split stays exact. The speaker's normal voice, where it
is known, moves the mean frame by a constant, which is no frame's and enters the offset.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
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
        threshold: confidence below which a reading is labelled "unsure"; neutral_threshold: the same for neutral, where
            it is higher, because an unknown microphone or language makes most voices look neutral.
        pair_threshold: an unsure reading has its two likeliest emotions as candidates if they are this likely together.
        normal: [D], the mean frame of ordinary voices, which a speaker's own one takes the place of; and
            baseline_share, scalar: how far. Both only in a head that was fitted for it.
        voice: [D], and voice_offset, scalar: the log odds that a mean frame, less the centre, is a voice's. Only in a
            head that was fitted for it.
        frame_seconds: duration of one frame.
        group: frames summed into one row of a reading's contributions.
    """

    centre: Tensor
    offset: Tensor
    temperature: Tensor
    normal: Tensor
    baseline_share: Tensor
    voice: Tensor
    voice_offset: Tensor

    def __init__(
        self,
        size: int,
        *,
        hidden: int = 0,
        threshold: float = 0.0,
        neutral_threshold: float = 0.0,
        pair_threshold: float = 2.0,
        baseline: bool = False,
        voice: bool = False,
        frame_seconds: float = 0.02,
        group: int = 1,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(EMOTIONS), size))
        self.inner = nn.Linear(size, hidden) if hidden else None
        self.outer = nn.Linear(hidden, len(EMOTIONS), bias=False) if hidden else None
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("offset", torch.zeros(len(EMOTIONS)))
        self.register_buffer("temperature", torch.ones(()))
        if baseline:
            self.register_buffer("normal", torch.zeros(size))
            self.register_buffer("baseline_share", torch.ones(()))
        if voice:
            self.register_buffer("voice", torch.zeros(size))
            self.register_buffer("voice_offset", torch.zeros(()))
        self.takes_baseline = baseline
        self.knows_voices = voice
        self.threshold = threshold
        self.neutral_threshold = neutral_threshold
        self.pair_threshold = pair_threshold
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
    def of_means(self, means: Tensor, baselines: Tensor | None = None) -> Tensor:
        """Compute the logits of mean frames, without a gradient.

        Args:
            means: float32 [n, D].
            baselines: float32 [n, D] or [D]; see `read`.

        Returns:
            float32 [n, 5].
        """
        return self._logits(means - self.centre - self._shift(baselines))

    @torch.inference_mode()
    def hears_voice(self, frames: Tensor) -> bool:
        """Tell a voice from other sounds.

        Args:
            frames: float32 [N, D].

        Returns:
            Whether their mean is a voice's; True from a head that was not fitted to tell.
        """
        if not self.knows_voices:
            return True
        mean = frames.to(self.weight.dtype).mean(0) - self.centre
        return bool(mean @ self.voice + self.voice_offset > 0)

    def _shift(self, baseline: Tensor | None) -> Tensor:
        """What a speaker's normal voice takes off every mean frame."""
        if baseline is None:
            return torch.zeros_like(self.centre)
        if not self.takes_baseline:
            return baseline.to(self.centre) - self.centre
        return self.baseline_share * (baseline.to(self.normal) - self.normal)

    def _logits(self, centred: Tensor) -> Tensor:
        logits = centred @ self.weight.T + self.offset
        if self.inner is not None and self.outer is not None:
            logits = logits + self.outer(torch.relu(self.inner(centred)))
        return logits / self.temperature

    @torch.inference_mode()
    def read(
        self,
        frames: Tensor,
        *,
        frame_seconds: float | None = None,
        voiced: Tensor | None = None,
        baseline: Tensor | None = None,
    ) -> EmotionReading:
        """The reading of one utterance.

        Its contributions and its offset sum to the logits of `of_means`.

        Args:
            frames: [N, D], valid frames, N >= 1.
            frame_seconds: duration of a frame; by default the head's.
            voiced: bool [N], the frames that contributions may fall on, at least one: what the others hold, which is
                the mean of those, is shared out among them.
            baseline: [D], the mean frame of the speaker's normal voice; in a head that was not
                fitted for it, it takes the place of the centre.

        Returns:
            The reading, with ceil(N / group) rows of contributions.
        """
        centred = frames.to(self.weight.dtype) - self.centre
        shift = self._shift(baseline)
        weight, constant = self._linear_at(centred.mean(0) - shift)
        shares = (centred @ weight.T / (len(frames) * self.temperature)).float()
        offset = ((constant - weight @ shift) / self.temperature).float().cpu().numpy()
        if voiced is not None:
            silent = ~voiced
            shares = shares + silent.float() @ shares / voiced.sum()
            shares[silent] = 0
        contributions = np.add.reduceat(shares.cpu().numpy(), np.arange(0, len(shares), self.group), axis=0)
        logits = torch.from_numpy(contributions.sum(0) + offset)
        probabilities = torch.softmax(logits, 0).numpy()
        shown = self.candidates(probabilities)
        return EmotionReading(
            probabilities=probabilities,
            label=shown[0] if len(shown) == 1 else UNSURE,
            frame_seconds=(frame_seconds or self.frame_seconds) * self.group,
            contributions=contributions,
            offset=offset,
            candidates=shown,
        )

    def candidates(self, probabilities: NDArray[np.float32]) -> tuple[str, ...]:
        """Decide what may be shown.

        Args:
            probabilities: float32 [5].

        Returns:
            One emotion (sure), two, or none (unsure), the likeliest first.
        """
        first, second = np.argsort(-probabilities, kind="stable")[:2]
        needed = max(self.threshold, self.neutral_threshold) if first == 0 else self.threshold
        if probabilities[first] >= needed:
            return (EMOTIONS[first],)
        if probabilities[first] + probabilities[second] >= self.pair_threshold:
            return (EMOTIONS[first], EMOTIONS[second])
        return ()

    def _linear_at(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """The weight [5, D] and offset [5] of the linear head that this one is around a centred mean frame [D]."""
        if self.inner is None or self.outer is None:
            return self.weight, self.offset
        outer = self.outer.weight * (self.inner(centred) > 0)
        return self.weight + outer @ self.inner.weight, self.offset + outer @ self.inner.bias
