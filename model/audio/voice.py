"""The level of a voice in a recording, and recordings that are too short or silent to have one."""

from __future__ import annotations

import numpy as np

from assistant.events import SAMPLE_RATE, Samples
from model.audio.files import SILENCE_PEAK
from model.audio.prosody import speech_frames

VOICE_RMS = 0.05
"""RMS of the voice in a levelled recording, -26 dBFS."""
SHORTEST_SECONDS = 0.6
"""A recording shorter than this gets no reading."""

NO_VOICE = "no voice was heard"
"""Why silence and other sounds get no reading."""

_FRAME = 320  # samples of an encoder frame


def levelled(samples: Samples) -> Samples:
    """Scale a recording to a standard voice level.

    Args:
        samples: float32 [n] at 16 kHz, n >= 1.

    Returns:
        float32 [n], its speech frames at `VOICE_RMS`; peaks may exceed 1.
    """
    frames = speech_frames(samples)
    padded = np.zeros(len(frames) * _FRAME, np.float32)
    padded[: len(samples)] = samples[: len(padded)]
    power = float((padded.reshape(-1, _FRAME)[frames] ** 2).mean())
    return np.asarray(samples * (VOICE_RMS / max(power**0.5, 1e-5)), np.float32)


def why_unread(samples: Samples) -> str | None:
    """Say why a recording gets no reading, whatever it sounds like.

    Args:
        samples: float32 [n] at 16 kHz.

    Returns:
        The reason, or None.
    """
    if len(samples) < SHORTEST_SECONDS * SAMPLE_RATE:
        return f"shorter than {SHORTEST_SECONDS} s"
    if np.ptp(samples) < 2 * SILENCE_PEAK:
        return NO_VOICE
    return None
