"""`python -m training evaluate`: evaluate a checkpoint on recordings with known words and emotions.

Emotion: accuracy and recall with intervals, and calibration. Understanding: the loss of known continuations given the
speech, the text, and neither; the divergence of next-token distributions given speech from those given text; and the
word error rate when the model is asked to repeat the words. Replies to speech are compared with replies to the text.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import GenerationConfig

from assistant.events import Spoken
from model.audio.features import encode, encoder_frames, log_mel
from model.checkpoints.loader import Checkpoint, inspect, load
from model.errors import BadInput
from model.inference.batch import Prompt, generate
from model.inference.engine import Engine
from model.inference.prompt import encode_text
from model.nn.ctc_adapter import CtcAdapter
from training.data.batches import IGNORED, PADDING, Batch, collate, tokenise
from training.data.chat import Chat
from training.data.eval_cases import Case, evenly_spaced
from training.data.label import Writer, make_writer
from training.metrics.predictions import Scores
from training.metrics.wer import word_errors
from training.stages.losses import RecipeLosses, cross_entropy, kl_divergence
from training.stages.trainer import to_device

REPEAT = "Please repeat the following words: "
Way = Literal["speech", "transcript"]
"""What replies are conditioned on."""

_NEW_TOKENS = 48
_BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A checkpoint under evaluation, and what writes its replies."""

    checkpoint: Checkpoint
    engine: Engine
    writer: Writer

    @classmethod
    def load(cls, source: str) -> Subject:
        """Load a folder or preset, not quantized unless it is stored so.

        Args:
            source: of the checkpoint.

        Returns:
            The subject.

        Raises:
            WeightsMissing: as `model.checkpoints.loader.load`.
        """
        stored = inspect(source).stored if Path(source).is_dir() else None
        return cls.of(load(source, quantize=stored or "none"))

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Subject:
        """Wrap a loaded checkpoint.

        Args:
            checkpoint: not quantized to int8.

        Returns:
            The subject.
        """
        config = checkpoint.model.config
        chat = Chat(checkpoint.tokenizer, config.system_prompt, config.empathy_prompt)
        return cls(checkpoint, Engine(checkpoint), make_writer(checkpoint.model.language_model, chat))

    def ask(self, instruction: str, said: Tensor | str) -> Prompt:
        """Build a prompt of an instruction and the content.

        Args:
            instruction: precedes the content; empty: a conversation, with the empathy prompt.
            said: adapter frames [n, E], or text.

        Returns:
            The prompt.
        """
        chat = self.writer.chat
        row = tokenise(chat.tokenizer, system=chat.system(use_emotion=not instruction), text=instruction, answer="")
        head = [*row.opening, *row.text]
        if isinstance(said, str):
            return Prompt([*head, *encode_text(chat.tokenizer, said)], list(row.closing))
        return Prompt(head, list(row.closing), said)

    def replies(self, prompts: Sequence[Prompt]) -> list[str]:
        """Generate greedy replies, one prompt at a time.

        Args:
            prompts: from `ask`.

        Returns:
            Their texts.
        """
        settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers is partly typed
            do_sample=False,
            max_new_tokens=_NEW_TOKENS,
            eos_token_id=sorted(self.writer.stops),
            pad_token_id=self.writer.pad,
        )
        model, tokenizer = self.checkpoint.model, self.checkpoint.tokenizer
        return [self.writer.read(reply)[0] for one in prompts for reply in generate(model, tokenizer, [one], settings)]


# ---- hearing


@torch.inference_mode()
def _encoded(subject: Subject, case: Case) -> Tensor:
    """The encoder's states over the frames that contain speech, [T, D]."""
    if case.encoded is not None:
        return case.encoded.to(subject.checkpoint.model.device)
    assert case.samples is not None
    model = subject.checkpoint.model
    features = log_mel(subject.checkpoint.extractor, case.samples, trimmed=model.config.window == "trimmed")
    return encode(model.encoder, features.to(model.device))[-1][0, : encoder_frames(len(case.samples))]


