"""Sounds without a voice, made at random: what a head learns to give no reading of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.random import Generator
from numpy.typing import NDArray

from assistant.events import SAMPLE_RATE, Samples

Sound = NDArray[np.float64]


def _times(seconds: float) -> Sound:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _slope(rng: Generator, seconds: float, power: float) -> Sound:
    size = int(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 30) ** power
    made: Sound = np.fft.irfft(spectrum, size)
    return made


def _hiss(rng: Generator, seconds: float) -> Sound:
    return _slope(rng, seconds, rng.uniform(-1.2, 0.3))


def _gusts(rng: Generator, seconds: float) -> Sound:
    slow = np.interp(_times(seconds), np.arange(0, seconds + 1, 0.4), rng.random(len(np.arange(0, seconds + 1, 0.4))))
    return _slope(rng, seconds, -1.0) * slow**2


def _hum(rng: Generator, seconds: float) -> Sound:
    base, times = rng.choice([50.0, 60.0, 100.0, 120.0]), _times(seconds)
    tones = sum(np.sin(2 * np.pi * base * k * times + rng.uniform(0, 6)) / k for k in range(1, 8))
    return np.asarray(tones / 2 + 0.05 * rng.standard_normal(len(times)))


def _keys(rng: Generator, seconds: float) -> Sound:
    """A keyboard, or somebody at the door: short knocks."""
    made = 0.01 * _slope(rng, seconds, -0.3)
    decay = np.exp(-_times(0.05) / rng.uniform(0.002, 0.012))
    for start in np.cumsum(rng.uniform(0.06, 0.4, int(seconds / 0.06))):
        at = int(start * SAMPLE_RATE)
        if at + len(decay) < len(made):
            made[at : at + len(decay)] += rng.uniform(0.3, 1) * decay * rng.standard_normal(len(decay))
    return made


def _rain(rng: Generator, seconds: float) -> Sound:
    drops = (rng.random(int(seconds * SAMPLE_RATE)) < rng.uniform(0.002, 0.02)) * rng.standard_normal(
        int(seconds * SAMPLE_RATE)
    )
    return np.convolve(
        drops, np.exp(-_times(0.01) / 0.001) * np.sin(2 * np.pi * rng.uniform(1500, 5000) * _times(0.01))
    )[: len(drops)]


def _sweep(rng: Generator, seconds: float) -> Sound:
    low, high = rng.uniform(80, 600), rng.uniform(900, 6000)
    times = _times(seconds)
    return np.sin(
        2 * np.pi * np.cumsum(low + (high - low) * np.abs(((times * rng.uniform(0.2, 2)) % 2) - 1)) / SAMPLE_RATE
    )


def _beeps(rng: Generator, seconds: float) -> Sound:
    times = _times(seconds)
    tones = sum(np.sin(2 * np.pi * f * times) for f in rng.uniform(350, 2500, rng.integers(1, 3)))
    return np.asarray(tones * ((times * rng.uniform(0.5, 4)) % 1 < rng.uniform(0.2, 0.7)))


def _engine(rng: Generator, seconds: float) -> Sound:
    times = _times(seconds)
    pitch = rng.uniform(25, 110) * (1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.1, 0.6) * times))
    return ((np.cumsum(pitch) / SAMPLE_RATE) % 1 - 0.5) + 0.6 * _slope(rng, seconds, -0.7)


def _note(rng: Generator, hertz: float, seconds: float, kind: int) -> Sound:
    times = _times(seconds)
    if kind == 0:  # a plucked string (Karplus and Strong 1983)
        period = int(SAMPLE_RATE / hertz)
        line, made = rng.uniform(-1, 1, period), np.empty(len(times))
        for start in range(0, len(times), period):
            part = min(period, len(times) - start)
            made[start : start + part] = line[:part]
            line = 0.498 * (line + np.roll(line, 1))
        return made
    if kind == 1:  # a bell
        parts = ((1, 1), (2.0, 0.6), (2.76, 0.5), (5.4, 0.25))
        return np.asarray(sum(a * np.sin(2 * np.pi * hertz * r * times) * np.exp(-times * r * 2) for r, a in parts))
    attack = np.minimum(times / 0.03, 1) * np.minimum((seconds - times) / 0.05, 1)
    vibrato = 0.006 * np.sin(2 * np.pi * 5.5 * times) / 5.5 * hertz if kind == 3 else 0
    tones = sum(np.sin(2 * np.pi * k * hertz * (times + vibrato / hertz)) / k**1.3 for k in range(1, 9))
    return np.asarray(attack * tones)


def _music(rng: Generator, seconds: float) -> Sound:
    """A melody over chords: strings, bells, an organ or bowed strings, at times with a drum."""
    made = np.zeros(int((seconds + 2) * SAMPLE_RATE))
    scale = 220 * 2 ** (rng.integers(-5, 8) / 12) * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
    step, kind = rng.uniform(0.18, 0.6), int(rng.integers(4))
    for start in np.arange(0, seconds, step):
        at = int(start * SAMPLE_RATE)
        notes = [rng.choice(scale)] + ([scale[0] / 2, scale[4] / 2] if rng.random() < 0.5 else [])
        for hertz in notes:
            note = _note(rng, float(hertz), min(step * rng.uniform(0.9, 2), 1.8), kind)
            made[at : at + len(note)] += note[: len(made) - at]
    if rng.random() < 0.5:
        beat = np.exp(-_times(0.2) * 25) * np.sin(2 * np.pi * 70 * _times(0.2) * np.exp(-_times(0.2) * 3))
        for start in np.arange(0, seconds, 2 * step):
            at = int(start * SAMPLE_RATE)
            made[at : at + len(beat)] += 2 * beat
    return made[: int(seconds * SAMPLE_RATE)]


def _drums(rng: Generator, seconds: float) -> Sound:
    made = np.zeros(int((seconds + 1) * SAMPLE_RATE))
    for number, start in enumerate(np.arange(0, seconds, rng.uniform(0.12, 0.35))):
        times = _times(0.25)
        tone = np.sin(2 * np.pi * rng.choice([60, 90, 180]) * times) if number % 2 else rng.standard_normal(len(times))
        hit = tone * np.exp(-times * rng.uniform(12, 40))
        at = int(start * SAMPLE_RATE)
        made[at : at + len(hit)] += hit * rng.uniform(0.3, 1)
    return made[: int(seconds * SAMPLE_RATE)]


SOUNDS: dict[str, Callable[[Generator, float], Sound]] = {
    "hiss": _hiss,
    "gusts": _gusts,
    "hum": _hum,
    "keys": _keys,
    "rain": _rain,
    "sweep": _sweep,
    "beeps": _beeps,
    "engine": _engine,
    "music": _music,
    "drums": _drums,
}
"""Kinds of sounds: each takes a random generator and a duration in seconds."""


def voiceless(kind: str, seed: int, *, level: float = 0.1) -> Samples:
    """A sound of one of the kinds, 1 to 6 s long, its peak at `level`; equal seeds give equal sounds."""
    rng = np.random.default_rng([seed, *kind.encode()])
    made = SOUNDS[kind](rng, float(rng.uniform(1, 6)))
    return np.asarray(made * level / (np.abs(made).max() + 1e-9), np.float32)


def write_sounds(folder: Path, noise: Path | None = None, *, each: int = 24) -> Path:
    """Write `each` sounds of every kind, and 3 s pieces of recorded noise, with a manifest; what is there is kept.

    Args:
        folder: for sounds and manifest.
        noise: folder of recordings of noise at 16 kHz.
        each: sounds of a kind.

    Returns:
        The manifest's path.
    """
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    sounds = {(kind, seed): voiceless(kind, seed) for kind in SOUNDS for seed in range(each)}
    for path in sorted(noise.iterdir()) if noise else []:
        samples = soundfile.read(path, dtype="float32")[0]
        starts = range(0, min(len(samples) - 3 * SAMPLE_RATE, 48 * SAMPLE_RATE), 4 * SAMPLE_RATE)
        sounds |= {(path.stem, at): samples[start : start + 3 * SAMPLE_RATE] for at, start in enumerate(starts)}
    rows = []
    for (kind, number), samples in sounds.items():
        name = f"{kind}-{number}.flac"
        soundfile.write(folder / name, samples, SAMPLE_RATE)
        rows.append({"audio": name, "emotion": "neutral", "speaker": kind, "corpus": "voiceless", "acted": True})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest
