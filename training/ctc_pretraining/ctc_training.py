"""CTC pretraining of an adapter: encoder states to the language model's tokens.

Connectionist temporal classification (Graves et al. 2006) over the tokenizer's ids. A frame's score for token k is -s
|f - E_k|^2 with E the language model's own, frozen embeddings, projected to where frames can lie (`on_sphere`): the
adapter's last layer norm is frozen on that sphere. `model.nn.ctc_adapter` defines what the language model receives of
the frames.

The scores of a batch are normalised over its own tokens and a random sample of the others, weighted by their number
(sampled softmax, Bengio & Senecal 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.nn.ctc_adapter import CtcAdapter
from training.data.feature_cache import FeatureCache
from training.metrics.wer import word_errors

RADIUS = 1.5
"""Radius of the frames, which an adapter's last layer norm fixes, in units of the token embeddings' standard deviation
per dimension. Frequent tokens are at about 1.6, rare ones at 0.8."""


def on_sphere(vectors: Tensor, embeddings: Tensor) -> Tensor:
    """Project vectors, in their direction from the mean embedding, to where an adapter's frames can lie.

    Args:
        vectors: [..., E].
        embeddings: [V, E], the language model's.

    Returns:
        [..., E].
    """
    mean, spread = embeddings.mean(0), embeddings.std(0)
    return mean + RADIUS * spread * nn.functional.layer_norm((vectors - mean) / spread, vectors.shape[-1:])


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of a corpus: its cached states, its manifest row and its tokens."""

    cache: FeatureCache
    row: dict[str, Any]
    ids: tuple[int, ...]

    @property
    def frames(self) -> int:
        """Number of encoder frames."""
        return self.cache.frames(self.row["key"])


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a run; stored in its checkpoint, so that a resumed run is the same run.

    Attributes:
        kernel_sizes: the adapter's (`model.nn.ctc_adapter.CtcAdapter`).
        inner_size: the adapter's.
        layers: the adapter's.
        start: folder of another run whose averaged weights are the initial ones; layers that it lacks are new.
        steps: in total; the learning rate rises over `warm_up` steps, is constant, and falls to zero over the last
            fifth.
        batch_frames: encoder frames of a batch, padding included (50 per second).
        sharpness: s above. Tokens are about 4.7 apart: with 0.5 and 10,000 of them no frame can be certain, and the
            loss stays above 3.
        negatives: tokens in each step's normalisation besides the batch's own.
        averaging: decay of the moving average of the weights, which is validated and saved.
        masks: spans of time set to zero in each clip (SpecAugment, Park et al. 2019).
        mask_frames: the longest span.
        drop_channels: share of encoder channels set to zero.
        noise: relative to a channel's size.
        stretch: clips are resampled in time by up to this factor either way.
    """

    kernel_sizes: tuple[int, ...] = (5, 5)
    inner_size: int = 2048
    layers: int = 0
    start: str = ""
    steps: int = 60_000
    batch_frames: int = 6_000
    learning_rate: float = 1e-3
    warm_up: int = 500
    weight_decay: float = 0.01
    sharpness: float = 1.0
    negatives: int = 4_000
    averaging: float = 0.999
    masks: int = 2
    mask_frames: int = 12
    drop_channels: float = 0.1
    noise: float = 0.15
    stretch: float = 0.12
    seed: int = 0
    bfloat16: bool = False


class _ProductConvolution(nn.Conv1d):
    """The same convolution as one matrix product over its windows: three times as fast in bfloat16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x.transpose(1, 2), (0, 0, int(self.padding[0]), int(self.padding[0])))
        windows = padded.unfold(1, self.kernel_size[0], self.stride[0]).transpose(2, 3).flatten(2)
        return nn.functional.linear(windows, self.weight.transpose(1, 2).flatten(1), self.bias).transpose(1, 2)


