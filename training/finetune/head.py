"""The emotion head learns a speaker from a few dozen recordings, without forgetting what it knew.

The head in use is the starting point and the anchor: its logits get an addition that is linear in the standardised
mean frame, under a penalty that says how far it may go; its hidden units stay as they are. The penalty is chosen by
cross-validation, "do not learn" among the choices; every recording is judged by a head that learnt neither from it nor
from its speaker's (or its sentence's) other recordings, with a penalty chosen without it as well. Temperature and
threshold are set on those held-out readings.
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
"""Penalty of a standardised feature's weights, the shyest first; before them stands not to learn at all."""

_OFFSET_PENALTY = 0.1  # of the classes' constants, in shares of the features'
_TEMPERATURES = (0.5, 2.0)  # times the head's own: few recordings must not make it sure of everything
_LEAST_CALIBRATION = 20  # held-out readings from which the threshold is set
_SPEAKERS = 3  # from so many on it is judged on speakers that it has not heard


@dataclass(frozen=True, slots=True)
class Rows:
    """What is learnt from: mean frames [n, D] as the head averages them, labels int64 [n], a fold for each."""

    frames: Tensor
    labels: Tensor
    folds: NDArray[np.int64]

    def part(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows where the mask [n] is true."""
        chosen = torch.from_numpy(mask)
        return Rows(self.frames[chosen], self.labels[chosen], self.folds[mask])


def divide(emotions: Sequence[str], speakers: Sequence[str], texts: Sequence[str], folds: int) -> tuple[list[int], str]:
    """A fold for each recording, and what no two folds share: "speaker", "sentence" or "recording".

    Groups are dealt out, the largest first, to where their emotions are rarest.
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
        return ((frames - self.centre) / self.scale) @ self.weight.T + self.offset


class Fitting:
    """A fit under one penalty, a step of L-BFGS at a time; `penalty` None stays at nothing."""

    def __init__(self, rows: Rows, anchor: Tensor, penalty: float | None, prosody: int) -> None:
        """`anchor`: the old head's calibrated logits of the rows [n, 5]; `prosody`: features at the end of a frame."""
        size = rows.frames.shape[1]
        centre = rows.frames.mean(0)
        spread = rows.frames.std(0) if len(rows.frames) > 1 else torch.ones(size)
        self._rows, self._anchor, self._penalty = rows, anchor, penalty
        self._weight = torch.zeros(len(EMOTIONS), size, requires_grad=True)
        self._offset = torch.zeros(len(EMOTIONS), requires_grad=True)
        self.addition = Addition(self._weight.detach(), self._offset.detach(), centre, spread.clamp_min(1e-3))
        self._inputs = (rows.frames - centre) / self.addition.scale
        # Encoder features are many and say little each: they are held shorter than the prosody.
        self._strength = torch.ones(size)
        self._strength[: size - prosody] = 3.0
        counts = torch.bincount(rows.labels, minlength=len(EMOTIONS)).float()
        self._balance = torch.where(counts > 0, counts.clamp_min(1).rsqrt(), 0.0)
        self._optimiser = torch.optim.LBFGS(
            [self._weight, self._offset], max_iter=2, history_size=10, line_search_fn="strong_wolfe"
        )

    def loss(self) -> Tensor:
        """The loss on what it learns from, without the penalty."""
        logits = self._anchor + self._inputs @ self._weight.T + self._offset
        return cross_entropy(logits, self._rows.labels, self._balance)

    def step(self) -> float:
        """Improve; the loss before."""
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
        """Improve until it no longer does, `steps` times at most."""
        before = float("inf")
        for _ in range(steps):
            now = self.step()
            if before - now < 1e-5:
                break
            before = now
        return self.addition


def held_out_logits(rows: Rows, anchor: Tensor, penalty: float | None, prosody: int, steps: int) -> Tensor:
    """Logits [n, 5] of every row by a fit to the other folds."""
    logits = anchor.clone()
    for fold in np.unique(rows.folds):
        out = rows.folds == fold
        if penalty is not None and not out.all():
            kept = torch.from_numpy(~out)
            addition = Fitting(rows.part(~out), anchor[kept], penalty, prosody).run(steps)
            logits[torch.from_numpy(out)] += addition(rows.frames[torch.from_numpy(out)])
    return logits


def choose_penalty(rows: Rows, anchor: Tensor, prosody: int, steps: int) -> tuple[float | None, dict[str, float]]:
    """The penalty with the least held-out loss, None for not to learn, and the losses of all.

    Of two whose losses differ by less than a hundredth the shyer one is taken.
    """
    balance = torch.bincount(rows.labels, minlength=len(EMOTIONS)).float().clamp_min(1).rsqrt()
    losses: dict[float | None, float] = {}
    for penalty in (None, *PENALTIES):
        logits = held_out_logits(rows, anchor, penalty, prosody, steps)
        losses[penalty] = float(cross_entropy(logits, rows.labels, balance))
        if penalty is not None and losses[penalty] > min(losses.values()) + 0.2:
            break  # bolder ones are worse still
    best = min(losses.values())
    chosen = next(penalty for penalty, loss in losses.items() if loss <= best + 0.01)
    return chosen, {"not at all" if penalty is None else f"{penalty:g}": loss for penalty, loss in losses.items()}


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it.

    Attributes:
        head: the new head, learnt from all rows, with its temperature; `threshold` for it.
        held_out: of every row the probabilities [n, 5] by a head that had not heard it.
        penalty: of the final fit, None: it learnt nothing; `losses`: held-out loss of each choice.
    """

    head: dict[str, Tensor]
    threshold: float
    held_out: Tensor
    penalty: float | None
    losses: dict[str, float]


Watch = Callable[[int, float, float, float], None]
"""Told of a step: its number, the loss, the held-out loss, the share of held-out rows read rightly."""


def tune_head(
    head: EmotionHead, threshold: float, rows: Rows, prosody: int, steps: int, watch: Watch = lambda *_: None
) -> Tuned:
    """Let the head learn from the rows; `prosody` is the number of prosody features at the end of a frame."""
    anchor = head.of_means(rows.frames)
    held_out = anchor.clone()
    for fold in np.unique(rows.folds):  # each part with a penalty that was chosen without it
        out = rows.folds == fold
        if out.all():
            continue
        kept = torch.from_numpy(~out)
        inner, inner_anchor = rows.part(~out), anchor[kept]
        penalty, _ = choose_penalty(inner, inner_anchor, prosody, steps)
        if penalty is not None:
            addition = Fitting(inner, inner_anchor, penalty, prosody).run(steps)
            held_out[~kept] += addition(rows.frames[~kept])
    penalty, losses = choose_penalty(rows, anchor, prosody, steps)
    addition = _watched(rows, anchor, penalty, prosody, steps, watch)
    temperature, sure = 1.0, threshold
    if len(rows.labels) >= _LEAST_CALIBRATION and penalty is not None:
        temperature = float(np.clip(temperature_of(held_out, rows.labels), *_TEMPERATURES))
        sure = threshold_of(torch.softmax(held_out / temperature, 1), rows.labels)
    return Tuned(_joined(head, addition, temperature), sure, torch.softmax(held_out / temperature, 1), penalty, losses)


def _watched(rows: Rows, anchor: Tensor, penalty: float | None, prosody: int, steps: int, watch: Watch) -> Addition:
    """The final fit, and beside it, for the curves, those that leave out a fold each."""
    fit = Fitting(rows, anchor, penalty, prosody)
    outs = [rows.folds == fold for fold in np.unique(rows.folds)]
    beside = [
        (Fitting(rows.part(~out), anchor[torch.from_numpy(~out)], penalty, prosody), torch.from_numpy(out))
        for out in outs
        if not out.all()
    ]
    before = float("inf")
    for step in range(1, steps + 1):
        loss = fit.step()
        logits = anchor.clone()
        for other, out in beside:
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
