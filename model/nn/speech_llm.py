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

from model.audio.features import encode, mean_of_layers
from model.audio.prosody import PROSODY_FEATURES
from model.config import SpeechLanguageConfig
from model.nn.adapter import ConvAdapter
from model.nn.cformer import CFormerAdapter
from model.nn.ctc_adapter import CtcAdapter
from model.nn.emotion import EmotionHead
from model.nn.long_prompts import LongPrompts, add_long_prompts
from model.nn.lora import LoraScope, add_lora

SPEECH_ID = -1
"""Placeholder in `input_ids` for a frame of speech; no tokenizer uses it."""


class SpeechLanguageModel(PreTrainedModel):
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
        speech_size = config.speech_config.d_model
        text_size = int(self.get_input_embeddings().weight.shape[1])
        self.adapter = _adapter(config, text_size)
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
        self.emotion_head = None
        if config.emotion_source != "none":
            size = text_size if config.emotion_source == "adapter" else speech_size + len(PROSODY_FEATURES)
            self.emotion_head = EmotionHead(
                size,
                hidden=config.emotion_hidden,
                threshold=config.emotion_threshold,
                frame_seconds=config.frame_seconds,
                group=config.emotion_frame_group,
            )
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

    def hear(
        self,
        features: Tensor,
        lengths: Tensor,
        prosody: Tensor | None = None,
        *,
        legacy_batching: bool = False,
    ) -> Heard:
        """Encode a batch of utterances that share one window.

        Args:
            features: [S, mel bins, T] log-mel.
            lengths: int64 [S], encoder frames that contain speech (`features.encoder_frames`).
            prosody: [S, T', P] prosody features, for an emotion head over encoder frames.
            legacy_batching: the original's batching; see `ConvAdapter.forward`.

        Returns:
            Encoder states, adapter frames and the emotion head's input.
        """
        states = encode(self.encoder, features)
        encoded = states[-1][:, : int(lengths.max())]
        frames, mask = None, None
        if self.adapter is not None:
            frames, mask = self.adapt(encoded, lengths, legacy_batching=legacy_batching)
        emotion_frames, emotion_mask = frames, mask
        if self.config.emotion_source == "encoder" and prosody is not None:
            emotion_frames = mean_of_layers(states, self.config.emotion_layers)[:, : encoded.shape[1]]
            emotion_frames = torch.cat([emotion_frames, prosody.to(emotion_frames)], dim=-1)
            emotion_mask = torch.arange(encoded.shape[1], device=lengths.device) < lengths[:, None]
        return Heard(states[-1], frames, mask, emotion_frames, emotion_mask)

    def adapt(self, encoded: Tensor, lengths: Tensor, *, legacy_batching: bool = False) -> tuple[Tensor, Tensor]:
        """Run the adapter, which must exist: encoder frames to language-model embeddings.

        Args:
            encoded: [B, T, D] encoder frames, right-padded.
            lengths: int64 [B], valid frames of each row.
            legacy_batching: see `ConvAdapter.forward`.

        Returns:
            [B, N, E] and its mask, bool [B, N].
        """
        adapter = self.adapter
        assert adapter is not None
        if isinstance(adapter, CtcAdapter):
            ctc_frames = adapter.decode(encoded, lengths, self.get_input_embeddings(), legacy_batching=legacy_batching)
            return ctc_frames.frames, ctc_frames.mask
        frames, mask = adapter(encoded, lengths, legacy_batching=legacy_batching)
        return frames, mask

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


def _adapter(config: SpeechLanguageConfig, text_size: int) -> ConvAdapter | CFormerAdapter | None:
    speech = config.speech_config
    if config.adapter_type == "cformer":
        layers = (config.cformer_pre_layers, config.cformer_post_layers)
        return CFormerAdapter(speech, text_size, config.text_config.vocab_size, *layers, config.cformer_heads)
    sizes = (speech.d_model, text_size, config.adapter_inner_size, config.adapter_kernel_sizes)
    if not config.adapter_kernel_sizes:
        return None
    if config.adapter_type == "spelling":
        return CtcAdapter(*sizes, config.text_config.vocab_size, config.adapter_layers)
    return ConvAdapter(*sizes)


def _true_lengths(input_ids: Tensor, attention_mask: Tensor | None) -> list[int]:
    if attention_mask is None:
        return [input_ids.shape[1]] * input_ids.shape[0]
    return [int(length) for length in attention_mask.sum(-1)]


class Heard:
    """Output of `SpeechLanguageModel.hear` for a batch of S utterances.

    Attributes:
        encoded: [S, T / 2, D], the encoder's output over the whole window; the recogniser's input.
        frames: [S, N, E] adapter frames; None without an adapter.
        mask: their mask, bool [S, N].
        emotion_frames: what the emotion head averages; None if it has no input.
        emotion_mask: the mask of these.
    """

    __slots__ = ("emotion_frames", "emotion_mask", "encoded", "frames", "mask")

    def __init__(
        self,
        encoded: Tensor,
        frames: Tensor | None,
        mask: Tensor | None,
        emotion_frames: Tensor | None,
        emotion_mask: Tensor | None,
    ) -> None:
        self.encoded = encoded
        self.frames = frames
        self.mask = mask
        self.emotion_frames = emotion_frames
        self.emotion_mask = emotion_mask
