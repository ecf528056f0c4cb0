"""The losses of the BLSP-Emo recipe (arXiv 2406.03872, section 3) over a speech language model.

response_ce: cross-entropy of the answer given the speech. response_kl: divergence of the answer's next-token
distributions given the speech (student) from those given the text (teacher). input_er: cross-entropy of the emotion
head. For the CFormer (BLSP-KD, arXiv 2405.19041): input_kl, as response_kl but on the positions of the words, and cif,
the relative error of the frames' weights against the transcript's number of tokens.

Stage 1 minimises response_kl; stage 2 minimises response_ce and input_er (`training.runs.config.RECIPES`, the paper's
table; `train --losses` overrides it).

Logits are computed only where a loss needs them, and only for a chunk of positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from model.audio.features import encode
from model.errors import BadInput
from model.nn.cformer import CFormerAdapter
from model.nn.speech_llm import SPEECH_ID, SpeechLanguageModel
from training.data.batches import IGNORED, PADDING, Batch, Layout, lay_out

LOSSES = ("response_ce", "response_kl", "input_er", "input_kl", "cif")
TEMPERATURE = 2.0

_RESPONSE = frozenset({"response_ce", "response_kl"})
_LANGUAGE = _RESPONSE | {"input_kl"}
LOGITS_AT_ONCE = 1 << 24  # 64 MiB in fp32


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy: -log softmax(logits)[label].

    Args:
        logits: [n, V].
        labels: int64 [n]; `IGNORED` adds nothing.

    Returns:
        Scalar.
    """
    return nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Summed KL(teacher, student), without the factor T^2.

    Args:
        teacher: logits [n, V].
        student: logits [n, V].
        temperature: divides both.

    Returns:
        Scalar.
    """
    teacher, student = ((logits.float() / temperature).log_softmax(-1) for logits in (teacher, student))
    return nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)


def count_error(mass: Tensor, tokens: Tensor) -> Tensor:
    """Summed |mass / tokens - 1|: a CFormer's `mass` [B] against the transcript's tokens [B]."""
    return (mass / tokens - 1).abs().sum()


def loss_counts(batch: Batch) -> dict[str, Tensor]:
    """The denominator of each loss: answer tokens, rows with an emotion, tokens of the transcripts, rows.

    Summed over accumulated batches and processes, and given to `RecipeLosses.forward`, they make the losses of the
    parts add up to those of one large batch.
    """
    answers = (batch["answer"] != PADDING).sum()
    return {
        "response_ce": answers,
        "response_kl": answers,
        "input_er": (batch["emotion"] != IGNORED).sum(),
        "input_kl": (batch["text"] != PADDING).sum(),
        "cif": torch.ones_like(batch["emotion"]).sum(),
    }


class SpeechFrames(NamedTuple):
    """The adapter's output for a batch: frames [B, N, E], their mask, and a CFormer's mass [B] (`Integrated`)."""

    frames: Tensor
    mask: Tensor
    mass: Tensor | None = None


class LanguageStates(NamedTuple):
    """Whole rows and the language model's last hidden states [B, L, E], the output layer's input."""

    layout: Layout
    hidden: Tensor


class RecipeLosses(nn.Module):
    """Runs a model over batches and returns the chosen losses. Has no weights besides the model's.

    In training a CFormer makes as many tokens as the transcript has, in evaluation as many as it predicts; input_kl
    compares token by token and always needs the former. Without a response loss the words are read without instruction
    and answer, as in the original. The teacher is the model itself given the text, without gradient; LoRA is active
    there as its scope says: nowhere for "audio", everywhere for "global" and "text".

    Args:
        model: with an adapter.
        names: of `LOSSES`.
        temperature: of both KL losses.
        kl_at: where response_kl compares: at the answer's "tokens", as in the original, which omits the distribution of
            the answer's first token; or at the "predictions", one position earlier.
        legacy_batching: the original's padding; see `lay_out` and `ConvAdapter.forward`.

    Raises:
        BadInput: a loss is unknown or not possible with this model.
    """

    def __init__(
        self,
        model: SpeechLanguageModel,
        names: Sequence[str],
        *,
        temperature: float = TEMPERATURE,
        kl_at: Literal["tokens", "predictions"] = "tokens",
        legacy_batching: bool = False,
    ) -> None:
        super().__init__()
        _check(model, names)
        self.model = model
        self.names = tuple(names)
        self.temperature = temperature
        self.kl_at = kl_at
        self.legacy_batching = legacy_batching

    def forward(self, batch: Batch, counts: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: on the model's device.
            counts: the denominator of each loss; by default the batch's own `loss_counts`.

        Returns:
            Each loss by name, and "loss", their unweighted sum; scalars.

        Raises:
            BadInput: a row has no transcript, which a CFormer needs.
        """
        encoded = self._encoded(batch)
        heard = self._adapt(encoded, batch, as_transcript=self.training)
        sums = dict[str, Tensor]()
        if heard.mass is not None:
            sums["cif"] = count_error(heard.mass, _lengths(batch["text"]))
        if "input_er" in self.names:
            assert self.model.emotion_head is not None
            sums["input_er"] = cross_entropy(self.model.emotion_head(heard.frames, heard.mask), batch["emotion"])
        # Lists, because the order of sums must not change between runs.
        passes = [(heard, [name for name in self.names if name in _LANGUAGE])]
        if "input_kl" in self.names and not self.training:
            aligned = self._adapt(encoded, batch, as_transcript=True)
            passes = [(aligned, ["input_kl"]), (heard, [name for name in self.names if name in _RESPONSE])]
        # The student comes last: gradient checkpointing reruns the layers with the LoRA mask that was set last.
        teacher = self.teacher(batch)
        for spoken, names in passes:
            if names:
                student = self._student(batch, spoken)
                sums |= {name: self._score(name, teacher, student) for name in names}
        counts = loss_counts(batch) if counts is None else counts
        losses = {name: sums[name] / counts[name].clamp(min=1) for name in self.names}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _encoded(self, batch: Batch) -> Tensor:
        """Encoder frames [B, longest, D], computed (windows of equal width together) or from the cache."""
        longest = int(batch["encoder_frames"].max())
        rows = dict(enumerate(batch["encoded"]))
        widths = [features.shape[-1] for features in batch["features"]]
        for width in set(widths):
            same = [row for row, other in enumerate(widths) if other == width]
            features = torch.stack([batch["features"][row] for row in same])
            rows |= zip(same, encode(self.model.encoder, features)[-1], strict=True)
        return pad_sequence([rows[row][:longest] for row in range(len(rows))], batch_first=True)

    def _adapt(self, encoded: Tensor, batch: Batch, *, as_transcript: bool) -> SpeechFrames:
        adapter, frames, legacy = self.model.adapter, batch["encoder_frames"], self.legacy_batching
        assert adapter is not None
        encoded = encoded.to(next(adapter.parameters()).dtype)
        if not isinstance(adapter, CFormerAdapter):
            return SpeechFrames(*self.model.adapt(encoded, frames, legacy_batching=legacy))
        tokens = _lengths(batch["text"])
        if not bool(tokens.all()):
            raise BadInput("A CFormer learns from transcripts: leave out the rows that have none.")
        made = adapter.integrate(encoded, frames, tokens if as_transcript else None, legacy_batching=legacy)
        return SpeechFrames(made.frames, made.mask, made.mass)

    def teacher(self, batch: Batch) -> LanguageStates | None:
        """Run the teacher: the language model given the text.

        Args:
            batch: on the model's device.

        Returns:
            Its states; None if no loss compares with them.
        """
        if {"response_kl", "input_kl"}.isdisjoint(self.names):
            return None
        with torch.no_grad():
            return self._read(batch, batch["text_instruction"], batch["text"], None)

    def _student(self, batch: Batch, spoken: SpeechFrames) -> LanguageStates:
        words = torch.where(spoken.mask, SPEECH_ID, PADDING)
        return self._read(batch, batch["speech_instruction"], words, spoken.frames[spoken.mask])

    def _read(self, batch: Batch, instruction: Tensor, words: Tensor, speech: Tensor | None) -> LanguageStates:
        """Run whole rows through the language model, up to its output layer."""
        before, after = [batch["opening"]], list[Tensor]()
        if not _RESPONSE.isdisjoint(self.names):
            before, after = [batch["opening"], instruction], [batch["closing"], batch["answer"]]
        layout = lay_out(before, words, after, legacy_batching=self.legacy_batching)
        model = self.model
        if model.long_prompts is not None:
            model.long_prompts.begin(layout.attention_mask.sum(1).tolist())
        with model.lora_scope.on(model.lora_mask(layout.input_ids == SPEECH_ID)):
            output = model.language_model.get_decoder()(
                inputs_embeds=model.embed(layout.input_ids, speech),
                attention_mask=layout.attention_mask,
                position_ids=layout.position_ids,
                use_cache=False,
            )
        return LanguageStates(layout, output.last_hidden_state)

    def _score(self, name: str, teacher: LanguageStates | None, student: LanguageStates) -> Tensor:
        """The sum of one of the language model's losses over its positions."""
        head = self.model.get_output_embeddings()
        if name == "response_ce":
            answers = student.layout.answers
            hidden, ids = student.hidden[_before(answers)], student.layout.input_ids[answers]
            return _in_chunks(lambda learnt, ids: cross_entropy(head(learnt), ids), head, hidden, ids)

        def divergence(learnt: Tensor, taught: Tensor) -> Tensor:
            with torch.no_grad():
                target = head(taught)
            return kl_divergence(target, head(learnt), self.temperature)

        assert teacher is not None
        return _in_chunks(divergence, head, self._compared(name, student), self._compared(name, teacher))

    def _compared(self, name: str, reading: LanguageStates) -> Tensor:
        layout = reading.layout
        if name == "input_kl":
            return reading.hidden[layout.words]
        return reading.hidden[layout.answers if self.kl_at == "tokens" else _before(layout.answers)]


