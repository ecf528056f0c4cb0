"""Seeded readings and spoken turns whose contributions sum exactly."""

from __future__ import annotations

import numpy as np

from assistant.events import EMOTIONS, UNSURE, EmotionReading, Samples, Spoken

RATE = 16_000
FRAME_SECONDS = 0.08


def sound(seconds: float = 2.0, seed: int = 0) -> Samples:
    """Noise that swells and fades."""
    count = round(seconds * RATE)
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.2 * noise * np.sin(np.pi * np.arange(count) / count)).astype(np.float32)


def spoken(seconds: float = 2.0, seed: int = 0) -> Spoken:
    """An utterance."""
    return Spoken(sound(seconds, seed))


def reading(label: str = "sad", seconds: float = 2.0, seed: int = 0) -> EmotionReading:
    """A reading of `label`; "unsure" is closest to angry. The first half of the frames points to another emotion."""
    wanted = EMOTIONS.index("angry" if label == UNSURE else label)
    frames = round(seconds / FRAME_SECONDS)
    contributions = np.random.default_rng(seed).normal(0, 0.01, (frames, 5)).astype(np.float32)
    lead = 1.0 if label == UNSURE else 3.0
    contributions[: frames // 2, (wanted + 1) % 5] += lead / frames
    contributions[frames // 2 :, wanted] += 3 * lead / frames
    offset = np.zeros(5, np.float32)
    powers = np.exp(contributions.sum(0) + offset)
    return EmotionReading((powers / powers.sum()).astype(np.float32), label, FRAME_SECONDS, contributions, offset)
