"""Supervised tuning on the corpus: the loss of the replies' tokens, given the prompt as the engine builds it.

A run folder is the whole contract (`training.runs.run_folder`): `checkpoint.pt` resumes exactly, `replies.safetensors`
holds the additions of the best validation so far (`model.checkpoints.reply_tuning` merges them).
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.errors import BadInput
from model.files import replacing
from model.inference.prompt import chat_ids, encode_text, told_tone
from training.replies.network import ReplyNetwork, Sampled, filled
from training.replies.records import KINDS, Record, Turn, as_row
from training.runs.run_folder import Run

CHECKPOINT, FACTORS = "checkpoint.pt", "replies.safetensors"
PROMPT = {
    "system_prompt": "You are Undertone, a voice assistant.",
    "empathy_prompt": " Be brief and kind, and heed the tone in brackets.",
    "tone_template": "{words} ({tone})",
    "tone_detail": "candidates",
}
"""The prompt of the tuned replies, stored and used with their weights. It is short, because it is prefilled."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run does.

    Attributes:
        rank: of the additions.
        steps: in all, 0 for all of `epochs`; a run may go on with another number of them.
        learning_rate: it rises over `warm_up` steps, stays, and falls to zero over the last `cool_down` of the steps.
        batch_tokens: of a batch, padding included, the system prompt not.
        copies: how often the records of a kind are taken in an epoch, as "crisis=3 facts=2"; once unless named.
        start: folder of another run, whose additions are the first.
        first_layer: the first that learns; those below stay as they are, which saves their backward pass.
        negatives: tokens beside the corpus's own in each step's normalisation (`network.Sampled`).
        plain: share of batches whose system prompt lacks the empathetic part, as with empathy switched off.
    """

    preset: str
    rank: int = 64
    epochs: int = 3
    steps: int = 0
    learning_rate: float = 1e-3
    warm_up: int = 30
    cool_down: float = 0.4
    batch_tokens: int = 1000
    copies: str = ""
    start: str = ""
    first_layer: int = 0
    negatives: int = 2000
    plain: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A record as ids behind the system prompt; `spans`: where its replies stand, their ends included."""

    kind: str
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class Prompts:
    """Records as the engine would put them to the language model.

    Args:
        settings: the preset's config: system_prompt, empathy_prompt and tone_template.
        end: the token that ends a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], end: int) -> None:
        self.tokenizer, self.end = tokenizer, end
        self.template: str = settings["tone_template"]
        self.systems = (settings["system_prompt"] + settings["empathy_prompt"], settings["system_prompt"])

    def prefix(self, *, plain: bool = False) -> list[int]:
        """Encode the system prompt.

        Args:
            plain: without the empathetic part.

        Returns:
            Token ids up to where the first message begins.
        """
        return chat_ids(self.tokenizer, self.systems[plain], [], None)

    def said(self, turn: Turn) -> str:
        """Write a message with its tone.

        Args:
            turn: an exchange.

        Returns:
            The text.
        """
        return self.template.format(words=turn.said, tone=told_tone(turn.tones)) if turn.tones else turn.said

    def sample(self, record: Record) -> Sample:
        """Encode a record.

        Args:
            record: of the corpus.

        Returns:
            Its ids and the places of its replies.
        """
        first = len(self.prefix())
        turns = [(self.said(turn), turn.reply) for turn in record.turns]
        spans, ids = [], list[int]()
        for number, (said, reply) in enumerate(turns):
            ids = chat_ids(self.tokenizer, self.systems[0], turns[:number], said)
            start = len(ids) - first
            ids += [*encode_text(self.tokenizer, reply), self.end]
            spans.append((start, len(ids) - first))
        return Sample(record.kind, tuple(ids[first:]), tuple(spans))


def batches(samples: Sequence[Sample], recipe: Recipe, epoch: int) -> list[list[Sample]]:
    """One round over the samples in batches of like length, in an order that seed and round fix."""
    random = np.random.default_rng([recipe.seed, epoch])
    order = [samples[i] for i in random.permutation(len(samples))]
    found: list[list[Sample]] = []
    for start in range(0, len(order), 1024):
        batch: list[Sample] = []
        for sample in sorted(order[start : start + 1024], key=lambda sample: len(sample.ids)):
            if batch and (len(batch) + 1) * len(sample.ids) > recipe.batch_tokens:
                found.append(batch)
                batch = []
            batch.append(sample)
        found.append(batch)
    return [found[i] for i in random.permutation(len(found))]


def losses(
    network: ReplyNetwork, prefix: Tensor, batch: Sequence[Sample], sampled: Sampled | None = None
) -> list[Tensor]:
    """The cross entropy of every reply token, [tokens] a sample; logits are computed at their places alone."""
    hidden = network.hidden(prefix, filled([list(sample.ids[:-1]) for sample in batch]))
    rows, places, targets, counts = list[int](), list[int](), list[int](), list[int]()
    for row, sample in enumerate(batch):
        at = [place for start, stop in sample.spans for place in range(start, stop)]
        rows += [row] * len(at)
        places += [place - 1 for place in at]
        targets += [sample.ids[place] for place in at]
        counts.append(len(at))
    found = network.losses(hidden[rows, places], torch.tensor(targets), sampled)
    return list(torch.split(found, counts))


class Fit:
    """The state of a tuning in its run folder, taken up where its checkpoint left it."""

    def __init__(
        self, run: Run, recipe: Recipe, network: ReplyNetwork, prompts: Prompts, records: Sequence[Record]
    ) -> None:
        self.run, self.recipe, self.network = run, recipe, network
        self.training = [prompts.sample(record) for record in records if not record.held_out]
        self.validation = [prompts.sample(record) for record in records if record.held_out]
        self.prefixes = [torch.tensor(prompts.prefix(plain=plain)) for plain in (False, True)]
        targets = {sample.ids[at] for sample in self.training for span in sample.spans for at in range(*span)}
        self.known = torch.tensor(sorted(targets))
        self.others = torch.tensor(sorted(set(range(len(network.output))) - targets))
        copies = _copies(recipe.copies)
        epoch_samples = [one for one in self.training for _ in range(copies.get(one.kind, 1))]
        self.plan = [batch for epoch in range(recipe.epochs) for batch in batches(epoch_samples, recipe, epoch)]
        self.plan = self.plan[: recipe.steps or None]
        self.step, self.seconds, self.best, self.history = 0, 0.0, math.inf, list[dict[str, Any]]()
        self.optimiser = torch.optim.AdamW(
            [one for one in network.parameters() if one.requires_grad],
            recipe.learning_rate,
            (0.9, 0.99),
            weight_decay=0.0,
        )
        path = run.folder / CHECKPOINT
        if path.exists():
            saved = torch.load(path, weights_only=True)
            network.load_state_dict(saved["network"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.seconds, self.best = saved["step"], saved["seconds"], saved["best"]
            self.history = saved["history"]
        elif recipe.start:
            _take_over(Path(recipe.start) / CHECKPOINT, network)

    def save(self) -> None:
        """Write the checkpoint beside the old one, then in its place."""
        state = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step}
        state |= {"seconds": self.seconds, "best": self.best, "history": self.history}
        with replacing(self.run.folder / CHECKPOINT) as partial:
            torch.save(state, partial)

    def train_step(self) -> float:
        """Do one update.

        Returns:
            The loss per token.
        """
        recipe, total = self.recipe, len(self.plan)
        rise, fall = (self.step + 1) / recipe.warm_up, (total - self.step) / (recipe.cool_down * total)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * min(rise, 1.0, fall)
        random = np.random.default_rng([recipe.seed, 1, self.step])
        plain = random.random() < recipe.plain
        drawn = self.others[torch.from_numpy(random.permutation(len(self.others))[: recipe.negatives])]
        sampled = Sampled(self.known, drawn, len(self.others))
        loss = torch.cat(losses(self.network, self.prefixes[plain], self.plan[self.step], sampled)).mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure the validation loss.

        Returns:
            The loss per token by kind, and over all ("all").
        """
        found = defaultdict[str, list[Tensor]](list)
        for batch in batches(self.validation, self.recipe, 0):
            for sample, loss in zip(batch, losses(self.network, self.prefixes[0], batch), strict=True):
                found[sample.kind].append(loss)
                found["all"].append(loss)
        return {kind: round(float(torch.cat(values).mean()), 4) for kind, values in sorted(found.items())}


