"""The speech language model: speech becomes embeddings between the tokens of a chat prompt.

Whisper encoder -> adapter -> the input embeddings of a stock causal language model, whose partial LoRA is active on
speech positions; an emotion head over the mean frame (BLSP-Emo, arXiv 2406.03872). This module knows nothing of audio
files, conversations or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.config import SpeechLanguageConfig
from model.nn.hearing import HearingModel, make_adapter, make_head
from model.nn.long_prompts import LongPrompts, add_long_prompts
from model.nn.lora import LoraScope, add_lora

SPEECH_ID = -1
"""Placeholder in `input_ids` for a frame of speech; no tokenizer uses it."""


class SpeechLanguageModel(PreTrainedModel, HearingModel):
    """Encoder, adapter, language model, partial LoRA and emotion head under one config.

    Args:
        config: the composition.
        encoder: a ready-made encoder; by default it is built from the config.
        language_model: a ready-made language model; by default it is built from the config.
    """

    config_class = SpeechLanguageConfig
    config: SpeechLanguageConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(
        self,
        config: SpeechLanguageConfig,
        encoder: WhisperEncoder | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config.speech_config) if encoder is None else encoder
        self.language_model: Any = (
            AutoModelForCausalLM.from_config(config.text_config) if language_model is None else language_model
        )
        text_size = int(self.get_input_embeddings().weight.shape[1])
        self.adapter = make_adapter(config, text_size)
        self.lora_scope = LoraScope()
        if config.lora_rank:
            self.lora_scope = add_lora(
                self.language_model,
                config.lora_targets,
                config.lora_rank,
                config.lora_alpha,
                config.lora_dropout,
            )
        add_long_prompts(self.language_model)
        self.emotion_head = make_head(config, text_size)
        # Ready-made parts are trained: initialising them again would erase them.
        if encoder is None and language_model is None:
            self.post_init()

    def get_input_embeddings(self) -> Any:
        """The language model's token embeddings.

        Returns:
            The embedding layer, V to E.
        """
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The language model's output layer.

        Returns:
            The linear layer, E to V.
        """
        return self.language_model.get_output_embeddings()

    @property
    def long_prompts(self) -> LongPrompts | None:
        """The language model's rules for prompts beyond its trained length, if it has any."""
        rotary = getattr(getattr(self.language_model, "model", None), "rotary_emb", None)
        return rotary if isinstance(rotary, LongPrompts) else None

    def embed(self, input_ids: Tensor, speech: Tensor | None) -> Tensor:
        """Input embeddings of a prompt with speech.

        Args:
            input_ids: int64 [B, L], `SPEECH_ID` on speech positions.
            speech: [n, E] adapter frames for these positions, in order; None where there are none.

        Returns:
            [B, L, E].
        """
        is_speech = input_ids == SPEECH_ID
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_speech, 0))
        if speech is None:
            return embeddings
        return embeddings.masked_scatter(is_speech[..., None], speech.to(embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        speech: Tensor | None = None,
        past_key_values: Cache | None = None,
        *,
        prompt_lengths: Sequence[int] | None = None,
        legacy_batching: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run a prompt, or a part of it after `past_key_values`, through the language model.

        Args:
            input_ids: int64 [B, L], `SPEECH_ID` on speech positions.
            attention_mask: [B, past + L], 1 real, 0 padding.
            speech: [n, E] adapter frames for all speech positions, row by row.
            past_key_values: the KV cache; None: no cache.
            prompt_lengths: length of each row's whole prompt, where this call has only a part of it. By default a call
                with an empty cache has whole prompts. The rules for long prompts depend on it.
            legacy_batching: positions count padding, as in the original. By default they come from the mask, so that
                padding changes nothing.
            **kwargs: passed on to the language model (labels, logits_to_keep, ...).

        Returns:
            The language model's output.
        """
        is_speech = input_ids == SPEECH_ID
        if self.long_prompts is not None:
            fresh = past_key_values is None or not past_key_values.get_seq_length()
            if prompt_lengths is None and fresh:
                prompt_lengths = _true_lengths(input_ids, attention_mask)
            if prompt_lengths is not None:
                self.long_prompts.attach(self.language_model)
                self.long_prompts.begin(prompt_lengths)
        if attention_mask is not None and not legacy_batching and "position_ids" not in kwargs:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            kwargs["position_ids"] = positions[:, -input_ids.shape[1] :]
        with self.lora_scope.on(self.lora_mask(is_speech)):
            return self.language_model(
                inputs_embeds=self.embed(input_ids, speech),
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )

    def lora_mask(self, is_speech: Tensor) -> Tensor | None:
        """The positions of a prompt where LoRA is active.

        Args:
            is_speech: bool [B, L], speech positions.

        Returns:
            bool [B, L]; None: nowhere.
        """
        if not self.config.lora_rank:
            return None
        scope = self.config.lora_scope
        if scope == "global":
            return torch.ones_like(is_speech)
        mask = is_speech if scope == "audio" else ~is_speech
        return mask if bool(mask.any()) else None


def _true_lengths(input_ids: Tensor, attention_mask: Tensor | None) -> list[int]:
    if attention_mask is None:
        return [input_ids.shape[1]] * input_ids.shape[0]
    return [int(length) for length in attention_mask.sum(-1)]
