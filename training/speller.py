"""An adapter that spells: encoder states to frames at the language model's token embeddings, by CTC.

Connectionist temporal classification (Graves et al. 2006) over the tokenizer's ids. A frame's score for token k is
-s |f - E_k|^2 with E the language model's own, frozen embeddings, moved to where frames can lie (`blank.on_sphere`).
The part of that distance that all tokens share cancels in the scores, so frames could wander off and still spell
well. Three things keep them at the embeddings: the adapter's last layer norm is frozen on the sphere, s is fixed so
low that only a frame close to its token is certain, and each frame is drawn to where the alignment with the
transcript expects it. Then what the language model receives is its own text with one fixed vector, the blank, between
the tokens.

The scores of a batch are normalised over its own tokens and a random share of the others, each counted as often as
it stands for (sampled softmax, Bengio & Senecal 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.adapter import ConvAdapter

from .blank import RADIUS, on_sphere
from .features import FeatureCache
from .words import word_errors


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of a corpus: where its states are, how long they are, what is said."""

    cache: FeatureCache
    row: dict[str, Any]
    ids: tuple[int, ...]

    @property
    def frames(self) -> int:
        return self.cache.frames(self.row["key"])


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run does; kept in its checkpoint, so that a resumed run is the same run.

    Attributes:
        kernel_sizes, inner_size: the adapter's (`model.adapter.ConvAdapter`).
        steps: in all; the learning rate rises over `warm_up` steps, stays, and falls to zero over the last fifth.
        batch_frames: encoder frames of a batch, padding included (50 a second).
        sharpness: s above. pull: weight of a frame's squared distance from the vector that the alignment expects.
        negatives: tokens beside the batch's own in each step's normalisation.
        averaging: decay of the running mean of the weights, which is what is validated and saved.
        masks, mask_frames: spans of time set to zero in each clip, and the longest (SpecAugment, Park et al. 2019).
        drop_channels, noise: share of encoder channels set to zero; noise relative to a channel's size.
        stretch: clips are resampled in time by up to this factor either way.
    """

    kernel_sizes: tuple[int, ...] = (5, 5)
    inner_size: int = 2048
    steps: int = 60_000
    batch_frames: int = 6_000
    learning_rate: float = 1e-3
    warm_up: int = 500
    weight_decay: float = 0.01
    sharpness: float = 0.5
    pull: float = 0.01
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
    """The same convolution as one matrix product over its windows: three times faster in bfloat16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x.transpose(1, 2), (0, 0, int(self.padding[0]), int(self.padding[0])))
        windows = padded.unfold(1, self.kernel_size[0], self.stride[0]).transpose(2, 3).flatten(2)
        return nn.functional.linear(windows, self.weight.transpose(1, 2).flatten(1), self.bias).transpose(1, 2)