@torch.inference_mode()
def _frames(subject: Subject, encoded: Tensor) -> tuple[Tensor, str | None]:
    """Adapter frames [n, E], and the CTC adapter's decoded text; None for other adapters."""
    model = subject.checkpoint.model
    assert model.adapter is not None
    states = encoded[None].to(next(model.adapter.parameters()).dtype)
    lengths = torch.tensor([len(encoded)], device=encoded.device)
    if isinstance(model.adapter, CtcAdapter):
        ctc_frames = model.adapter.decode(states, lengths, model.get_input_embeddings())
        return ctc_frames.frames[0][ctc_frames.mask[0]], str(
            subject.checkpoint.tokenizer.decode(ctc_frames.ids[0].tolist())
        )
    frames, mask = model.adapt(states, lengths)
    return frames[0][mask[0]], None


@torch.inference_mode()
def _probabilities(subject: Subject, case: Case, frames: Tensor | None) -> Tensor | None:
    """The emotion head's probabilities [5], or None without a head or its input."""
    model = subject.checkpoint.model
    if model.emotion_head is None:
        return None
    if model.config.emotion_source == "adapter":
        assert frames is not None
        return torch.from_numpy(model.emotion_head.read(frames).probabilities)
    if case.samples is None:
        return None
    reading = subject.engine.hear(Spoken(case.samples)).reading
    subject.engine.forget()
    return None if reading is None else torch.from_numpy(reading.probabilities)


# ---- continuations


class _Continuations(RecipeLosses):
    """Sums over a batch's answers: cross-entropy given speech, text and nothing; divergences from text."""

    @torch.inference_mode()
    def sums(self, batch: Batch) -> dict[str, float]:
        """The sums, and the number of tokens."""
        heard = self._adapt(self._encoded(batch), batch, as_transcript=False)
        nothing = torch.full_like(batch["text"], PADDING)
        readings = {
            "text": self._read(batch, batch["text_instruction"], batch["text"], None),
            "nothing": self._read(batch, batch["speech_instruction"], nothing, None),
            "speech": self._student(batch, heard),
        }
        head, found = self.model.get_output_embeddings(), {"tokens": float((batch["answer"] != PADDING).sum())}
        logits = {}
        for name, reading in readings.items():
            before = reading.layout.answers.roll(-1, dims=1)
            logits[name] = head(reading.hidden[before])
            found[f"loss_{name}"] = float(cross_entropy(logits[name], reading.layout.input_ids[reading.layout.answers]))
        for name in ("speech", "nothing"):
            found[f"divergence_{name}"] = float(kl_divergence(logits["text"], logits[name], 1.0))
        return found


def continuations(subject: Subject, cases: Sequence[Case], encoded: Sequence[Tensor]) -> dict[str, float]:
    """Losses of known continuations, per token.

    Args:
        subject: with an adapter.
        cases: those without an answer are skipped.
        encoded: encoder states [T, D] of each case.

    Returns:
        Losses given speech, text and nothing; divergences from text; "divergence_share": the divergence with speech
            relative to that without; "continuation_tokens". Empty without answers.
    """
    losses = _Continuations(subject.checkpoint.model, ["response_ce"]).eval()
    total: Counter[str] = Counter()
    for case, states in zip(cases, encoded, strict=True):
        if case.ids.answer:
            row = replace(case.ids, encoder_frames=len(states), features=None, encoded=states)
            total.update(losses.sums(to_device(collate([row]), states.device)))
    if not total["tokens"]:
        return {}
    figures = {name: value / total["tokens"] for name, value in total.items() if name != "tokens"}
    figures["divergence_share"] = total["divergence_speech"] / max(total["divergence_nothing"], 1e-9)
    return figures | {"continuation_tokens": total["tokens"]}


# ---- words


def _word_error(texts: Sequence[str], heard: Sequence[str]) -> float:
    """Word error rate over all texts."""
    errors = [word_errors(text, other) for text, other in zip(texts, heard, strict=True)]
    return sum(wrong for wrong, _ in errors) / max(sum(words for _, words in errors), 1)


