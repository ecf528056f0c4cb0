"""Prosody features per encoder frame, in numpy alone: what Whisper's log-mel normalisation discards.

One row per encoder frame (20 ms). A feature that is only defined on some frames (pitch: the voiced ones) takes its mean
over those on all others. So the mean over all rows is the mean where the feature is defined, silence around the speech
changes nothing, and a reading of the mean row splits over all rows. No feature depends on the recording's gain. Choice
of features: Eyben et al. 2016 (eGeMAPS); pitch and its path finder: Boersma 1993.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from assistant.events import SAMPLE_RATE, Samples
from model.audio.features import encoder_frames

PROSODY_FEATURES = (
    "pitch_semitones",
    "pitch_distance",
    "pitch_distance_squared",
    "pitch_above",
    "pitch_below",
    "pitch_contour",
    "pitch_end",
    "pitch_end_rise",
    "pitch_end_slope",
    "pitch_rises",
    "pitch_movement",
    "pitch_bend",
    "voicing",
    "harmonicity",
    "voiced_onsets",
    "pause",
    "level_below_peak",
    "level_distance",
    "level_movement",
    "level_attack",
    "syllables",
    "spectral_flux",
    "tilt",
    "alpha_ratio",
    "hammarberg",
    "brightness",
    "treble",
    "first_harmonic",
    "mel_shape_1",
    "mel_shape_2",
    "mel_shape_3",
    "mel_shape_4",
)
"""The columns of `prosody_frames`: semitones above 100 Hz, dB, per-frame counts; see the functions below."""

_HOP = 320
_WINDOW = 800
_FFT = 2048
_LOWEST_HERTZ, _HIGHEST_HERTZ = 60.0, 500.0
_CANDIDATES = 5
_TYPICAL_SEMITONES = 8.0  # 159 Hz, between male and female voices: the pitch if no frame is voiced

Column = NDArray[np.float32]


def prosody_frames(samples: Samples) -> NDArray[np.float32]:
    """Prosody features of one utterance.

    Args:
        samples: float32 [n], mono, 16 kHz.

    Returns:
        float32 [encoder_frames(n), len(PROSODY_FEATURES)].
    """
    frames = _windows(samples)
    spectrum = np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), _FFT)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    level = 10 * np.log10(power.sum(1) + 1e-10)
    speech = speech_frames(samples, level)
    first, last = np.flatnonzero(speech)[[0, -1]]
    inside = np.zeros(len(level), bool)
    inside[first : last + 1] = True
    pitch, harmonicity = _track_pitch(power, level)
    voiced = (pitch > 0) & speech
    columns = [
        *_pitch_columns(pitch, voiced),
        _fill(voiced, inside),
        _fill(harmonicity, voiced),
        _fill(voiced & ~np.roll(voiced, 1), inside),
        _fill(~speech, inside),
        *_level_columns(level, speech, voiced, inside),
        *_spectrum_columns(power, pitch, speech, voiced & (level > np.percentile(level[speech], 90) - 18)),
    ]
    return np.stack(columns, 1).astype(np.float32)


def speech_frames(samples: Samples, level: Column | None = None) -> NDArray[np.bool_]:
    """Find the frames with speech: within 35 dB of the loud ones and 6 dB above the quietest.

    Args:
        samples: float32 [n] at 16 kHz.
        level: the frames' level, if it is known.

    Returns:
        bool [frames], at least one of them True.
    """
    if level is None:
        level = 10 * np.log10((_windows(samples) ** 2).sum(1) * (_FFT / 2) + 1e-10)
    loud, floor = np.percentile(level, 95), np.percentile(level, 5)
    floor = min(floor + 6, loud - 10)
    speech: NDArray[np.bool_] = level >= max(loud - 35, floor)
    return speech


def _windows(samples: Samples) -> NDArray[np.float32]:
    """50 ms around the middle of each encoder frame, [n, 800], scaled to a peak of 1."""
    count = encoder_frames(len(samples))
    padded = np.zeros((count - 1) * _HOP + _WINDOW, np.float32)
    room = padded[_WINDOW // 2 : _WINDOW // 2 + len(samples)]
    room[:] = samples[: len(room)]
    padded /= max(float(np.abs(padded).max()), 1e-5)
    return np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]


def _fill(values: NDArray, where: NDArray[np.bool_], missing: float = 0.0) -> Column:
    """`values` where they are defined, elsewhere their mean there."""
    values = values.astype(np.float32)
    return np.where(where, values, values[where].mean() if where.any() else missing).astype(np.float32)


def _track_pitch(power: Column, level: Column) -> tuple[Column, Column]:
    """Pitch in Hz (0: unvoiced) and harmonics-to-noise ratio in dB, each [n] (Boersma 1993, cheapest path)."""
    window = np.hanning(_WINDOW)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, _FFT)) ** 2)
    lags = np.arange(int(SAMPLE_RATE / _HIGHEST_HERTZ), int(SAMPLE_RATE / _LOWEST_HERTZ) + 1)
    wide = np.arange(lags[0] - 1, lags[-1] + 2)
    correlation = np.fft.irfft(power)[:, : wide[-1] + 1]
    correlation = correlation[:, wide] / (correlation[:, :1] + 1e-9) / (own[wide] / own[0])
    left, middle, right = correlation[:, :-2], correlation[:, 1:-1], correlation[:, 2:]
    curve = np.maximum(2 * middle - left - right, 1e-9)
    bend = np.clip((right - left) / (2 * curve), -0.5, 0.5)
    height = np.clip(middle + curve * bend**2 / 2, 0, 0.999)
    is_peak = (middle >= left) & (middle > right)
    hertz = SAMPLE_RATE / (lags + bend)
    strength = np.where(is_peak, height + 0.03 * np.log2(hertz / _LOWEST_HERTZ), -1.0)
    best = np.argsort(-strength, 1)[:, :_CANDIDATES]
    rows = np.arange(len(level))[:, None]
    quiet = np.clip((np.percentile(level, 95) - level - 20) / 20, 0, 1)[:, None]
    costs = np.concatenate([0.9 - strength[rows, best] + 0.4 * quiet, np.full((len(level), 1), 0.45)], 1)
    octaves = np.concatenate([np.log2(hertz[rows, best]), np.zeros((len(level), 1))], 1)
    path = _cheapest_path(costs, octaves)
    rows, voiced = rows[:, 0], path < _CANDIDATES
    chosen = height[rows, best[rows, np.minimum(path, _CANDIDATES - 1)]]
    ratio = 10 * np.log10(np.clip(chosen, 0.05, 0.999) / (1 - np.clip(chosen, 0.05, 0.999)))
    return np.where(voiced, 2 ** octaves[rows, path], 0).astype(np.float32), ratio.astype(np.float32)


def _cheapest_path(costs: NDArray, octaves: NDArray) -> NDArray[np.int64]:
    """Viterbi: the candidate of every row (the last one is "unvoiced"); jumps cost 0.7 an octave, voicing 0.12."""
    count, width = costs.shape
    total, back = costs[0], np.zeros((count, width), np.int64)
    for row in range(1, count):
        jump = 0.7 * np.abs(octaves[row][None] - octaves[row - 1][:, None])
        jump[-1, :] = jump[:, -1] = 0.12
        jump[-1, -1] = 0
        reach = total[:, None] + jump
        back[row] = reach.argmin(0)
        total = reach.min(0) + costs[row]
    path = np.empty(count, np.int64)
    path[-1] = total.argmin()
    for row in range(count - 1, 0, -1):
        path[row - 1] = back[row, path[row]]
    return path


def _pitch_columns(pitch: Column, voiced: NDArray[np.bool_]) -> list[Column]:
    """Pitch in semitones above 100 Hz, and its contour relative to the utterance's median."""
    semitones = 12 * np.log2(np.maximum(pitch, 1) / 100)
    median = float(np.median(semitones[voiced])) if voiced.any() else _TYPICAL_SEMITONES
    off = np.where(voiced, np.clip(semitones - median, -12, 12), 0)
    order = np.cumsum(voiced) / max(int(voiced.sum()), 1)  # 0 to 1 over the voiced frames
    step = np.diff(off, prepend=off[:1])
    both = voiced & np.roll(voiced, 1)
    both[0] = False
    bend = np.diff(step, prepend=step[:1])
    three = both & np.roll(both, 1)
    end, before = voiced & (order > 0.85), voiced & (order > 0.5) & (order <= 0.8)
    late = voiced & (order > 0.6)
    rise = _fill(off, end) - _fill(off, before).mean()
    return [
        _fill(semitones, voiced, _TYPICAL_SEMITONES),
        _fill(np.abs(off), voiced),
        _fill(off**2 / 10, voiced),
        _fill(np.maximum(off - 1, 0), voiced),
        _fill(np.maximum(-off - 1, 0), voiced),
        _fill(off * (order - 0.5), voiced),
        _fill(off, end),
        rise,
        _fill(np.where(late, off * (order - 0.8) / 0.0133, 0), late),
        _fill(np.clip(step, 0, 4), both),
        _fill(np.minimum(np.abs(step), 4), both),
        _fill(np.minimum(np.abs(bend), 4), three),
    ]


