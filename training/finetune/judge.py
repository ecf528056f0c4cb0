"""Comparison before and after tuning: readings, continuation loss and replies, on held-out recordings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from assistant.events import EMOTIONS, UNSURE, Samples, Spoken, Typed
from model.audio.files import read_audio
from model.inference.engine import Engine
from model.inference.prompt import Content, chat_ids, encode_text
from model.nn.speech_llm import SPEECH_ID
from training.emotion.fit_head import measure
from training.metrics.predictions import wilson

LEAST_JUDGED = 10
"""Minimum number of held-out recordings for a verdict."""

WORSE_LOSS = 1.05
"""A larger ratio of continuation losses means that a checkpoint is worse."""

_RESAMPLED = 4000
_REFERENCE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ComparedReading:
    """A held-out recording with its readings.

    Attributes:
        audio: its file.
        text: its transcript, if known.
        emotion: index into `EMOTIONS`.
        before: probabilities [5] before tuning.
        after: probabilities [5] after tuning.
    """

    audio: Path
    text: str
    emotion: int
    before: Tensor
    after: Tensor


def figures(rows: Sequence[ComparedReading], thresholds: tuple[float, float]) -> dict[str, Any]:
    """Emotion recognition before and after, with the differences in accuracy and loss, and 95 % intervals.

    The intervals are those of a paired bootstrap over the recordings; the loss is the mean negative log-likelihood.
    """
    labels = torch.tensor([row.emotion for row in rows])
    pair = [torch.stack([getattr(row, name) for row in rows]) for name in ("before", "after")]
    right = [(probabilities.argmax(1) == labels).double().numpy() for probabilities in pair]
    loss = [
        -torch.log(probabilities.gather(1, labels[:, None])[:, 0].clamp_min(1e-9)).double() for probabilities in pair
    ]
    gained, lost = right[1] - right[0], (loss[1] - loss[0]).numpy()
    return {
        **{
            name: measure(pair[side], labels, thresholds[side])
            | {"loss": float(loss[side].mean()), "interval_95": list(wilson(int(right[side].sum()), len(rows)))}
            for side, name in enumerate(("before", "after"))
        },
        "difference": {
            "accuracy": float(gained.mean()),
            "interval_95": interval(gained),
            "loss": float(lost.mean()),
            "loss_interval_95": interval(lost),
        },
    }


def interval(differences: NDArray[np.float64]) -> list[float]:
    """The 95 % interval of a mean, by bootstrap."""
    size = (_RESAMPLED, len(differences))
    drawn = differences[np.random.default_rng(0).integers(len(differences), size=size)].mean(1)
    return [float(edge) for edge in np.percentile(drawn, [2.5, 97.5])]


def label_of(probabilities: Tensor, threshold: float) -> str:
    """The label of a reading."""
    best = int(probabilities.argmax())
    return EMOTIONS[best] if float(probabilities[best]) >= threshold else UNSURE


class FixedReadingEngine:
    """An engine with a fixed reading, to show how replies depend on it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._samples: dict[Path, Samples] = {}

    def set_reading(self, probabilities: Tensor, threshold: float) -> None:
        """Give every recording this reading from now on."""
        head = self.engine.model.emotion_head
        assert head is not None
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()
            head.offset.copy_(probabilities.clamp_min(1e-9).log())
            head.temperature.fill_(1.0)
        head.threshold = threshold
        self.engine.forget()

    def spoken(self, audio: Path) -> Spoken:
        """The recording as a message."""
        if audio not in self._samples:
            self._samples[audio] = read_audio(audio)
        return Spoken(self._samples[audio])

    def reply(self, audio: Path) -> str:
        """The reply to a recording without history."""
        return "".join(self.engine.reply([], self.spoken(audio))).strip()


def compare_replies(
    listener: FixedReadingEngine,
    rows: Sequence[ComparedReading],
    thresholds: tuple[float, float],
    on_done: Callable[[], None],
) -> list[dict[str, str]]:
    """The replies to each recording with the reading before and the reading after."""
    found = []
    for row in rows:
        both = []
        for probabilities, threshold in zip((row.before, row.after), thresholds, strict=True):
            listener.set_reading(probabilities, threshold)
            both.append(listener.reply(row.audio))
        words = listener.engine.transcript(listener.spoken(row.audio))
        found.append({"heard": words.text if words else "", "reply_before": both[0], "reply_after": both[1]})
        on_done()
    return found