class Speller(nn.Module):
    """Adapter and blank vector: encoder states to scores of tokens.

    Args:
        embeddings: [V, E], the language model's; frozen.
        scale: [D], the size of each encoder channel; states are divided by it before the adapter.
        blank: [E], the vector between tokens; frozen.
    """

    scale: Tensor
    blank: Tensor
    centre: Tensor
    targets: Tensor

    def __init__(self, recipe: Recipe, embeddings: Tensor, scale: Tensor, blank: Tensor) -> None:
        super().__init__()
        self.adapter = ConvAdapter(len(scale), embeddings.shape[1], recipe.inner_size, recipe.kernel_sizes)
        last = len(recipe.kernel_sizes) - 1
        self.adapter.convolutions = nn.ModuleList(
            _ProductConvolution(
                len(scale), 2 * (len(scale) if i < last else embeddings.shape[1]), kernel, 2, kernel // 2
            )
            for i, kernel in enumerate(recipe.kernel_sizes)
        )
        # Frozen where the targets lie: trained, it let frames grow to many times the size of embeddings.
        self.adapter.norm.weight.data.copy_(RADIUS * embeddings.std(0))
        self.adapter.norm.bias.data.copy_(embeddings.mean(0))
        self.adapter.norm.requires_grad_(False)
        self.sharpness = recipe.sharpness
        centre = embeddings.mean(0)
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("targets", on_sphere(embeddings, embeddings) - centre, persistent=False)
        self.register_buffer("blank", blank - centre)
        self.register_buffer("scale", scale)

    def frames(self, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Adapter frames [B, N, E] of encoder states [B, T, D] and their counts [B]."""
        frames, mask = self.adapter(states / self.scale, lengths)
        return frames, mask.sum(1)

    def scores(self, frames: Tensor, tokens: Tensor) -> Tensor:
        """[B, N, 1 + len(tokens)]: -s |f - E_k|^2 without the part all tokens share; the blank comes first."""
        near = self.near(tokens)
        return self.sharpness * (2 * ((frames - self.centre) @ near.T).float() - near.square().sum(1))

    def near(self, tokens: Tensor) -> Tensor:
        """Where frames of the blank and of `tokens` belong, from the centre, [1 + len(tokens), E]."""
        return torch.cat([self.blank[None], self.targets[tokens]])

    def exported(self) -> dict[str, Tensor]:
        """The adapter's weights under its names in a checkpoint, the division by `scale` folded in."""
        weights = {f"adapter.{name}": value.detach().clone() for name, value in self.adapter.named_parameters()}
        weights["adapter.convolutions.0.weight"] /= self.scale[None, :, None]
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


def loss_of(speller: Speller, batch: list[Clip], vocabulary: Tensor, recipe: Recipe, step: int) -> Tensor:
    """CTC loss and pull per token of a batch; `step` fixes its augmentation and its negatives."""
    random = np.random.default_rng([recipe.seed, 2, step])
    states = [augment(clip.cache[clip.row["key"]], recipe, speller.scale, random) for clip in batch]
    lengths = torch.tensor([len(rows) for rows in states])
    own, places = torch.unique(torch.tensor([i for clip in batch for i in clip.ids]), return_inverse=True)
    others = vocabulary[~torch.isin(vocabulary, own)]
    drawn = others[torch.from_numpy(random.permutation(len(others))[: recipe.negatives])]
    tokens = torch.cat([own, drawn])
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        frames, counts = speller.frames(nn.utils.rnn.pad_sequence(states, batch_first=True), lengths)
        scores = speller.scores(frames, tokens)
    if len(drawn):
        scores[..., 1 + len(own) :] += math.log(len(others) / len(drawn))
    logs = scores.log_softmax(-1)
    sizes = torch.tensor([len(clip.ids) for clip in batch])
    losses = nn.functional.ctc_loss(
        logs.transpose(0, 1), places + 1, counts, sizes, reduction="none", zero_infinity=True
    )
    # PyTorch's gradient of the loss is softmax less the alignment's posterior: one backward pass gives both.
    (slope,) = torch.autograd.grad(losses.sum(), logs, retain_graph=True)
    aligned = (logs.detach().exp() - slope).to(frames.dtype) @ speller.near(tokens).to(frames.dtype)
    heard = torch.arange(frames.shape[1]) < counts[:, None]
    away = (frames - speller.centre - aligned)[heard].float().square().sum()
    # The first term's gradient is that of the CTC loss, its value is not: the value is put in its place.
    spelled = (logs * slope).sum()
    return (spelled - spelled.detach() + losses.sum().detach() + recipe.pull * away) / sizes.sum()


@torch.inference_mode()
def spell(speller: Speller, clips: list[Clip], vocabulary: Tensor, tokenizer: Any) -> list[str]:
    """What the adapter's frames spell, greedily, clip by clip."""
    read = []
    for clip in clips:
        states = clip.cache[clip.row["key"]][None]
        frames, _ = speller.frames(states, torch.tensor([states.shape[1]]))
        best = speller.scores(frames, vocabulary)[0].argmax(-1).unique_consecutive()  # type: ignore[no-untyped-call]
        read.append(tokenizer.decode(vocabulary[best[best > 0] - 1].tolist()))
    return read


def word_error(speller: Speller, clips: list[Clip], vocabulary: Tensor, tokenizer: Any) -> dict[str, float]:
    """Word error of the greedy reading by set ("split engine"), word by word over the whole set."""
    totals: dict[str, list[int]] = {}
    for clip, text in zip(clips, spell(speller, clips, vocabulary, tokenizer), strict=True):
        errors, words = word_errors(clip.row["text"], text)
        name = f"{clip.row['split']} {clip.row['voice'] if clip.row['engine'] == 'human' else clip.row['engine']}"
        total = totals.setdefault(name, [0, 0])
        total[0] += errors
        total[1] += words
    return {name: round(errors / words, 4) for name, (errors, words) in sorted(totals.items())}