def _copies(given: str) -> dict[str, int]:
    try:
        found = {kind: int(count) for kind, _, count in (one.partition("=") for one in given.split())}
    except ValueError as error:
        raise BadInput(f"--copies {given!r}: write KIND=NUMBER, separated by spaces.") from error
    if not set(found) <= set(KINDS) or min(found.values(), default=0) < 0:
        raise BadInput(f"--copies {given!r}: the kinds are {', '.join(KINDS)}.")
    return found


def _take_over(path: Path, network: ReplyNetwork) -> None:
    try:
        network.load_state_dict(torch.load(path, weights_only=True)["network"])
    except (OSError, LookupError, RuntimeError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0]
        raise BadInput(f"--start: {path} cannot be begun with ({why}): name a run of this model and rank.") from error


def fit(state: Fit, about: dict[str, str], *, checks: int = 2, save_seconds: float = 480.0) -> dict[str, Any]:
    """Train until the recipe's epochs are done, or until a stop file or SIGTERM asks for an end.

    Args:
        state: the tuning, at its last checkpoint.
        about: metadata of the weights' file.
        checks: validations per epoch.
        save_seconds: the longest time between two checkpoints.

    Returns:
        The last figures: loss, validation loss, by kind.
    """
    total, recent, run = len(state.plan), list[float](), state.run
    every = max(1, total // (state.recipe.epochs * checks))
    began = saved = time.monotonic()
    before, figures = state.seconds, dict[str, Any]()
    with _until_terminated() as asked:
        while state.step < total:
            recent.append(state.train_step())
            now = time.monotonic()
            state.seconds = before + now - began
            ended = state.step == total or run.stop_requested or bool(asked)
            checking = state.step % every == 0 or state.step == total
            if checking or ended or state.step % 10 == 0:
                figures = {"loss": round(float(np.mean(recent[-every:])), 4), "hours": round(state.seconds / 3600, 3)}
                figures["learning_rate"] = state.optimiser.param_groups[0]["lr"]
                figures["eta_seconds"] = round((total - state.step) * state.seconds / state.step)
            if checking:
                _check(state, about, figures)
            if checking or ended or state.step % 10 == 0:
                run.report("replies", state.step, total, **figures)
            if ended or now - saved > save_seconds:
                state.save()
                saved = now
            if ended:
                break
    return {"step": state.step, "of": total, "best": state.best} | figures


def _check(state: Fit, about: dict[str, str], figures: dict[str, Any]) -> None:
    by_kind = state.validate()
    figures |= {"validation": by_kind["all"], "by_kind": by_kind}
    state.history.append({"step": state.step, **by_kind})
    if by_kind["all"] < state.best:
        state.best = by_kind["all"]
        with replacing(state.run.folder / FACTORS) as partial:
            save_file(state.network.factors(), partial, about)


@contextmanager
def _until_terminated() -> Iterator[list[int]]:
    """Collects SIGTERMs while the block runs, so that the step under way is finished and saved."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def digest(records: Sequence[Record]) -> str:
    """Hash the corpus.

    Args:
        records: of the corpus.

    Returns:
        A short hexadecimal hash.
    """
    rows = json.dumps([as_row(record) for record in records], ensure_ascii=False)
    return hashlib.sha256(rows.encode()).hexdigest()[:16]
