"""The input of the emotion head for one recording, and a copy of the head to train."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from assistant.events import Samples
from model.audio.features import encoder_frames, log_mel
from model.audio.prosody import PROSODY_FEATURES, prosody_frames
from model.checkpoints.loader import Checkpoint
from model.errors import BadInput
from model.nn.emotion import EmotionHead


@torch.inference_mode()
def mean_frame(loaded: Checkpoint, samples: Samples) -> Tensor:
    """The mean [D] of the emotion head's input frames, for samples of at most 30 s at 16 kHz."""
    model, config = loaded.model, loaded.model.config
    features = log_mel(loaded.extractor, samples, trimmed=config.window == "trimmed").to(model.device)
    prosody = None
    if config.emotion_source == "encoder":
        prosody = torch.from_numpy(prosody_frames(samples))[None].to(model.device)
    heard = model.hear(features, torch.tensor([encoder_frames(len(samples))], device=model.device), prosody)
    assert heard.emotion_frames is not None, "it has an emotion head"
    frames = heard.emotion_frames[0]
    if heard.emotion_mask is not None:
        frames = frames[heard.emotion_mask[0]]
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
