"""Emotional prosody by rule: WORLD analysis, bounded changes, resynthesis, then room, noise and gain.

The directions of the cues follow Scherer (2003, Speech Communication 40, table 2) and Juslin & Laukka (2003,
Psychological Bulletin 129, table 11); surprise (wide range, final rise) is not in the latter's table and follows
the descriptions in Scherer. Their sizes are this project's own choice. The vocoder is WORLD (Morise et al. 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assistant.events import EMOTIONS, SAMPLE_RATE, Samples
from model.errors import BadInput

# cue: (lowest, highest ever used), then mean and standard deviation in the order neutral, happy, angry, sad, surprise
_RULES = """
f0_shift_semitones    -6    6     0 0.7      4 0.8      2.8 0.8    -2.5 0.7    4.5 0.8
f0_range_factor       0.4   2.4   1 0.1      1.6 0.15   1.35 0.15  0.5 0.08    1.9 0.2
rate_factor           0.75  1.3   1 0.04     1.12 0.05  1.2 0.05   0.8 0.04    1 0.06
tilt_db_per_octave    -4    4     0 0.4      0.8 0.4    3 0.6      -2.6 0.6    0.3 0.5
energy_db             -9    9     0 1.5      3 2        6 2        -5 2        2 2
energy_range_factor   0.7   1.5   1 0.05     1.1 0.08   1.3 0.1    0.85 0.06   1.1 0.08
final_rise_semitones  -4    6     0 0.5      1 0.8      -1 0.8     -1.5 0.7    5 0.8
jitter_percent        0     3     0.2 0.1    0.3 0.1    1.8 0.4    0.7 0.3     0.3 0.15
breathiness           -0.4  0.4   0 0.05     0 0.05     -0.15 0.08 0.2 0.08    0 0.08
pause_factor          0.6   2.2   1 0.1      0.9 0.1    0.8 0.1    1.7 0.2     1 0.15
formant_factor        0.94  1.06  1 0.01     1.03 0.01  1 0.01     0.98 0.01   1 0.01
"""
_NUMBERS = {name: [float(n) for n in numbers] for name, *numbers in map(str.split, _RULES.strip().splitlines())}
CUES: dict[str, tuple[tuple[float, float], dict[str, tuple[float, float]]]] = {
    name: ((n[0], n[1]), {e: (n[2 + 2 * i], n[3 + 2 * i]) for i, e in enumerate(EMOTIONS)})
    for name, n in _NUMBERS.items()
}
"""The published ranges: each cue of a clip is a normal draw, cut to its bounds; neighbours overlap a little."""


def draw_cues(emotion: str, random: np.random.Generator) -> dict[str, float]:
    """Draw one clip's cues. All deviations from neutral share a factor from 0.7 to 1.25, the emotion's strength."""
    strength = random.uniform(0.7, 1.25)
    cues = {}
    for name, ((low, high), table) in CUES.items():
        neutral, (mean, spread) = table["neutral"][0], table[emotion]
        cues[name] = float(np.clip(neutral + strength * (mean - neutral) + spread * random.normal(), low, high))
    return cues


def draw_speaker(random: np.random.Generator) -> dict[str, float]:
    """Draw a made-up speaker: one change for all emotions of a training sentence, so that voices outnumber engines."""
    return {
        "f0_shift_semitones": float(random.uniform(-4, 4)),
        "f0_range_factor": float(random.uniform(0.5, 1.4)),
        "rate_factor": float(random.uniform(0.85, 1.15)),
        "tilt_db_per_octave": float(random.normal(0, 1.0)),
        "energy_range_factor": float(random.uniform(0.85, 1.15)),
        "formant_factor": float(random.uniform(0.88, 1.14)),
    }


@dataclass(frozen=True, slots=True)
class Voiceprint:
    """WORLD's analysis of a clip, one row per 5 ms: f0 [n] Hz, envelope and aperiodicity [n, bins]."""

    f0: NDArray[np.float64]
    envelope: NDArray[np.float64]
    aperiodicity: NDArray[np.float64]


def _world() -> Any:
    try:
        import pyworld
    except ImportError as error:
        raise BadInput("the WORLD vocoder is missing: pip install 'undertone[train]'") from error
    return pyworld


def analyse(samples: Samples) -> Voiceprint:
    """WORLD analysis of float32 [n] at 16 kHz.

    Raises:
        BadInput: the extra `train` is not installed, or under 0.25 s are voiced.
    """
    world = _world()
    wave = samples.astype(np.float64)
    rough, times = world.dio(wave, SAMPLE_RATE, f0_floor=60, f0_ceil=500)
    f0 = world.stonemask(wave, rough, times, SAMPLE_RATE)
    if np.count_nonzero(f0) < 50:
        raise BadInput("under 0.25 s of voiced speech")
    return Voiceprint(f0, world.cheaptrick(wave, f0, times, SAMPLE_RATE), world.d4c(wave, f0, times, SAMPLE_RATE))


def _warp_time(voice: Voiceprint, rate: float, pause: float) -> Voiceprint:
    """Every 5 ms step lasts 1 / rate; steps 30 dB below the loud ones last `pause` times longer still."""
    level = 10 * np.log10(voice.envelope.mean(axis=1) + 1e-12)
    lengths = np.where(level < np.percentile(level, 95) - 30, pause, 1.0) / rate
    ends = np.cumsum(lengths)
    rows = np.searchsorted(ends, np.arange(0.5, ends[-1])).clip(0, len(ends) - 1)
    return Voiceprint(voice.f0[rows], voice.envelope[rows], voice.aperiodicity[rows])


