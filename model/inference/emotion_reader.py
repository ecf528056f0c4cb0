"""From samples to an emotion reading: pieces of at most 30 s through the encoder, their frames through the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from assistant.events import SAMPLE_RATE, EmotionReading, Samples
from model.audio.features import LONGEST_SECONDS, encoder_frames, log_mel
from model.audio.files import split_at_pauses
from model.audio.prosody import prosody_frames, speech_frames
from model.audio.voice import NO_VOICE, levelled, why_unread
from model.nn.hearing import EmotionModel, EncodedSpeech
from model.nn.speech_llm import SpeechLanguageModel

NO_HEAD = "this checkpoint has no emotion head"

Judged = tuple[EmotionReading | None, str | None]
"""A reading and None, or None and the reason why there is none."""


class EmotionReader:
    """Encodes recordings and reads their emotion. Several threads may share one.

    Args:
        model: with an emotion head, or without (then there are no readings).
        extractor: of log-mel features.

    Attributes:
        model: has encoder and emotion head.
        extractor: computes log-mel features.
        baseline: float32 [D], mean frame of the speaker's normal voice (`mean_of`), or None.
    """

    def __init__(self, model: EmotionModel | SpeechLanguageModel, extractor: WhisperFeatureExtractor) -> None:
        self.model = model
        self.extractor = extractor
        self.baseline: Tensor | None = None

    @torch.inference_mode()
    def hear(self, samples: Samples) -> Iterator[tuple[EncodedSpeech, float]]:
        """Encode a recording piece by piece.

        Args:
            samples: float32 [n], mono, 16 kHz.

        Yields:
            Encoder states and frames of each piece, and its duration in seconds.
        """
        for piece in split_at_pauses(samples, SAMPLE_RATE, LONGEST_SECONDS):
            yield self._hear_piece(samples[piece]), (piece.stop - piece.start) / SAMPLE_RATE

    def read(self, samples: Samples) -> Judged:
        """Read the emotion of a recording.

        Args:
            samples: float32 [n], mono, 16 kHz, n >= 1.

        Returns:
            The reading, or why there is none.
        """
        if self.model.emotion_head is None:
            return None, NO_HEAD
        if self._needs_voice and (why := why_unread(samples)):
            return None, why
        return self.judge(self.frames(samples), samples)

    def frames(self, samples: Samples) -> Tensor:
        """The emotion head's input, which must exist.

        Args:
            samples: float32 [n], mono, 16 kHz, n >= 1.

        Returns:
            [N, D], all pieces of the recording together.
        """
        heard = [piece.emotion_frames[0] for piece, _ in self.hear(samples) if piece.emotion_frames is not None]
        return torch.cat(heard)

    @torch.inference_mode()
    def mean_of(self, recordings: Iterable[Samples]) -> Tensor:
        """A speaker's baseline: the mean of the recordings' mean frames.

        Args:
            recordings: at least one, as in `read`.

        Returns:
            float32 [D].
        """
        return torch.stack([self.frames(samples).float().mean(0) for samples in recordings]).mean(0)

    @torch.inference_mode()
    def judge(self, frames: Tensor | None, samples: Samples) -> Judged:
        """Read the emotion from frames that were already encoded.

        Args:
            frames: [N, D], the emotion head's input; None: there is none.
            samples: the recording.

        Returns:
            The reading, or why there is none.
        """
        head = self.model.emotion_head
        if head is None or frames is None:
            return None, NO_HEAD
        if self._needs_voice and (why := why_unread(samples)):
            return None, why
        if not head.hears_voice(frames):
            return None, NO_VOICE
        return self._read(frames, samples), None

    @property
    def _needs_voice(self) -> bool:
        config = self.model.config
        return config.emotion_source == "encoder" and config.emotion_frames == "voice"

    @torch.inference_mode()
    def _read(self, frames: Tensor, samples: Samples) -> EmotionReading:
        head, config = self.model.emotion_head, self.model.config
        assert head is not None
        voiced, seconds = None, None
        if config.emotion_source == "adapter" and config.adapter_type != "conv":  # tokens, spread over the utterance
            seconds = len(samples) / SAMPLE_RATE / len(frames)
        if self._needs_voice:
            pieces = split_at_pauses(samples, SAMPLE_RATE, LONGEST_SECONDS)
            voiced = torch.from_numpy(np.concatenate([speech_frames(samples[piece]) for piece in pieces]))
            voiced = voiced.to(frames.device)
        return head.read(frames, frame_seconds=seconds, voiced=voiced, baseline=self.baseline)

    def _hear_piece(self, samples: Samples) -> EncodedSpeech:
        config, device = self.model.config, self.model.device
        voiced = None
        if self._needs_voice:
            samples = levelled(samples)
            voiced = torch.from_numpy(speech_frames(samples))[None].to(device)
        features = log_mel(self.extractor, samples, trimmed=config.window == "trimmed")
        prosody = None
        if config.emotion_source == "encoder":
            prosody = torch.from_numpy(prosody_frames(samples))[None].to(device)
        lengths = torch.tensor([encoder_frames(len(samples))], device=device)
        return self.model.hear(features.to(device), lengths, prosody, voiced)
