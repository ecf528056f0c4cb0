"""Where a voice is in a recording: its level, its frames, and whether there is one at all."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assistant.events import SAMPLE_RATE, Samples
from model.audio.prosody import speech_frames
from model.errors import WeightsMissing

VOICE_RMS = 0.05
"""RMS of the voice in a levelled recording, -26 dBFS."""
SHORTEST_SECONDS = 0.6
"""A recording shorter than this gets no reading."""

_FRAME = 320  # samples of an encoder frame
_BLOCK, _CONTEXT = 512, 64  # what Silero takes at a time, and the samples before it that it sees again
_LIKELY, _LEAST_BLOCKS = 0.5, 5
_TOO_SHORT = f"shorter than {SHORTEST_SECONDS} s"
_NO_VOICE = "no voice was heard"


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
    """Say why a recording gets no reading, or None if it has a voice.

    Silero's judge of speech decides, over the levelled recording; it stops at the first `_LEAST_BLOCKS` blocks of
    voice, so that speech costs little.

    Args:
        samples: float32 [n] at 16 kHz.

    Raises:
        WeightsMissing: the package silero-vad or onnxruntime is not installed.
    """
    if len(samples) < SHORTEST_SECONDS * SAMPLE_RATE:
        return _TOO_SHORT
    if not np.abs(samples).max() > 0:
        return _NO_VOICE
    given = levelled(samples)
    state, before, found = np.zeros((2, 1, 128), np.float32), np.zeros(_CONTEXT, np.float32), 0
    for start in range(0, len(given) - _BLOCK + 1, _BLOCK):
        block = given[start : start + _BLOCK]
        likely, state = _judge(np.concatenate([before, block]), state)
        before = block[-_CONTEXT:]
        found += likely > _LIKELY
        if found >= _LEAST_BLOCKS:
            return None
    return _NO_VOICE


def _judge(block: Samples, state: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
    rate = np.array(SAMPLE_RATE, np.int64)
    (likely,), state = _session().run(None, {"input": block[None], "state": state, "sr": rate})
    return float(likely[0]), state


@cache
def _session() -> Any:
    """Silero's model in the installed wheel, on one thread; its own code, which needs torch, is not imported."""
    import onnxruntime

    found = importlib.util.find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        raise WeightsMissing("silero-vad is missing: install Undertone's dependencies again.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = Path(found.submodule_search_locations[0]) / "data" / "silero_vad.onnx"
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