class CtcPretrainer(nn.Module):
    """A CTC adapter in training: encoder states to scores of tokens.

    Args:
        recipe: sizes and sharpness.
        embeddings: [V, E], the language model's; frozen.
        scale: [D], the size of each encoder channel; states are divided by it before the adapter.
        blank: [E], the point of blank frames; frozen.
    """

    scale: Tensor
    embeddings: Tensor

    def __init__(self, recipe: Recipe, embeddings: Tensor, scale: Tensor, blank: Tensor) -> None:
        super().__init__()
        sizes = (len(scale), embeddings.shape[1], recipe.inner_size, recipe.kernel_sizes)
        self.adapter = CtcAdapter(*sizes, len(embeddings), recipe.layers)
        last = len(recipe.kernel_sizes) - 1
        self.adapter.convolutions = nn.ModuleList(
            _ProductConvolution(
                len(scale), 2 * (len(scale) if i < last else embeddings.shape[1]), kernel, 2, kernel // 2
            )
            for i, kernel in enumerate(recipe.kernel_sizes)
        )
        # Frozen at the targets: when trained, frames grew to many times the size of embeddings.
        self.adapter.norm.weight.data.copy_(RADIUS * embeddings.std(0))
        self.adapter.norm.bias.data.copy_(embeddings.mean(0))
        self.adapter.norm.requires_grad_(False)
        self.adapter.blank.copy_(blank)
        self.adapter.sharpness.fill_(recipe.sharpness)
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.register_buffer("scale", scale)

    def frames(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Adapter frames [B, N, E] of encoder states [B, T, D] and their counts [B]."""
        frames, mask = self.adapter(states / self.scale, lengths)
        return frames, mask.sum(1)

    def scores(self, frames: Tensor, tokens: Tensor) -> Tensor:
        """[B, N, 1 + len(tokens)] scores of the blank and of `tokens`."""
        return self.adapter.scores(frames, self.embeddings[tokens])

    def exported(self, vocabulary: Tensor) -> dict[str, Tensor]:
        """The adapter under its names in a checkpoint, with `scale` folded in; its candidates are `vocabulary`."""
        weights = {f"adapter.{name}": value.detach().clone() for name, value in self.adapter.state_dict().items()}
        weights["adapter.convolutions.0.weight"] /= self.scale[None, :, None]
        weights["adapter.spells"].zero_()[vocabulary] = True
        return weights


def augment(states: Tensor, recipe: Recipe, scale: Tensor, random: np.random.Generator) -> Tensor:
    """One clip's states [T, D] with another tempo, noise, and spans of time and channels set to zero."""
    factor = float(random.uniform(1 - recipe.stretch, 1 + recipe.stretch))
    size = max(8, round(len(states) * factor))
    states = nn.functional.interpolate(states.T[None], size, mode="linear")[0].T
    noise = torch.from_numpy(random.standard_normal(states.shape, np.float32))
    states = states + recipe.noise * float(random.random()) * scale * noise
    for _ in range(recipe.masks):
        length = int(random.integers(recipe.mask_frames + 1))
        start = int(random.integers(max(1, size - length)))
        states[start : start + length] = 0
    kept = torch.from_numpy(random.random(states.shape[1]) >= recipe.drop_channels * random.random())
    return states * kept


def loss_of(pretrainer: CtcPretrainer, batch: list[Clip], vocabulary: Tensor, recipe: Recipe, step: int) -> Tensor:
    """CTC loss per token of a batch; `step` determines its augmentation and its negatives."""
    random = np.random.default_rng([recipe.seed, 2, step])
    states = [augment(clip.cache[clip.row["key"]], recipe, pretrainer.scale, random) for clip in batch]
    lengths = torch.tensor([len(rows) for rows in states])
    own, places = torch.unique(torch.tensor([i for clip in batch for i in clip.ids]), return_inverse=True)
    others = vocabulary[~torch.isin(vocabulary, own)]
    drawn = others[torch.from_numpy(random.permutation(len(others))[: recipe.negatives])]
    tokens = torch.cat([own, drawn])
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        frames, counts = pretrainer.frames(nn.utils.rnn.pad_sequence(states, batch_first=True), lengths)
        scores = pretrainer.scores(frames, tokens)
    if len(drawn):
        scores[..., 1 + len(own) :] += math.log(len(others) / len(drawn))
    logs = scores.log_softmax(-1)
    sizes = torch.tensor([len(clip.ids) for clip in batch])
    losses = nn.functional.ctc_loss(
        logs.transpose(0, 1), places + 1, counts, sizes, reduction="none", zero_infinity=True
    )
    return losses.sum() / sizes.sum()


@torch.inference_mode()
def transcribe_ctc(pretrainer: CtcPretrainer, clips: list[Clip], vocabulary: Tensor, tokenizer: Any) -> list[str]:
    """Greedy CTC decoding of the adapter's frames, clip by clip."""
    read = []
    for clip in clips:
        states = clip.cache[clip.row["key"]][None]
        frames, _ = pretrainer.frames(states, torch.tensor([states.shape[1]]))
        best = pretrainer.scores(frames, vocabulary)[0].argmax(-1).unique_consecutive()  # type: ignore[no-untyped-call]
        read.append(tokenizer.decode(vocabulary[best[best > 0] - 1].tolist()))
    return read


def word_error(pretrainer: CtcPretrainer, clips: list[Clip], vocabulary: Tensor, tokenizer: Any) -> dict[str, float]:
    """Word error rate of greedy decoding by set ("split engine"), over all words of a set."""
    totals: dict[str, list[int]] = {}
    for clip, text in zip(clips, transcribe_ctc(pretrainer, clips, vocabulary, tokenizer), strict=True):
        errors, words = word_errors(clip.row["text"], text)
        name = f"{clip.row['split']} {clip.row['voice'] if clip.row['engine'] == 'human' else clip.row['engine']}"
        total = totals.setdefault(name, [0, 0])
        total[0] += errors
        total[1] += words
    return {name: round(errors / words, 4) for name, (errors, words) in sorted(totals.items())}