def _check(model: SpeechLanguageModel, names: Sequence[str]) -> None:
    wrong = sorted(set(names).difference(LOSSES))
    if wrong or not names:
        raise BadInput(f"Unknown losses {wrong}: choose from {', '.join(LOSSES)}.")
    if model.adapter is None:
        raise BadInput("This checkpoint has no adapter to train: create one with `python -m training init`.")
    if not {"input_kl", "cif"}.isdisjoint(names) and not isinstance(model.adapter, CFormerAdapter):
        raise BadInput("The losses input_kl and cif belong to the CFormer adapter: leave them out.")
    if "input_er" in names and model.config.emotion_source != "adapter":
        raise BadInput("The loss input_er needs an emotion head over adapter frames (emotion_source = adapter).")


def _lengths(segment: Tensor) -> Tensor:
    return (segment != PADDING).sum(1)


def _before(positions: Tensor) -> Tensor:
    """The positions one earlier, [B, L]; an opening precedes every answer, so nothing wraps around."""
    return positions.roll(-1, dims=1)


def _in_chunks(loss: Callable[[Tensor, Tensor], Tensor], head: nn.Linear, hidden: Tensor, other: Tensor) -> Tensor:
    """The sum of `loss` over chunks of `hidden` [n, E] and `other` [n, ...], whose rows correspond.

    A chunk's gradient is computed at once, so that its logits are neither kept nor recomputed. It reaches `hidden`
    only: if the output layer itself is trained, there is one chunk.
    """
    size = max(1, LOGITS_AT_ONCE // head.out_features)
    if len(hidden) <= size or any(parameter.requires_grad for parameter in head.parameters()):
        return loss(hidden, other)
    parts = zip(torch.split(hidden, size), torch.split(other, size), strict=True)
    if not hidden.requires_grad:
        return torch.stack([loss(part, companion) for part, companion in parts]).sum()
    values, gradients = list[Tensor](), list[Tensor]()
    for part, companion in parts:
        leaf = part.detach().requires_grad_()
        value = loss(leaf, companion)
        gradients += torch.autograd.grad(value, leaf)
        values.append(value.detach())
    linear = (hidden * torch.cat(gradients)).sum()  # its value is subtracted again; its gradient is that of the sum
    return torch.stack(values).sum() + linear - linear.detach()
