"""Fine-tuning the emotion head on a few dozen recordings of a speaker, without forgetting what it knew.

The current head is the starting point and the anchor: a linear function of the standardised mean frame is added to its
logits, with a penalty on its size; the hidden units do not change. The penalty is chosen by cross-validation, which
includes "do not learn". Every recording is evaluated by a head trained neither on it nor on its speaker's (or its
sentence's) other recordings, with a penalty also chosen without it. Temperature and threshold are set on these held-out
readings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from assistant.events import EMOTIONS
from model.nn.emotion import EmotionHead
from training.emotion.fit_head import temperature_of, threshold_of

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Penalties of a standardised feature's weights, largest first; the first choice is not to learn at all."""

_OFFSET_PENALTY = 0.1  # of the classes' offsets, relative to that of the features
_TEMPERATURES = (0.5, 2.0)  # relative to the head's own: few recordings must not make it overconfident
_LEAST_CALIBRATION = 20  # held-out readings needed to set the threshold
_SPEAKERS = 3  # with this many speakers it is evaluated on held-out speakers


@dataclass(frozen=True, slots=True)
class Rows:
    """Training rows: mean frames [n, D] of the head's input, labels int64 [n], a fold for each."""

    frames: Tensor
    labels: Tensor
    folds: NDArray[np.int64]

    def part(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows where the mask [n] is true."""
        chosen = torch.from_numpy(mask)
        return Rows(self.frames[chosen], self.labels[chosen], self.folds[mask])


def assign_folds(
    emotions: Sequence[str], speakers: Sequence[str], texts: Sequence[str], folds: int
) -> tuple[list[int], str]:
    """Assign folds to recordings.

    Groups are dealt out, largest first, to the fold where their emotions are rarest.

    Returns:
        A fold for each recording, and what no two folds share: "speaker", "sentence" or "recording".
    """
    said = ["".join(c for c in text.lower() if c.isalnum()) for text in texts]
    if all(speakers) and len(set(speakers)) >= _SPEAKERS:
        groups, basis = list(speakers), "speaker"
    elif 2 * sum(map(bool, said)) > len(said) and len(set(said)) > folds:
        groups, basis = [text or f"#{number}" for number, text in enumerate(said)], "sentence"
    else:
        groups, basis = [str(number) for number in range(len(emotions))], "recording"
    folds = min(folds, len(set(groups)))
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    counts = [Counter[str]() for _ in range(folds)]
    chosen = [0] * len(emotions)
    for together in sorted(members.values(), key=lambda one: (-len(one), one[0])):
        own = Counter(emotions[number] for number in together)
        crowd = [(sum(held[e] * n for e, n in own.items()), held.total()) for held in counts]
        fold = crowd.index(min(crowd))
        counts[fold].update(own)
        for number in together:
            chosen[number] = fold
    return chosen, basis


@dataclass(frozen=True, slots=True)
class Addition:
    """What is added to the anchor's calibrated logits: ((x - centre) / scale) weight.T + offset."""

    weight: Tensor
    offset: Tensor
    centre: Tensor
    scale: Tensor

    def __call__(self, frames: Tensor) -> Tensor:
        """Added logits [n, 5] of mean frames [n, D]."""
        return ((frames - self.centre) / self.scale) @ self.weight.T + self.offset


class HeadFit:
    """A fit under one penalty, one step of L-BFGS at a time; with `penalty` None it stays zero."""

    def __init__(self, rows: Rows, anchor: Tensor, penalty: float | None, prosody: int) -> None:
        """Start a fit.

        Args:
            rows: to learn from.
            anchor: the old head's calibrated logits of the rows [n, 5].
            penalty: of the weights; None: do not learn.
            prosody: number of prosody features at the end of a frame.
        """
        size = rows.frames.shape[1]
        centre = rows.frames.mean(0)
        spread = rows.frames.std(0) if len(rows.frames) > 1 else torch.ones(size)
        self._rows, self._anchor, self._penalty = rows, anchor, penalty
        self._weight = torch.zeros(len(EMOTIONS), size, requires_grad=True)
        self._offset = torch.zeros(len(EMOTIONS), requires_grad=True)
        self.addition = Addition(self._weight.detach(), self._offset.detach(), centre, spread.clamp_min(1e-3))
        self._inputs = (rows.frames - centre) / self.addition.scale
        # Encoder features are many and weak: they are penalised more than prosody.
        self._strength = torch.ones(size)
        self._strength[: size - prosody] = 3.0
        counts = torch.bincount(rows.labels, minlength=len(EMOTIONS)).float()
        self._balance = torch.where(counts > 0, counts.clamp_min(1).rsqrt(), 0.0)
        self._optimiser = torch.optim.LBFGS(
            [self._weight, self._offset], max_iter=2, history_size=10, line_search_fn="strong_wolfe"
        )

    def loss(self) -> Tensor:
        """The training loss without the penalty."""
        logits = self._anchor + self._inputs @ self._weight.T + self._offset
        return cross_entropy(logits, self._rows.labels, self._balance)

    def step(self) -> float:
        """Do one step; returns the loss before it."""
        if self._penalty is None:
            return float(self.loss().detach())

        def closure() -> Tensor:
            self._optimiser.zero_grad()
            size = (self._strength * self._weight**2).sum() + _OFFSET_PENALTY * (self._offset**2).sum()
            loss = self.loss() + (self._penalty or 0.0) * size
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        before: Tensor = self._optimiser.step(closure)  # type: ignore[no-untyped-call]
        return float(before.detach())

    def run(self, steps: int) -> Addition:
        """Step until there is no improvement, at most `steps` times."""
        before = float("inf")
        for _ in range(steps):
            now = self.step()
            if before - now < 1e-5:
                break
            before = now
        return self.addition


def held_out_logits(rows: Rows, anchor: Tensor, penalty: float | None, prosody: int, steps: int) -> Tensor:
    """Logits [n, 5] of every row by a fit on the other folds."""
    logits = anchor.clone()
    for fold in np.unique(rows.folds):
        out = rows.folds == fold
        if penalty is not None and not out.all():
            kept = torch.from_numpy(~out)
            addition = HeadFit(rows.part(~out), anchor[kept], penalty, prosody).run(steps)
            logits[torch.from_numpy(out)] += addition(rows.frames[torch.from_numpy(out)])
    return logits


def choose_penalty(rows: Rows, anchor: Tensor, prosody: int, steps: int) -> tuple[float | None, dict[str, float]]:
    """The penalty with the lowest held-out loss, None for not learning, and the losses of all.

    Of two whose losses differ by less than 0.01 the larger penalty is chosen.
    """
    balance = torch.bincount(rows.labels, minlength=len(EMOTIONS)).float().clamp_min(1).rsqrt()
    losses: dict[float | None, float] = {}
    for penalty in (None, *PENALTIES):
        logits = held_out_logits(rows, anchor, penalty, prosody, steps)
        losses[penalty] = float(cross_entropy(logits, rows.labels, balance))
        if penalty is not None and losses[penalty] > min(losses.values()) + 0.2:
            break  # smaller penalties are even worse
    best = min(losses.values())
    chosen = next(penalty for penalty, loss in losses.items() if loss <= best + 0.01)
    return chosen, {"not at all" if penalty is None else f"{penalty:g}": loss for penalty, loss in losses.items()}


@dataclass(frozen=True, slots=True)
class Tuned:
    """The result of tuning.

    Attributes:
        head: the new head, trained on all rows, with its temperature.
        threshold: for the new head.
        held_out: probabilities [n, 5] of every row by a head not trained on it.
        penalty: of the final fit; None: it did not learn.
        losses: held-out loss of each penalty.
    """

    head: dict[str, Tensor]
    threshold: float
    held_out: Tensor
    penalty: float | None
    losses: dict[str, float]


Watch = Callable[[int, float, float, float], None]
"""Called after a step: its number, the loss, the held-out loss, the held-out accuracy."""


def tune_head(
    head: EmotionHead, threshold: float, rows: Rows, prosody: int, steps: int, watch: Watch = lambda *_: None
) -> Tuned:
    """Train the head on the rows; `prosody` is the number of prosody features at the end of a frame."""
    anchor = head.of_means(rows.frames)
    held_out = anchor.clone()
    for fold in np.unique(rows.folds):  # each fold with a penalty chosen without it
        out = rows.folds == fold
        if out.all():
            continue
        kept = torch.from_numpy(~out)
        inner, inner_anchor = rows.part(~out), anchor[kept]
        penalty, _ = choose_penalty(inner, inner_anchor, prosody, steps)
        if penalty is not None:
            addition = HeadFit(inner, inner_anchor, penalty, prosody).run(steps)
            held_out[~kept] += addition(rows.frames[~kept])
    penalty, losses = choose_penalty(rows, anchor, prosody, steps)
    addition = _watched(rows, anchor, penalty, prosody, steps, watch)
    temperature, sure = 1.0, threshold
    if len(rows.labels) >= _LEAST_CALIBRATION and penalty is not None:
        temperature = float(np.clip(temperature_of(held_out, rows.labels), *_TEMPERATURES))
        sure = threshold_of(torch.softmax(held_out / temperature, 1), rows.labels)
    return Tuned(_joined(head, addition, temperature), sure, torch.softmax(held_out / temperature, 1), penalty, losses)


def _watched(rows: Rows, anchor: Tensor, penalty: float | None, prosody: int, steps: int, watch: Watch) -> Addition:
    """The final fit, and in parallel one fit per left-out fold, for the validation curves."""
    fit = HeadFit(rows, anchor, penalty, prosody)
    outs = [rows.folds == fold for fold in np.unique(rows.folds)]
    held_out_fits = [
        (HeadFit(rows.part(~out), anchor[torch.from_numpy(~out)], penalty, prosody), torch.from_numpy(out))
        for out in outs
        if not out.all()
    ]
    before = float("inf")
    for step in range(1, steps + 1):
        loss = fit.step()
        logits = anchor.clone()
        for other, out in held_out_fits:
            other.step()
            logits[out] += other.addition(rows.frames[out])
        right = float((logits.argmax(1) == rows.labels).float().mean())
        watch(step, float(fit.loss().detach()), float(cross_entropy(logits, rows.labels)), right)
        if before - loss < 1e-5:
            break
        before = loss
    return fit.addition


def _joined(head: EmotionHead, addition: Addition, temperature: float) -> dict[str, Tensor]:
    """One head whose logits are (the old head's + the addition) / temperature."""
    own = float(head.temperature)
    with torch.no_grad():
        added = addition.weight / addition.scale
        weight = head.weight.detach().float() / own + added
        offset = head.offset / own + addition.offset + (head.centre - addition.centre) @ added.T
    return head.state_dict() | {
        "weight": weight * own,
        "centre": head.centre.clone(),
        "offset": offset * own,
        "temperature": torch.tensor(own * temperature),
    }