def neutral_losses(
    listener: FixedReadingEngine,
    rows: Sequence[ComparedReading],
    thresholds: tuple[float, float],
    on_done: Callable[[], None],
) -> dict[str, Any]:
    """Loss per token of a neutral reply, given the reading before and the reading after.

    The reference is the language model's own greedy reply to the transcript, without any mention of the voice: if a
    neutral recording is read as another emotion, it becomes less likely.
    """
    sums, tokens = [0.0, 0.0], 0
    for row in rows:
        engine, message = listener.engine, listener.spoken(row.audio)
        words = engine.transcript(message)
        reference = encode_text(engine.tokenizer, _start(engine, words.text if words else row.text))[:_REFERENCE_TOKENS]
        known: dict[str, float] = {}
        for side, (probabilities, threshold) in enumerate(zip((row.before, row.after), thresholds, strict=True)):
            listener.set_reading(probabilities, threshold)
            frames: dict[int, Tensor] = {}
            content = engine.content(message, frames)
            # The frames do not change.
            tone = content if isinstance(content, str) else str([id_ for id_ in content if id_ >= 0])
            if tone not in known:
                known[tone] = _loss(engine, content, frames, reference)
            sums[side] += known[tone]
        tokens += len(reference)
        on_done()
    if not tokens:
        return {}
    before, after = (total / tokens for total in sums)
    return {"recordings": len(rows), "tokens": tokens, "before": before, "after": after, "ratio": after / before}


def _start(engine: Engine, words: str) -> str:
    reply = ""
    stream = engine.reply([], Typed(words))
    for number, piece in enumerate(stream, 1):
        reply += piece
        if number >= _REFERENCE_TOKENS:
            break
    return reply


@torch.inference_mode()
def _loss(engine: Engine, content: Content, frames: dict[int, Tensor], reference: list[int]) -> float:
    """The summed loss of the reference as the reply to `content`, whose negative ids stand for `frames`."""
    config = engine.model.config
    examples = [(user, reply) for user, reply in config.examples]
    ids = chat_ids(engine.tokenizer, config.system_prompt + config.empathy_prompt, examples, content)
    whole = torch.tensor([[max(id_, SPEECH_ID) for id_ in (*ids, *reference)]], device=engine.model.device)
    speech = torch.stack(list(frames.values())) if frames else None
    logits = engine.model(whole, speech=speech).logits[0, len(ids) - 1 : -1].float()
    return float(cross_entropy(logits, whole[0, len(ids) :], reduction="sum"))


def verdict(read: dict[str, Any], continuation: dict[str, Any]) -> tuple[str, str]:
    """The verdict "better", "worse" or "unclear", and why in a sentence."""
    if continuation and continuation["ratio"] > WORSE_LOSS:
        rise = f"{continuation['ratio'] - 1:.0%}"
        return "worse", f"Replies to neutral speech have become less likely: their loss rose by {rise}."
    difference, before, after = read["difference"], read["before"]["accuracy"], read["after"]["accuracy"]
    change = f"{before:.0%} before, {after:.0%} after, of {read['after']['n']} recordings that it was not trained on"
    if read["after"]["n"] < LEAST_JUDGED:
        return "unclear", f"Too few recordings were held out for a verdict: {change}."
    if after < before:
        chance = ", which may be chance" if difference["interval_95"][1] >= 0 else ""
        return "worse", f"It reads fewer recordings correctly{chance}: {change}."
    if difference["interval_95"][0] > 0:
        return "better", f"It reads more recordings correctly: {change}."
    more = "as many recordings correctly as before" if after == before else "more recordings correctly"
    if difference["loss_interval_95"][1] < 0:
        return "better", f"It reads {more}, and is more confident where it is right: {change}."
    return "unclear", f"It reads {more}, and the difference may be chance: {change}."


def choose_replies(rows: Sequence[ComparedReading], thresholds: tuple[float, float], count: int) -> list[int]:
    """Rows whose replies are compared: first those whose reading changed, evenly over the emotions."""
    changed = [label_of(row.before, thresholds[0]) != label_of(row.after, thresholds[1]) for row in rows]
    order = sorted(range(len(rows)), key=lambda at: (not changed[at], at))
    chosen: list[int] = []
    for at in (*_one_each(order, rows), *order):
        if at not in chosen and len(chosen) < count:
            chosen.append(at)
    return chosen


def _one_each(order: Sequence[int], rows: Sequence[ComparedReading]) -> list[int]:
    first: dict[int, int] = {}
    for at in order:
        first.setdefault(rows[at].emotion, at)
    return list(first.values())