def _intone(f0: NDArray[np.float64], cues: dict[str, float], random: np.random.Generator) -> NDArray[np.float64]:
    """The pitch contour in semitones: range about its mean, shift, a rise over the last third, jitter."""
    voiced = f0 > 0
    pitch = 12 * np.log2(f0[voiced])
    position = np.flatnonzero(voiced) / len(f0)
    last = np.flatnonzero(voiced)[-1] / len(f0)
    rise = np.clip((position / last - 0.67) / 0.33, 0, 1) ** 1.5
    centre = pitch.mean()
    pitch = centre + cues["f0_shift_semitones"] + cues.get("f0_range_factor", 1) * (pitch - centre)
    pitch += cues.get("final_rise_semitones", 0) * rise
    pitch += cues.get("jitter_percent", 0) / 100 * 12 / np.log(2) * random.normal(size=len(pitch))
    changed = np.zeros_like(f0)
    changed[voiced] = np.clip(2 ** (pitch / 12), 55, 700)
    return changed


def express(voice: Voiceprint, cues: dict[str, float], random: np.random.Generator) -> Samples:
    """Resynthesise the clip with `cues` (see `CUES`; a missing cue changes nothing): float32 at 16 kHz, any peak."""
    voice = _warp_time(voice, cues.get("rate_factor", 1), cues.get("pause_factor", 1))
    bins = voice.envelope.shape[1]
    hertz = np.linspace(0, SAMPLE_RATE / 2, bins)
    level = 10 * np.log10(voice.envelope.mean(axis=1) + 1e-12)
    loud = np.percentile(level, 90)
    gain = (cues.get("energy_range_factor", 1) - 1) * np.maximum(level - loud, -30) + cues.get("energy_db", 0)
    octaves = np.log2(np.clip(hertz, 250, 6000) / 250)
    slope = cues.get("tilt_db_per_octave", 0) * (octaves - 1.5)
    source = np.clip(np.arange(bins) / cues.get("formant_factor", 1), 0, bins - 1)
    low = source.astype(int)
    part = source - low
    log = np.log(voice.envelope + 1e-16)
    log = log[:, low] * (1 - part) + log[:, np.minimum(low + 1, bins - 1)] * part
    envelope = np.exp(log + (gain[:, None] + slope) * np.log(10) / 10)
    breath = cues.get("breathiness", 0) * np.clip(hertz / 4000, 0, 1)
    noisy = np.clip(voice.aperiodicity + breath, 0.001, 1.0)
    f0 = _intone(voice.f0, cues, random)
    wave = _world().synthesize(f0, np.ascontiguousarray(envelope), np.ascontiguousarray(noisy), SAMPLE_RATE)
    return np.asarray(wave, np.float32)


def record(samples: Samples, random: np.random.Generator) -> Samples:
    """Simulate a recording of the clip, float32, never clipped.

    Up to 0.6 s of silence around it, a room in half the cases, a spectral tilt of about 1 dB per octave, noise (white
    to nearly pink) at 15 to 45 dB, any gain.
    """
    lead, tail = (int(random.uniform(0.05, 0.6) * SAMPLE_RATE) for _ in range(2))
    samples = np.pad(samples / np.abs(samples).max(), (lead, tail))
    size = 1 << (len(samples) + SAMPLE_RATE).bit_length()
    spectrum = np.fft.rfft(samples, size)
    octaves = np.log2(np.clip(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 100, 7000) / 800)
    spectrum *= 10 ** (random.normal(0, 1.0) * octaves / 20)
    if random.random() < 0.5:
        count = int(random.uniform(0.15, 0.5) * SAMPLE_RATE)
        echo = random.uniform(0.02, 0.08) * random.normal(size=count) * np.exp(-6.9 * np.linspace(0, 1, count))
        spectrum *= np.fft.rfft(np.concatenate([[1.0], echo]), size)
    heard = np.fft.irfft(spectrum, size)[: len(samples)]
    colour = np.maximum(np.arange(len(heard) // 2 + 1), 20) ** random.uniform(0, 0.7)
    hiss = np.fft.irfft(np.fft.rfft(random.normal(size=len(heard))) / colour, len(heard))
    power = np.mean(heard[lead : len(heard) - tail] ** 2) / 10 ** (random.uniform(15, 45) / 10)
    noisy = heard + hiss * np.sqrt(power / np.mean(hiss**2))
    return np.asarray((noisy / np.abs(noisy).max() * 10 ** (random.uniform(-20, -1) / 20)), np.float32)


def renditions(samples: Samples, source_split: str, random: np.random.Generator) -> dict[str, Samples]:
    """A sentence's clips: "untouched" (the recording itself, neutral) and one per emotion.

    "neutral" also goes through the vocoder, so that its sound is no cue. In the split "train" a made-up speaker
    replaces the voice, the same for all clips but the untouched one; untouched human speech is not changed.
    """
    voice = analyse(samples)
    if source_split == "train":
        voice = analyse(express(voice, draw_speaker(random), random))
    clips = {emotion: record(express(voice, draw_cues(emotion, random), random), random) for emotion in EMOTIONS}
    return clips | {"untouched": samples if source_split == "human" else record(samples, random)}
