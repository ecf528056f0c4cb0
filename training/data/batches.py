"""Training rows, and their collation into batches for the losses.

A row consists of segments, because its two versions share them: the student's prompt is opening, speech instruction,
speech, closing, answer; the teacher's is opening, text instruction, text, closing, answer. The number of speech
positions can depend on the model (a CFormer counts tokens), so whole rows are laid out (`lay_out`) after the adapter
has run. This module knows no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from assistant.events import EMOTIONS
from model.inference.prompt import encode_text
from model.nn.speech_llm import SPEECH_ID

IGNORED = -100
"""The emotion label of a row without one, and the label of a position without an answer."""

PADDING = SPEECH_ID - 1
"""Pads a batch's segments; like `SPEECH_ID` no tokenizer uses it."""

_MARK = "\ue000"  # a private-use character: the placeholder of content in the rendered template


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRow:
    """One tokenised row.

    Attributes:
        opening: ids of the system message and the start of the user's.
        speech_instruction: ids of the instruction before the speech.
        text_instruction: ids of the instruction before the text.
        text: ids of the transcript, the teacher's input; a CFormer learns to make as many tokens.
        closing: ids between the user's message and the answer.
        answer: ids of the answer, the labels.
        emotion: index into `EMOTIONS`, or `IGNORED`.
        encoder_frames: encoder frames that contain speech (`model.audio.features.encoder_frames`).
        features: [mel bins, T], log-mel features of the encoder's window; or
        encoded: [at least encoder_frames, D], the frozen encoder's output, from a cache.
    """

    opening: Sequence[int]
    speech_instruction: Sequence[int]
    text_instruction: Sequence[int]
    text: Sequence[int]
    closing: Sequence[int]
    answer: Sequence[int]
    emotion: int = IGNORED
    encoder_frames: int = 0
    features: Tensor | None = None
    encoded: Tensor | None = None


class Batch(TypedDict):
    """Collated rows.

    Segments are int64 [B, n], right-padded with `PADDING`; `features` and `encoded` have one tensor per row as in
    `TrainingRow`, and one of the two lists is empty; the others are int64 [B].
    """

    opening: Tensor
    speech_instruction: Tensor
    text_instruction: Tensor
    text: Tensor
    closing: Tensor
    answer: Tensor
    emotion: Tensor
    encoder_frames: Tensor
    features: list[Tensor]
    encoded: list[Tensor]


class Layout(NamedTuple):
    """Whole rows for the language model.

    Attributes:
        input_ids: int64 [B, L], `SPEECH_ID` on speech positions, 0 on padding.
        attention_mask: int64 [B, L], 1 real, 0 padding.
        position_ids: int64 [B, L].
        words: bool [B, L], positions of the speech or the text.
        answers: bool [B, L], positions of the answer's tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    words: Tensor
    answers: Tensor

    @property
    def labels(self) -> Tensor:
        """The answer's ids at their own positions, `IGNORED` elsewhere, [B, L]."""
        return self.input_ids.masked_fill(~self.answers, IGNORED)


def tokenise(
    tokenizer: PreTrainedTokenizerFast,
    *,
    system: str,
    text: str,
    answer: str,
    text_instruction: str = "",
    speech_instruction: str | None = None,
    emotion: str | None = None,
    complete: bool = True,
) -> TrainingRow:
    """Tokenise a row without its speech, which `dataclasses.replace` adds. Every segment is tokenised separately.

    Args:
        tokenizer: with a chat template.
        system: the system message.
        text: the transcript.
        answer: the target reply.
        text_instruction: precedes the text.
        speech_instruction: precedes the speech; by default `text_instruction`.
        emotion: one of `EMOTIONS`; anything else (unknown, empty, None) counts as not labelled.
        complete: whether the answer ends here, so that its end is learnt too: what the chat template puts after a
            reply, and the padding token. False for a truncated one (`early_stop` in the original's manifests).

    Returns:
        The row.
    """
    roles = ("system", "user", "assistant")
    rendered = tokenizer.apply_chat_template([{"role": role, "content": _MARK} for role in roles], tokenize=False)
    before, between, closing, end = (
        tokenizer.encode(piece, add_special_tokens=False) for piece in cast(str, rendered).split(_MARK)
    )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in end:
        end.append(tokenizer.pad_token_id)
    said = text_instruction if speech_instruction is None else speech_instruction
    return TrainingRow(
        opening=before + encode_text(tokenizer, system) + between,
        speech_instruction=encode_text(tokenizer, said),
        text_instruction=encode_text(tokenizer, text_instruction),
        text=encode_text(tokenizer, text),
        closing=closing,
        answer=encode_text(tokenizer, answer) + (end if complete else []),
        emotion=EMOTIONS.index(emotion) if emotion in EMOTIONS else IGNORED,
    )


def collate(rows: Sequence[TrainingRow]) -> Batch:
    """Collate rows; all have features, or all have encoder states.

    Args:
        rows: of a batch.

    Returns:
        The batch, padded.
    """
    features = [row.features for row in rows if row.features is not None]
    encoded = [row.encoded for row in rows if row.encoded is not None]
    if sorted((len(features), len(encoded))) != [0, len(rows)]:
        raise ValueError("every row of a batch needs features, or every row needs encoder states")
    return Batch(
        opening=_pad([row.opening for row in rows]),
        speech_instruction=_pad([row.speech_instruction for row in rows]),
        text_instruction=_pad([row.text_instruction for row in rows]),
        text=_pad([row.text for row in rows]),
        closing=_pad([row.closing for row in rows]),
        answer=_pad([row.answer for row in rows]),
        emotion=torch.tensor([row.emotion for row in rows]),
        encoder_frames=torch.tensor([row.encoder_frames for row in rows]),
        features=features,
        encoded=encoded,
    )


def _pad(rows: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], True, PADDING)


def lay_out(
    before: Sequence[Tensor], words: Tensor, after: Sequence[Tensor] = (), *, legacy_batching: bool = False
) -> Layout:
    """Join padded segments to whole rows.

    Args:
        before: segments before the words.
        words: the segment of speech or text.
        after: closing and answer, or nothing if only the words matter.
        legacy_batching: keep every segment's padding in place and count it as positions, as the original does. By
            default rows are compacted, so that all padding is at the end and no row depends on its neighbours.

    Returns:
        Ids, masks and positions.
    """
    parts = [*before, words, *after]
    ids = torch.cat(parts, dim=1)
    part = torch.cat([torch.full_like(ids_, number) for number, ids_ in enumerate(parts)], dim=1)
    if not legacy_batching:
        order = (ids == PADDING).byte().argsort(dim=1, stable=True)
        longest = int((ids != PADDING).sum(1).max())
        ids, part = (tensor.gather(1, order)[:, :longest] for tensor in (ids, part))
    real = ids != PADDING
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return Layout(
        input_ids=ids.masked_fill(~real, 0),
        attention_mask=real.long(),
        position_ids=positions,
        words=real & (part == len(before)),
        answers=real & (part == len(parts) - 1) if after else torch.zeros_like(real),
    )
