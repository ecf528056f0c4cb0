"""Batched replies to several prompts, as in the original's batch tool.

There are two layouts of a padded batch. The default: whole rows, padded on the left, positions from the mask, every
recording encoded separately, so that no row depends on its neighbours (except for the rounding of padded sums). The
original's (`legacy_batching`): prefix padded on the left, speech on the right, suffix on the left, and padding counts
as positions. This module knows prompts and tokens; files and lines belong to `model.commands.generate`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from assistant.events import SAMPLE_RATE, Samples
from model.audio.features import LONGEST_SECONDS, encoder_frames, log_mel
from model.audio.files import split_at_pauses
from model.checkpoints.loader import Checkpoint
from model.errors import BadInput
from model.inference.kv_cache import KeyValueCache
from model.inference.prompt import encode_text
from model.inference.sampling import next_token
from model.nn.speech_llm import SPEECH_ID, SpeechLanguageModel

_PADDING = SPEECH_ID - 1


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One row of a batch.

    Attributes:
        prefix: token ids before the speech.
        suffix: token ids after it, up to where the reply begins.
        speech: [n, E] adapter frames, or None.
        seed: makes a sampled reply reproducible, whatever else is in the batch.
    """

    prefix: list[int]
    suffix: list[int]
    speech: Tensor | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.prefix) + self.frames + len(self.suffix)

    @property
    def frames(self) -> int:
        """Speech positions."""
        return 0 if self.speech is None else len(self.speech)


@torch.inference_mode()
def hear(checkpoint: Checkpoint, recordings: Sequence[Samples], *, legacy_batching: bool = False) -> list[Tensor]:
    """Encode recordings to adapter frames.

    By default each recording is encoded separately, and one longer than 30 s in pieces split at pauses. With
    `legacy_batching` all are encoded together, each cut off at 30 s.

    Args:
        checkpoint: with an adapter.
        recordings: float32 [n] each, mono, 16 kHz.
        legacy_batching: the original's batching.

    Returns:
        Adapter frames [n, E] of each recording.

    Raises:
        BadInput: the checkpoint has no adapter.
    """
    if not legacy_batching:
        return [
            torch.cat([_hear(checkpoint, [samples[piece]])[0] for piece in split_at_pauses(samples, SAMPLE_RATE)])
            for samples in recordings
        ]
    longest = int(LONGEST_SECONDS * SAMPLE_RATE)
    return _hear(checkpoint, [samples[:longest] for samples in recordings], legacy_batching=True) if recordings else []


def _hear(checkpoint: Checkpoint, recordings: Sequence[Samples], *, legacy_batching: bool = False) -> list[Tensor]:
    model = checkpoint.model
    trimmed = model.config.window == "trimmed" and not legacy_batching
    features = [log_mel(checkpoint.extractor, samples, trimmed=trimmed) for samples in recordings]
    lengths = torch.tensor([encoder_frames(len(samples)) for samples in recordings], device=model.device)
    heard = model.hear(torch.cat(features).to(model.device), lengths, legacy_batching=legacy_batching)
    if heard.frames is None or heard.mask is None:
        raise BadInput("This checkpoint has no adapter, so it cannot encode speech: choose another.")
    return [frames[mask] for frames, mask in zip(heard.frames, heard.mask, strict=True)]