def _ctc_decoding(texts: Sequence[str], ctc_frames: Sequence[str | None]) -> dict[str, float]:
    read = [words for words in ctc_frames if words is not None]
    return {"spelt_word_error": _word_error(texts, read)} if read else {}


def _agreement(texts: Sequence[str], others: Sequence[str]) -> float:
    """The mean word accuracy of pairs, at least 0."""
    shares = []
    for text, other in zip(texts, others, strict=True):
        wrong, words = word_errors(text, other)
        shares.append(1 - min(1.0, wrong / max(words, 1)) if words or wrong else 1.0)
    return float(np.mean(shares))


# ---- the two commands


def examine(
    subject: Subject, cases: Sequence[Case], replies: int, progress: str = "evaluate"
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Evaluate a checkpoint.

    Args:
        subject: the checkpoint.
        cases: recordings.
        replies: how many cases are repeated and answered.
        progress: label of the progress bar.

    Returns:
        The figures; and transcript, repetition and replies of the chosen cases.
    """
    model = subject.checkpoint.model
    scores, confident = Scores(), list[tuple[float, bool]]()
    encoded, frames, ctc_frames = list[Tensor](), list[Tensor](), list[str | None]()
    for case in _tracked(cases, progress):
        own = None
        if model.adapter is not None:
            encoded.append(_encoded(subject, case))
            own, words = _frames(subject, encoded[-1])
            frames.append(own)
            ctc_frames.append(words)
        emotion, read = case.ids.emotion, _probabilities(subject, case, own)
        if emotion != IGNORED and read is not None:
            scores.confusion[emotion][int(read.argmax())] += 1
            confident.append((float(read.max()), int(read.argmax()) == emotion))
    figures: dict[str, Any] = {"checkpoint": subject.checkpoint.name, "recordings": len(cases)}
    if confident:
        read_figures = scores.figures() | calibration(confident)
        figures |= {n: v for n, v in read_figures.items() if n not in ("none", "failed_lines", "unknown_references")}
    if model.adapter is None:
        return figures, []
    figures |= _ctc_decoding([case.transcript for case in cases], ctc_frames)
    figures |= continuations(subject, cases, encoded)
    chosen = evenly_spaced(len(cases), replies) if replies else []
    said = _conversations(subject, [cases[at].transcript for at in chosen], [frames[at] for at in chosen], progress)
    return figures | _of_words(said), said


def _tracked(cases: Sequence[Any], what: str) -> Iterable[Any]:
    return track(cases, what, console=Console(stderr=True), transient=True)


def _conversations(
    subject: Subject, texts: Sequence[str], frames: Sequence[Tensor], progress: str
) -> list[dict[str, str]]:
    """What the subject repeats and answers, given speech and given text."""
    names = ("repeated", "repeated_text", "reply", "reply_to_text")
    rows = []
    for text, speech in _tracked(list(zip(texts, frames, strict=True)), f"{progress}: replies"):
        prompts = [subject.ask(ask, said) for ask in (REPEAT, "") for said in (speech, text)]
        rows.append({"said": text, **dict(zip(names, subject.replies(prompts), strict=True))})
    return rows


def _of_words(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    if not rows:
        return {}
    said, repeated, by_text, replies, replies_to_text = (
        [row[name] for row in rows] for name in ("said", "repeated", "repeated_text", "reply", "reply_to_text")
    )
    heads = Counter(" ".join(reply.lower().split()[:4]) for reply in replies)
    return {
        "repeated": len(rows),
        "repeat_word_error": _word_error(said, repeated),
        "repeat_word_error_text": _word_error(said, by_text),
        "reply_agreement": _agreement(replies_to_text, replies),
        "most_common_opening_share": heads.most_common(1)[0][1] / len(rows),
    }


def calibration(read: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """The calibration curve (confidence, accuracy and count of ten bins) and the expected calibration error.

    Args:
        read: confidence of each reading, and whether it was right; at least one.
    """
    confidence = np.array([one for one, _ in read])
    right = np.array([hit for _, hit in read], dtype=float)
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    curve = [
        {
            "confidence": float(confidence[bins == at].mean()),
            "accuracy": float(right[bins == at].mean()),
            "n": int((bins == at).sum()),
        }
        for at in np.unique(bins)
    ]
    error = sum(point["n"] * abs(point["confidence"] - point["accuracy"]) for point in curve) / len(read)
    return {"calibration": curve, "calibration_error": error}


def compare(subject: Subject, cases: Sequence[Case], other: Subject | None = None) -> dict[str, Any]:
    """Compare the end-to-end path with the transcript path on the same recordings.

    Args:
        subject: with an adapter.
        cases: recordings.
        other: whose recogniser, emotion head and language model form the transcript path; by default the subject's.

    Returns:
        Figures of both paths.

    Raises:
        BadInput: there is no adapter or no recogniser, or recordings are only in a feature cache.
    """
    written = other or subject
    if subject.checkpoint.model.adapter is None or written.checkpoint.transcriber is None:
        raise BadInput("--compare needs a checkpoint with an adapter, and a recogniser for the transcript path.")
    if any(case.samples is None for case in cases):
        raise BadInput("--compare needs the recordings themselves: a feature cache is not enough.")
    return {
        "recordings": len(cases),
        "speech": _along("speech", subject, cases),
        "transcript": _along("transcript", written, cases),
    }


def _along(path: Way, subject: Subject, cases: Sequence[Case]) -> dict[str, Any]:
    """Figures of one path: understanding, emotion, time to the first token."""
    texts, heard, scores = [case.transcript for case in cases], list[Tensor | str](), Scores()
    first, repeated, replies, by_text = list[float](), list[str](), list[str](), list[str]()
    ctc_frames = list[str | None]()
    for case in _tracked(cases, f"compare: {path}"):
        first.append(_first_token(subject, case, path))
        frames = read_as = None
        if subject.checkpoint.model.adapter is not None:
            frames, read_as = _frames(subject, _encoded(subject, replace(case, encoded=None)))
        if path == "speech":
            assert frames is not None
            heard.append(frames)
            ctc_frames.append(read_as)
        else:
            words = subject.engine.transcript(Spoken(case.samples))
            heard.append(words.text if words is not None else "")
        read = _probabilities(subject, case, frames)
        if case.ids.emotion != IGNORED and read is not None:
            scores.confusion[case.ids.emotion][int(read.argmax())] += 1
        prompts = [subject.ask(REPEAT, heard[-1]), subject.ask("", heard[-1]), subject.ask("", case.transcript)]
        for found, reply in zip((repeated, replies, by_text), subject.replies(prompts), strict=True):
            found.append(reply)
    figures: dict[str, Any] = {
        "checkpoint": subject.checkpoint.name,
        "repeat_word_error": _word_error(texts, repeated),
        "reply_agreement": _agreement(by_text, replies),
        "first_token_ms_median": float(np.median(first)),
    }
    figures |= _ctc_decoding(texts, ctc_frames)
    if path == "transcript":
        figures["transcript_word_error"] = _word_error(texts, [str(words) for words in heard])
    if sum(scores.counts):
        known = scores.figures()
        figures |= {f"emotion_{name}": known[name] for name in ("n", "accuracy", "interval_95", "unweighted_recall")}
    return figures


def _first_token(subject: Subject, case: Case, path: Way) -> float:
    """Milliseconds from the end of the recording to the first text of the reply, with empty caches."""
    engine, config = subject.engine, subject.checkpoint.model.config
    assert case.samples is not None
    usual, config.path = config.path, path
    engine.forget()
    began = time.perf_counter()
    next(iter(engine.reply([], Spoken(case.samples))), "")
    taken = (time.perf_counter() - began) * 1e3
    config.path = usual
    return taken
