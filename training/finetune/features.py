"""The input of the emotion head for one recording, and a copy of the head to train."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from assistant.events import Samples
from model.audio.prosody import PROSODY_FEATURES
from model.checkpoints.loader import Checkpoint
from model.errors import BadInput
from model.inference.emotion_reader import EmotionReader
from model.nn.emotion import EmotionHead


@torch.inference_mode()
def mean_frame(loaded: Checkpoint, samples: Samples) -> Tensor:
    """The mean [D] of the frames that the checkpoint's head reads, of samples of at most 30 s at 16 kHz."""
    frames = EmotionReader(loaded.model, loaded.extractor).frames(samples)
    mean: Tensor = frames.float().mean(0).cpu()
    return mean.clone()


def copy_head(loaded: Checkpoint) -> EmotionHead:
    """A copy of the checkpoint's emotion head in float32, on the CPU, to train.

    Raises:
        BadInput: the checkpoint has none.
    """
    if loaded.model.emotion_head is None:
        raise BadInput(f"{loaded.name} has no emotion head: choose another checkpoint.")
    return copy.deepcopy(loaded.model.emotion_head).float().cpu()


def prosody_size(loaded: Checkpoint) -> int:
    """Number of prosody features at the end of a frame."""
    return len(PROSODY_FEATURES) if loaded.model.config.emotion_source == "encoder" else 0
