"""Recordings that are too short or silent for a voice, and how the others are levelled."""

import numpy as np
import pytest
import soundfile

from model.audio.prosody import speech_frames
from model.audio.voice import VOICE_RMS, levelled, why_unread
from tests import ROOT

SAMPLES = sorted((ROOT / "resources" / "samples").glob("*.flac"))
RATE = 16_000


def test_silence_and_short_recordings_say_why():
    assert why_unread(np.zeros(3 * RATE, np.float32)) == "no voice was heard"
    samples = soundfile.read(SAMPLES[0], dtype="float32")[0]
    assert why_unread(samples[: int(0.59 * RATE)]) == "shorter than 0.6 s"
    assert why_unread(np.zeros(0, np.float32)) == "shorter than 0.6 s"
    assert why_unread(samples) is None


@pytest.mark.parametrize("gain", [1e-3, 0.1, 1.0])
def test_a_levelled_voice_has_one_level(gain):
    samples = gain * soundfile.read(SAMPLES[0], dtype="float32")[0]
    given = levelled(samples)
    frames = speech_frames(given)
    padded = np.pad(given, (0, max(0, len(frames) * 320 - len(given))))[: len(frames) * 320]
    power = (padded.reshape(-1, 320)[frames] ** 2).mean()
    assert power**0.5 == pytest.approx(VOICE_RMS, rel=0.05)
