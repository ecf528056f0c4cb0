"""From samples to encoder frames: log-mel features, the encoder's window, its layers.

Whisper's encoder takes 30 s, but its attention has no mask and its positions are a plain table, so a shorter window
works by slicing the table. The window must end in silence: when it is cut at the exact length, recognition breaks down;
with 2 s of silence it is as accurate as with 30 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from assistant.events import SAMPLE_RATE, Samples
from model.config import MEL_HOP_SAMPLES

LONGEST_SECONDS = 30.0
"""The encoder's full window; a longer recording is cut at pauses before it comes here."""

TRIM_SILENCE_SECONDS = 2.0


def mel_frames(samples: int) -> int:
    """Number of mel frames that contain speech: one per 160 samples, rounded up."""
    return -(-samples // MEL_HOP_SAMPLES)


def encoder_frames(samples: int) -> int:
    """Number of encoder frames that contain speech.

    Whisper's second convolution has stride 2, so n mel frames become (n - 1) // 2 + 1 encoder frames.

    Args:
        samples: length of the recording in samples at 16 kHz.

    Returns:
        Frames of 20 ms.
    """
    return (mel_frames(samples) - 1) // 2 + 1


def window_samples(samples: int, *, trimmed: bool) -> int:
    """Length of the encoder's window in samples: 30 s, or the utterance plus 2 s, in whole encoder frames."""
    full = int(LONGEST_SECONDS * SAMPLE_RATE)
    if not trimmed:
        return full
    step = 2 * MEL_HOP_SAMPLES
    return min(full, -(-(samples + int(TRIM_SILENCE_SECONDS * SAMPLE_RATE)) // step) * step)


def log_mel(extractor: WhisperFeatureExtractor, samples: Samples, *, trimmed: bool) -> Tensor:
    """Log-mel features of one utterance, padded with silence to its window.

    Args:
        extractor: the checkpoint's feature extractor.
        samples: float32 [n], mono, 16 kHz, at most 30 s.
        trimmed: whether the window is the utterance plus 2 s of silence instead of 30 s.

    Returns:
        float32 [1, mel bins, window / 160].
    """
    batch = extractor(
        samples,
        sampling_rate=SAMPLE_RATE,
        padding="max_length",
        max_length=window_samples(len(samples), trimmed=trimmed),
        return_tensors="pt",
    )
    return cast(Tensor, batch["input_features"])


def encode(encoder: WhisperEncoder, features: Tensor) -> list[Tensor]:
    """Run Whisper's encoder over a window of any length up to 30 s.

    Args:
        encoder: transformers' encoder.
        features: [B, mel bins, T], T even.

    Returns:
        The hidden states of all layers, each [B, T / 2, D]: the embeddings, the output of each layer, and last the
            normalised output. `[-1]` equals transformers' `last_hidden_state` when T is 3000.
    """
    hidden = nn.functional.gelu(encoder.conv1(features.to(encoder.conv1.weight.dtype)))
    hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    states = [hidden]
    for layer in encoder.layers:
        hidden = layer(hidden, None)
        states.append(hidden)
    states[-1] = encoder.layer_norm(hidden)
    return states


def mean_of_layers(states: Sequence[Tensor], layers: Sequence[int]) -> Tensor:
    """The mean of some layers' hidden states.

    Args:
        states: what `encode` returned, each [B, T, D].
        layers: indices into `states`.

    Returns:
        [B, T, D].
    """
    return torch.stack([states[layer] for layer in layers]).mean(0)
