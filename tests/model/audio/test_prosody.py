"""Prosody features: what they must see, and what they must not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.audio.features import encoder_frames
from model.audio.prosody import PROSODY_FEATURES, prosody_frames

RATE = 16_000


def voice(pitch_hertz, seconds=1.5, harmonics=12, tilt=1.0, seed=0):
    """A buzz with the pitch contour `pitch_hertz` (scalar or [n]), syllables at 4 Hz, a little noise."""
    count = int(seconds * RATE)
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(pitch_hertz, count)) / RATE
    wave = sum(np.sin(k * phase) / k**tilt for k in range(1, harmonics))
    syllables = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * np.arange(count) / RATE)
    noise = np.random.default_rng(seed).normal(size=count)
    return (0.1 * wave * syllables + 0.0005 * noise).astype(np.float32)


def mean(samples):
    return dict(zip(PROSODY_FEATURES, prosody_frames(samples).mean(0), strict=True))


@pytest.mark.parametrize("hertz", [75, 110, 160, 230, 380])
def test_pitch_is_found(hertz):
    assert mean(voice(hertz))["pitch_semitones"] == pytest.approx(12 * np.log2(hertz / 100), abs=0.3)


def test_pitch_survives_noise():
    noisy = voice(180) + np.random.default_rng(1).normal(0, 0.02, int(1.5 * RATE)).astype(np.float32)
    assert mean(noisy)["pitch_semitones"] == pytest.approx(12 * np.log2(1.8), abs=0.5)


def test_a_final_rise_and_a_wide_range_are_seen():
    level = voice(150)
    rising = voice(150 * 2 ** (np.clip(np.linspace(-2, 1, int(1.5 * RATE)), 0, 1) * 6 / 12))
    assert mean(rising)["pitch_end_rise"] > mean(level)["pitch_end_rise"] + 2
    assert mean(rising)["pitch_distance"] > mean(level)["pitch_distance"] + 0.5


def test_a_brighter_voice_has_a_higher_tilt():
    assert mean(voice(150, harmonics=50, tilt=0.5))["tilt"] > mean(voice(150, harmonics=50, tilt=1.5))["tilt"] + 1


def test_faster_syllables_are_counted():
    slow, fast = voice(150, 2.0), voice(150, 2.0)[::2].repeat(1)
    assert mean(fast)["syllables"] > 1.5 * mean(slow)["syllables"]


@given(gain_db=st.floats(-40, 0), lead=st.integers(0, 12_800), tail=st.integers(0, 12_800))
@settings(max_examples=25, deadline=None)
def test_neither_gain_nor_silence_around_it_changes_the_mean(gain_db, lead, tail):
    samples = voice(140, 1.28)
    quiet = 1e-4 * np.random.default_rng(2).normal(size=lead + tail).astype(np.float32)
    framed = np.concatenate([quiet[:lead], samples, quiet[lead:]])
    base = prosody_frames(samples).mean(0)
    moved = prosody_frames(framed * np.float32(10 ** (gain_db / 20))).mean(0)
    # shifted frame grids sample the same voice elsewhere
    assert np.abs(moved - base).max() < 0.12 * (1 + np.abs(base).max())
    pitch = PROSODY_FEATURES.index("pitch_semitones")
    assert moved[pitch] == pytest.approx(base[pitch], abs=0.3)


@given(
    arrays(
        np.float32,
        st.integers(1, 8_000),
        elements=st.floats(-1, 1, width=32, allow_nan=False),
        fill=st.just(np.float32(0)),
    )
)
@settings(max_examples=60, deadline=None)
def test_any_samples_give_finite_rows_one_per_encoder_frame(samples):
    rows = prosody_frames(samples)
    assert rows.shape == (encoder_frames(len(samples)), len(PROSODY_FEATURES))
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