@torch.inference_mode()
def generate(
    model: SpeechLanguageModel,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    *,
    legacy_batching: bool = False,
) -> list[list[int]]:
    """Generate the reply to each prompt.

    Args:
        model: in eval mode.
        tokenizer: the checkpoint's.
        prompts: the batch.
        settings: `max_new_tokens`, `eos_token_id`, `pad_token_id` and what `next_token` reads. A reply has
            `min_new_tokens` tokens before padding; as in the original an end of turn counts as one of them.
        legacy_batching: the original's layout and positions; see the module's docstring.

    Returns:
        Token ids of each reply; the end token that finished a reply is its last id.
    """
    if not prompts:
        return []
    chooser = _Chooser(model, tokenizer, prompts, settings)
    ids, mask = (part.to(model.device) for part in _lay_out(prompts, chooser.pad, legacy_batching))
    speech = [prompt.speech for prompt in prompts if prompt.speech is not None]
    cache = KeyValueCache(model.language_model.config.num_hidden_layers)
    if model.long_prompts is not None:
        model.long_prompts.active = True  # an engine with a short context may have switched the rules off
    output = model(
        ids,
        mask,
        torch.cat(speech) if speech else None,
        cache,
        legacy_batching=legacy_batching,
        use_cache=True,
        logits_to_keep=1,
    )
    everywhere = model.config.lora_rank and model.config.lora_scope == "global"
    while True:
        tokens = chooser.next(output.logits[:, -1].float())
        if chooser.finished():
            return chooser.replies
        ids = torch.tensor(tokens, device=model.device)[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = {} if legacy_batching else {"position_ids": mask.sum(1, keepdim=True) - 1}
        # Not `model`: LoRA on text acts on a prompt's tokens, never on generated ones.
        with model.lora_scope.on(torch.ones_like(ids, dtype=torch.bool)) if everywhere else nullcontext():
            output = model.language_model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions
            )


def _lay_out(prompts: Sequence[Prompt], pad: int, legacy: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [B, L]."""
    speech = [[SPEECH_ID] * prompt.frames for prompt in prompts]
    if legacy:
        prefix = _pad([prompt.prefix for prompt in prompts])
        suffix = _pad([prompt.suffix for prompt in prompts])
        widest = max(map(len, speech))
        rows = [a + b + [_PADDING] * (widest - len(b)) + c for a, b, c in zip(prefix, speech, suffix, strict=True)]
    else:
        rows = _pad([prompt.prefix + one + prompt.suffix for prompt, one in zip(prompts, speech, strict=True)])
    ids = torch.tensor(rows)
    mask = ids != _PADDING
    return ids.masked_fill(~mask, pad), mask.long()


def _pad(rows: Sequence[list[int]]) -> list[list[int]]:
    """The rows, left-padded to the longest."""
    widest = max(map(len, rows))
    return [[_PADDING] * (widest - len(row)) + row for row in rows]


class _Chooser:
    """Chooses every row's next token and knows when a row has ended."""

    def __init__(
        self, model: SpeechLanguageModel, tokenizer: Any, prompts: Sequence[Prompt], settings: GenerationConfig
    ) -> None:
        ends = settings.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.pad = int(settings.pad_token_id if settings.pad_token_id is not None else min(self.ends))
        self.ends.add(self.pad)
        self.settings = settings
        self.seeds = [prompt.seed for prompt in prompts]
        self.replies: list[list[int]] = [[] for _ in prompts]
        newline = encode_text(tokenizer, "\n")
        alone = model.config.penalty_scope == "reply"
        self._before = [newline if alone else prompt.prefix + prompt.suffix for prompt in prompts]
        self._devices = [model.device] if model.device.type == "cuda" else []

    def next(self, logits: Tensor) -> list[int]:
        """The next token of every row, `pad` where a row has ended; logits [B, vocabulary] may be changed."""
        tokens = []
        with torch.random.fork_rng(self._devices) if self.settings.do_sample else nullcontext():
            for row, reply in enumerate(self.replies):
                if self._ended(reply):
                    tokens.append(self.pad)
                    continue
                logits[row, self._too_early(len(reply))] = -torch.inf
                if self.settings.do_sample:
                    # A row's random numbers depend on its own seed and position, not on its batch.
                    torch.manual_seed(zlib.crc32(f"{self.seeds[row]} {len(reply)}".encode()))
                tokens.append(next_token(logits[row], self._before[row] + reply, self.settings))
                reply.append(tokens[-1])
        return tokens

    def finished(self) -> bool:
        return all(self._ended(reply) for reply in self.replies)

    def _ended(self, reply: list[int]) -> bool:
        return len(reply) >= self.settings.max_new_tokens or (bool(reply) and reply[-1] in self.ends)

    def _too_early(self, written: int) -> list[int]:
        """End tokens that would make the reply too short."""
        least = self.settings.min_new_tokens or 0
        return [end for end in self.ends if written + (end != self.pad) < least]
