"""The emotion head for people: one regression over mean frames, and when its answer may be shown.

Corpora, emotions and renditions weigh alike, ordinary speech a fixed share of a corpus' emotion. The regression is
linear, so a reading splits exactly over its frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from assistant.events import EMOTIONS
from training.emotion.corpora import UNACTED, MeanFrames
from training.emotion.fit_head import Fit

Mask = NDArray[np.bool_]

LAYERS = (2, 3, 4, 5)
"""Whisper base's layers that stand side by side in a mean frame."""
L2 = 0.01
"""Penalty of a standardised feature's weights."""
STEPS = 30
BASELINE_CLIPS = 2
_MOST_CALM_WRONG, _MOST_SURE_WRONG, _LEAST_PAIR = 0.025, 0.30, 0.80
_GRID = np.concatenate([np.arange(0.30, 0.95, 0.01), np.arange(0.95, 0.9995, 0.002)])


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is chosen before fitting.

    Attributes:
        unacted: weight of ordinary speech, in shares of a corpus' emotion.
        layers: see `LAYERS`; l2: see `L2`.
        baseline: how far a speaker's own normal voice takes the place of everybody's, 0 to 1.
    """

    unacted: float = 0.6
    layers: tuple[int, ...] = LAYERS
    l2: float = L2
    baseline: float = 0.5


def weigh(frames: MeanFrames, rows: Mask, unacted: float) -> NDArray[np.float64]:
    """Weights [n] that sum to 1 over `rows`: every acted corpus' emotion alike, ordinary corpora `unacted` together."""
    sources, corpora, labels = frames.sources, frames.corpora, frames.labels
    weights = np.zeros(len(labels))
    for source in np.unique(sources[rows]):
        own = rows & (sources == source)
        if source == UNACTED:
            names = np.unique(corpora[own])
            for name in names:
                weights[own & (corpora == name)] = unacted / len(names) / (own & (corpora == name)).sum()
            continue
        for emotion in np.unique(labels[own]):
            weights[own & (labels == emotion)] = 1 / (own & (labels == emotion)).sum()
    return np.asarray(weights / weights.sum())