def _level_columns(
    level: Column, speech: NDArray[np.bool_], voiced: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> list[Column]:
    """Level in dB relative to the utterance's own: depth, spread, movement, attacks, and syllable peaks."""
    loud = np.percentile(level[speech], 95)
    below = np.clip(loud - level, 0, 40)
    step = np.diff(below, prepend=below[:1])
    smooth = np.convolve(np.pad(below, 2, mode="edge"), [0.1, 0.2, 0.4, 0.2, 0.1], "valid")
    around = np.lib.stride_tricks.sliding_window_view(np.pad(smooth, 4, mode="edge"), 9)
    peak = (smooth <= around.min(1)) & voiced & (around.max(1) - smooth > 3)
    return [
        _fill(below, speech),
        _fill(np.abs(below - np.median(below[speech])), speech),
        _fill(np.abs(step), inside),
        _fill(np.maximum(-step, 0) ** 2 / 10, inside),
        _fill(peak, inside),
    ]


def _spectrum_columns(power: Column, pitch: Column, speech: NDArray[np.bool_], loud: NDArray[np.bool_]) -> list[Column]:
    """The spectrum's movement over speech, and its balance over the loud voiced frames, in dB."""
    hertz = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    edges = 700 * (10 ** (np.linspace(np.log10(1 + 60 / 700), np.log10(1 + 7600 / 700), 25)) - 1)
    bands = 10 * np.log10(np.add.reduceat(power, np.searchsorted(hertz, edges), 1)[:, :-1] + 1e-6)
    bands = np.maximum(bands, bands.max() - 60)
    flux = np.abs(np.diff(bands, axis=0, prepend=bands[:1])).mean(1)
    centre = np.sqrt(edges[1:] * edges[:-1])
    octaves = np.log2(centre / 1000)
    octaves -= octaves.mean()
    shape = np.cos(np.pi * np.outer(np.arange(24) + 0.5, np.arange(1, 5)) / 24) / 12

    def energy(low: float, high: float) -> Column:
        return 10 * np.log10(power[:, (hertz >= low) & (hertz < high)].sum(1) + 1e-6)

    def highest(low: float, high: float) -> Column:
        return 10 * np.log10(power[:, (hertz >= low) & (hertz < high)].max(1) + 1e-6)

    rows = np.arange(len(power))
    at = np.rint(np.maximum(pitch, 60) / hertz[1]).astype(int)
    harmonics = 10 * np.log10((power[rows, at] + 1e-6) / (power[rows, 2 * at] + 1e-6))
    return [
        _fill(flux, speech),
        _fill(bands @ octaves / (octaves @ octaves), loud),
        _fill(energy(1000, 5000) - energy(60, 1000), loud),
        _fill(highest(0, 2000) - highest(2000, 5000), loud),
        _fill(12 * np.log2((power @ hertz / (power.sum(1) + 1e-6) + 100) / 1000), loud),
        _fill(energy(4000, 8000) - energy(1000, 4000), loud),
        _fill(np.clip(harmonics, -20, 20), loud),
        *(_fill(column, loud) for column in (bands @ shape).T),
    ]
