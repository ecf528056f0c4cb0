"""Encoder, adapter and emotion head, with or without a language model.

`HearingModel` is the common base of `SpeechLanguageModel` and `EmotionModel`. This module knows no audio files and no
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.audio.features import encode, mean_of_layers
from model.audio.prosody import PROSODY_FEATURES
from model.config import SpeechLanguageConfig
from model.nn.adapter import ConvAdapter
from model.nn.cformer import CFormerAdapter
from model.nn.ctc_adapter import CtcAdapter
from model.nn.emotion import EmotionHead


class EncodedSpeech:
    """Output of `HearingModel.hear` for a batch of S utterances.

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


class HearingModel:
    """Methods of a model that encodes speech; subclasses define the parts."""

    config: SpeechLanguageConfig
    encoder: WhisperEncoder
    adapter: ConvAdapter | CFormerAdapter | None
    emotion_head: EmotionHead | None

    def get_input_embeddings(self) -> Any:
        """The language model's token embeddings, which a CTC adapter needs."""
        raise NotImplementedError

    def hear(
        self,
        features: Tensor,
        lengths: Tensor,
        prosody: Tensor | None = None,
        voiced: Tensor | None = None,
        *,
        legacy_batching: bool = False,
    ) -> EncodedSpeech:
        """Encode a batch of utterances that share one window.

        Args:
            features: [S, mel bins, T] log-mel.
            lengths: int64 [S], encoder frames that contain speech (`features.encoder_frames`).
            prosody: [S, T', P] prosody features, for an emotion head over encoder frames.
            voiced: bool [S, T'], frames with a voice, at least one a row: for the emotion head the others are filled
                with their mean, as `prosody_frames` does. By default all frames count.
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
            emotion_frames = self._layers(states)[:, : encoded.shape[1]]
            if voiced is not None:
                counted = voiced[..., None].to(emotion_frames)
                mean = (emotion_frames * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
                emotion_frames = torch.where(voiced[..., None], emotion_frames, mean)
            emotion_frames = torch.cat([emotion_frames, prosody.to(emotion_frames)], dim=-1)
            emotion_mask = torch.arange(encoded.shape[1], device=lengths.device) < lengths[:, None]
        return EncodedSpeech(states[-1], frames, mask, emotion_frames, emotion_mask)

    def _layers(self, states: Sequence[Tensor]) -> Tensor:
        """The encoder's share of the emotion head's input, [B, T, D], from all layers' states."""
        layers = self.config.emotion_layers
        if self.config.emotion_stacked:
            return torch.cat([states[layer] for layer in layers], dim=-1)
        return mean_of_layers(states, layers)

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


class EmotionModel(HearingModel, nn.Module):
    """The part of a `SpeechLanguageModel` that reads emotion; its tensors have the same names.

    Attributes:
        adapter: only if the head averages adapter frames. A CTC adapter needs the language model.
    """

    def __init__(self, config: SpeechLanguageConfig) -> None:
        super().__init__()
        text_size = config.text_config.hidden_size
        self.config = config
        self.encoder = WhisperEncoder(config.speech_config)
        self.adapter = make_adapter(config, text_size) if config.emotion_source == "adapter" else None
        self.emotion_head = make_head(config, text_size)

    @property
    def device(self) -> torch.device:
        """The encoder's device."""
        return self.encoder.conv1.weight.device


def make_adapter(config: SpeechLanguageConfig, text_size: int) -> ConvAdapter | CFormerAdapter | None:
    """Create the adapter of a config, with new weights.

    Args:
        config: of the checkpoint.
        text_size: width of the language model's embeddings.

    Returns:
        The adapter, or None if the config has none.
    """
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


def make_head(config: SpeechLanguageConfig, text_size: int) -> EmotionHead | None:
    """Create the emotion head of a config, with new weights; None if it has none.

    Args:
        config: of the checkpoint.
        text_size: width of the language model's embeddings.

    Returns:
        The head, or None if the config has none.
    """
    if config.emotion_source == "none":
        return None
    layers = len(config.emotion_layers) if config.emotion_stacked else 1
    own = config.emotion_source == "encoder"
    return EmotionHead(
        config.speech_config.d_model * layers + len(PROSODY_FEATURES) if own else text_size,
        hidden=config.emotion_hidden,
        threshold=config.emotion_threshold,
        neutral_threshold=config.emotion_neutral_threshold,
        pair_threshold=config.emotion_pair_threshold,
        baseline=config.emotion_baseline,
        voice=config.emotion_voice,
        frame_seconds=config.frame_seconds,
        group=config.emotion_frame_group,
    )