def fit(inputs: Tensor, labels: NDArray[np.int64], weights: NDArray[np.float64], l2: float) -> Fit:
    """A weighted multinomial logistic regression on standardised features by L-BFGS.

    Args:
        inputs: [n, D].
        labels: [n].
        weights: [n], summing to 1.
        l2: of every standardised feature's weights (weighted mean loss + l2 times the sum of squares).
    """
    share, wanted = torch.from_numpy(weights).float(), torch.from_numpy(labels)
    centre = share @ inputs
    given = inputs - centre
    scale = (share @ given**2).sqrt().clamp_min(1e-4)
    given /= scale
    weight = torch.zeros(len(EMOTIONS), given.shape[1], requires_grad=True)
    offset = torch.zeros(len(EMOTIONS), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, offset], max_iter=STEPS, history_size=15, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        losses = cross_entropy(given @ weight.T + offset, wanted, reduction="none")
        loss = (share * losses).sum() + l2 * (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Fit((weight / scale).detach(), centre, offset.detach())


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Mean frames ready to be fitted, and each row's baseline.

    Attributes:
        inputs: [n, D].
        baselines: [n, D], the mean of the speaker's chosen neutral clips through the same channel; NaN: none.
        spent: [n], rows that are part of a baseline, which are not scored beside it.
    """

    frames: MeanFrames
    inputs: Tensor
    baselines: Tensor
    spent: Mask

    @classmethod
    def of(cls, frames: MeanFrames, recipe: Recipe, seed: int = 0) -> Data:
        """The data of a recipe; `seed`: which neutral clips make a baseline."""
        inputs = frames.features(recipe.layers)
        names = np.array([str(clip.audio) for clip in frames.clips])
        baselines, spent = torch.full_like(inputs, torch.nan), np.zeros(len(names), bool)
        rng = np.random.default_rng(seed)
        for speaker in np.unique(frames.speakers):
            own = frames.speakers == speaker
            neutral = np.unique(names[own & (frames.labels == 0)])
            if len(neutral) <= BASELINE_CLIPS:
                continue
            chosen = np.isin(names, rng.choice(neutral, BASELINE_CLIPS, replace=False))
            for draw in np.unique(frames.draws[own]):
                rows = own & (frames.draws == draw)
                if (rows & chosen).any():
                    baselines[torch.from_numpy(rows)] = inputs[torch.from_numpy(rows & chosen)].mean(0)
            spent |= own & chosen
        return cls(frames, inputs, baselines, spent)

    @property
    def has_baseline(self) -> Mask:
        """Rows [n] whose speaker has a baseline that they are not part of."""
        known: Mask = ~self.baselines[:, 0].isnan().numpy()
        return known & ~self.spent


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A fit with the mean frame of ordinary voices, for whoever knows a speaker's own one.

    Attributes:
        normal: [D]; share: see `Recipe.baseline`.
    """

    fit: Fit
    normal: Tensor
    share: float

    def logits(self, data: Data, rows: Mask, *, baseline: bool = False) -> Tensor:
        """Logits [rows, 5], with the speakers' baselines or without."""
        chosen = torch.from_numpy(rows)
        inputs = data.inputs[chosen]
        if baseline:
            inputs = inputs - self.share * (data.baselines[chosen] - self.normal)
        return self.fit(inputs)


def fit_people(data: Data, rows: Mask, recipe: Recipe) -> Fitted:
    """Fit on `rows`, each as it is and, where it has a baseline, without it."""
    frames = data.frames
    corpora, labels = frames.corpora, frames.labels
    neutral = rows & (labels == 0)
    means = [data.inputs[torch.from_numpy(neutral & (corpora == name))].mean(0) for name in np.unique(corpora[neutral])]
    normal = torch.stack(means).mean(0)
    weights = weigh(frames, rows, recipe.unacted)[rows]
    inputs, wanted = data.inputs[torch.from_numpy(rows)], labels[rows]
    moved = rows & data.has_baseline
    if recipe.baseline and moved.any():
        at = torch.from_numpy(moved)
        shifted = data.inputs[at] - recipe.baseline * (data.baselines[at] - normal)
        inputs, wanted = torch.cat([inputs, shifted]), np.concatenate([wanted, labels[moved]])
        weights = np.concatenate([weights, weigh(frames, moved, recipe.unacted)[moved]]) / 2
    return Fitted(fit(inputs, wanted, weights, recipe.l2), normal, recipe.baseline)


# ---- what is left out


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Readings of clips as they are, by fits that did not know them.

    Attributes:
        logits: [n, 5]; labels: [n]; groups: [n], what each clip counts under.
    """

    logits: Tensor
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]

    def part(self, group: str) -> Held:
        """The clips of one group."""
        at = self.groups == group
        return Held(self.logits[torch.from_numpy(at)], self.labels[at], self.groups[at])

    def parts(self) -> Iterator[tuple[str, Held]]:
        """Every group with its clips."""
        return ((name, self.part(name)) for name in np.unique(self.groups))


Both = tuple[Held, Held]
"""Readings without and with the speakers' baselines; the second holds no clip that is part of one."""


def folds_of(frames: MeanFrames, count: int, seed: int = 0) -> NDArray[np.int64]:
    """A fold for each row: speakers of every corpus are dealt out over `count` folds."""
    rng, dealt = np.random.default_rng(seed), dict[str, int]()
    for name in np.unique(frames.corpora):
        speakers = np.unique(frames.speakers[frames.corpora == name])
        rng.shuffle(speakers)
        dealt.update((str(speaker), at % count) for at, speaker in enumerate(speakers))
    return np.array([dealt[str(speaker)] for speaker in frames.speakers])


def leave_corpora(data: Data, rows: Mask, recipe: Recipe, corpora: Sequence[str], *, draw: int = 0) -> Both:
    """Readings of each acted corpus by a fit on all others; beside them, a quarter of the ordinary speakers.

    Args:
        data: what is fitted and read.
        rows: those that may be used, bool [n].
        recipe: of the fits.
        corpora: the corpora to leave out.
        draw: the rendition of the clips that are read.
    """
    frames = data.frames
    calm = (frames.sources == UNACTED) & (folds_of(frames, 4) == 0)
    held = []
    for corpus in corpora:
        own = frames.sources == corpus
        fitted = fit_people(data, rows & ~own & ~calm, recipe)
        held += [_read(data, fitted, rows & group & (frames.draws == draw)) for group in (own, calm)]
    return _joined(held)


def leave_speakers(data: Data, rows: Mask, recipe: Recipe, folds: int) -> Both:
    """Readings of every speaker by a fit on the other folds' speakers."""
    frames, dealt = data.frames, folds_of(data.frames, folds)
    held = []
    for fold in range(folds):
        fitted = fit_people(data, rows & (dealt != fold), recipe)
        held.append(_read(data, fitted, rows & (dealt == fold) & (frames.draws == 0)))
    return _joined(held)


def _read(data: Data, fitted: Fitted, rows: Mask) -> Both:
    frames, known = data.frames, rows & data.has_baseline
    return (
        Held(fitted.logits(data, rows), frames.labels[rows], frames.sources[rows]),
        Held(fitted.logits(data, known, baseline=True), frames.labels[known], frames.sources[known]),
    )


def _joined(held: Sequence[Both]) -> Both:
    def joined(parts: Sequence[Held]) -> Held:
        return Held(
            torch.cat([one.logits for one in parts]),
            np.concatenate([one.labels for one in parts]),
            np.concatenate([one.groups for one in parts]),
        )

    without, beside = zip(*held, strict=True)
    return joined(without), joined(beside)


# ---- when an answer is shown


@dataclass(frozen=True, slots=True)
class Display:
    """From logits to what is shown; see `EmotionHead`.

    Attributes:
        threshold, neutral_threshold: confidence from which an emotion, or neutral, is shown alone.
        pair_threshold: what the two likeliest need together to be shown as candidates.
    """

    temperature: float
    threshold: float
    neutral_threshold: float
    pair_threshold: float

    def sure(self, probabilities: NDArray[np.float32]) -> Mask:
        """Which rows of probabilities [n, 5] are shown as one label."""
        best = probabilities.argmax(1)
        needed = np.where(best == 0, max(self.threshold, self.neutral_threshold), self.threshold)
        return np.asarray(probabilities.max(1) >= needed)

    def paired(self, probabilities: NDArray[np.float32]) -> Mask:
        """Which rows are shown as two candidates."""
        two = np.sort(probabilities, 1)[:, -2:].sum(1)
        return np.asarray((two >= self.pair_threshold) & ~self.sure(probabilities))


def choose_display(corpora: Held, speakers: Held) -> Display:
    """Temperature and thresholds from readings of corpora and of speakers that were left out.

    The temperature is that of the least loss on speakers: with one that suits corpora left out, which are read less
    well, readings of voices that are like the known ones would be far too unsure. The thresholds make up for it. An
    emotion's lets at most 2.5 % of ordinary people be surely read as another one; neutral's lets at most 30 % of the
    sure readings of corpora left out be wrong; a pair's keeps the truth in 80 % of theirs.
    """
    temperature = _temperature(speakers)
    calm = [_probabilities(held.part(UNACTED), temperature) for held in (corpora, speakers)]
    other = np.concatenate([np.where(p.argmax(1) > 0, p.max(1), 0) for p in calm if len(p)] or [np.zeros(1)])
    threshold = float(next((t for t in _GRID if (other >= t).mean() <= _MOST_CALM_WRONG), _GRID[-1]))
    acted = [(_probabilities(p, temperature), p.labels) for name, p in corpora.parts() if name != UNACTED]
    trials = [Display(temperature, threshold, float(t), 2.0) for t in _GRID]
    neutral = next((d.neutral_threshold for d in trials if _wrong(d, acted) <= _MOST_SURE_WRONG), float(_GRID[-1]))
    trials = [Display(temperature, threshold, neutral, float(t)) for t in _GRID]
    pair = next((d.pair_threshold for d in trials if _in_pair(d, acted) >= _LEAST_PAIR), float(_GRID[-1]))
    return Display(temperature, threshold, neutral, pair)


def _probabilities(held: Held, temperature: float) -> NDArray[np.float32]:
    return torch.softmax(held.logits / temperature, 1).numpy()


def _temperature(speakers: Held) -> float:
    """The temperature of the least loss (Guo et al. 2017), acted corpora weighing alike."""
    grid = torch.exp(torch.arange(-1.0, 1.6, 0.02))
    parts = [part for name, part in speakers.parts() if name != UNACTED]
    losses = [
        torch.stack([cross_entropy(part.logits / t, torch.from_numpy(part.labels)) for t in grid]) for part in parts
    ]
    return float(grid[torch.stack(losses).mean(0).argmin()])


def _wrong(display: Display, acted: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> float:
    """Mean over corpora of the share of sure readings that are wrong."""
    shares = []
    for probabilities, labels in acted:
        sure = display.sure(probabilities)
        shares.append(float((probabilities.argmax(1) != labels)[sure].mean()) if sure.any() else 0.0)
    return float(np.mean(shares))


def _in_pair(display: Display, acted: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> float:
    """Mean over corpora of the share of pairs that hold the truth."""
    shares = []
    for probabilities, labels in acted:
        shown = display.paired(probabilities)
        two = np.argsort(-probabilities, 1)[:, :2]
        shares.append(float((two == labels[:, None]).any(1)[shown].mean()) if shown.any() else 1.0)
    return float(np.mean(shares))
