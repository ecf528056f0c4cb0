"""Ten microphones, rooms and codecs that no training draws from: a head that only tells channels apart shows here.

Each is a fixed chain, made otherwise than the draws of `training.emotion.channels`: rooms by image sources, noise of
fans, cars and voices, codecs of telephones and the web.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soxr
from numpy.random import Generator

from assistant.events import SAMPLE_RATE, Samples
from model.audio.voice import VOICE_RMS, levelled
from training.emotion.channels import convolved, shaped, through_file

Chain = Callable[[Samples, Generator], Samples]

_SOUND_METRES_A_SECOND = 343.0


def shoebox(size: tuple[float, float, float], distance: float, absorption: float) -> Samples:
    """The impulse response of a box-shaped room by image sources (Allen and Berkley 1979), at most 0.6 s.

    Args:
        size: metres; the speaker stands near the middle.
        distance: metres to the microphone, at one height.
        absorption: of the walls' energy, at each reflection.
    """
    box = np.array(size)
    speaker = box * (0.43, 0.52, 0.5)
    microphone = speaker + np.array([distance, 0.31 * distance, 0.07]) / np.hypot(1, 0.31)
    microphone = np.clip(microphone, 0.2, box - 0.2)
    longest = 0.6 * _SOUND_METRES_A_SECOND
    counts = np.ceil(longest / (2 * box)).astype(int).clip(max=12)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in counts), indexing="ij"), -1).reshape(-1, 3)
    response = np.zeros(int(0.6 * SAMPLE_RATE), np.float32)
    for mirror in np.ndindex(2, 2, 2):
        flip = np.array(mirror)
        place = (1 - 2 * flip) * speaker + 2 * grid * box
        metres = np.maximum(np.linalg.norm(place - microphone, axis=1), 0.2)
        bounces = np.abs(grid - flip).sum(1) + np.abs(grid).sum(1)
        at = np.rint(metres / _SOUND_METRES_A_SECOND * SAMPLE_RATE).astype(int)
        heard = at < len(response)
        np.add.at(response, at[heard], ((1 - absorption) ** (bounces[heard] / 2) / metres[heard]).astype(np.float32))
    return response[int(np.argmax(response > 0)) :]


def _slope(rng: Generator, size: int, power: float, low: float = 20.0) -> Samples:
    """Noise whose spectrum falls with frequency to `power`, RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), low) ** power
    made = np.fft.irfft(spectrum, size)
    return np.asarray(made / made.std(), np.float32)


def _voices(rng: Generator, size: int) -> Samples:
    """Noise with the spectrum and the syllables of many voices, RMS 1."""
    hertz = np.fft.rfftfreq(1024, 1 / SAMPLE_RATE)
    gain = 1 / (1 + (hertz / 500) ** 2) * (hertz > 80)
    made = shaped(rng.standard_normal(size).astype(np.float32), gain)
    times = np.arange(size) / SAMPLE_RATE
    beat = 1 + 0.4 * np.sin(2 * np.pi * 4.1 * times + rng.uniform(0, 6)) * np.sin(2 * np.pi * 0.7 * times)
    return np.asarray(made * beat / (made * beat).std(), np.float32)


def _with(samples: Samples, noise: Samples, decibels: float) -> Samples:
    return samples + noise * VOICE_RMS * 10 ** (-decibels / 20)


def _band(samples: Samples, low: float, high: float, resonance: float = 0.0, at: float = 2000.0) -> Samples:
    hertz = np.maximum(np.fft.rfftfreq(2048, 1 / SAMPLE_RATE), 10)
    gain = 1 / np.sqrt((1 + (low / hertz) ** 6) * (1 + (hertz / high) ** 8))
    return shaped(samples, gain * 10 ** (resonance * np.exp(-((np.log2(hertz / at) / 0.3) ** 2)) / 20))


def _squeezed(samples: Samples) -> Samples:
    """A compressor: what is 10 dB louder comes out 4 dB louder, with 5 ms to attack and 100 ms to let go."""
    step = 80
    blocks = np.abs(np.pad(samples, (0, -len(samples) % step))).reshape(-1, step).max(1)
    level, held = np.empty_like(blocks), 0.0
    for number, peak in enumerate(blocks):
        held = max(peak, held * 0.95)
        level[number] = held
    gain = (np.maximum(level, 1e-3) / VOICE_RMS) ** -0.6
    return np.asarray(samples * np.interp(np.arange(len(samples)), np.arange(len(gain)) * step, gain), np.float32)


def _gsm(samples: Samples) -> Samples:
    return through_file(samples, 8_000, "WAV", "GSM610")


def _opus(samples: Samples) -> Samples:
    return through_file(samples, 16_000, "OGG", "OPUS", compression_level=1.0)


def _laptop(samples: Samples, rng: Generator) -> Samples:
    fan = _slope(rng, len(samples), -0.8) + 0.3 * np.sin(2 * np.pi * 233 * np.arange(len(samples)) / SAMPLE_RATE)
    far = levelled(convolved(samples, _OFFICE)[: len(samples)])
    return _band(_with(far, fan.astype(np.float32), 22), 150, 7000, 9, 3100)


def _slow_table(samples: Samples, rng: Generator) -> Samples:
    far = levelled(convolved(samples, _KITCHEN)[: len(samples)])
    return _with(far, _voices(rng, len(samples)), 18)


def _narrow(samples: Samples, rng: Generator) -> Samples:
    low = soxr.resample(soxr.resample(samples, SAMPLE_RATE, 11_025), 11_025, SAMPLE_RATE)
    size = min(len(low), len(samples))
    return np.asarray(np.round(low[:size] * 200) / 200 + 1e-4 * rng.standard_normal(size), np.float32)


_OFFICE = shoebox((4.2, 3.4, 2.6), 0.7, 0.35)
_KITCHEN = shoebox((5.1, 3.9, 2.5), 2.0, 0.22)
_HALL = shoebox((14.0, 9.0, 5.0), 3.0, 0.25)

CHANNELS: dict[str, Chain] = {
    "telephone": lambda x, rng: through_file(_band(x, 300, 3300), 8_000, "WAV", "ALAW"),
    "mobile phone": lambda x, rng: _gsm(_with(x, _slope(rng, len(x), -0.5), 25)),
    "web call": lambda x, rng: _opus(_squeezed(x)),
    "laptop": _laptop,
    "kitchen table": _slow_table,
    "hall": lambda x, rng: levelled(convolved(x, _HALL)[: len(x)]),
    "car": lambda x, rng: _band(_with(x, _slope(rng, len(x), -1.6), 5), 90, 6000, 5, 900),
    "cheap headset": lambda x, rng: np.tanh(_band(x, 220, 5200, 10, 2600) / (3 * VOICE_RMS)).astype(np.float32),
    "cafe": lambda x, rng: _with(x, _voices(rng, len(x)), 12),
    "voice recorder": _narrow,
}


def through(name: str, samples: Samples, seed: int) -> Samples:
    """A levelled clip through one of `CHANNELS`, levelled again."""
    return levelled(CHANNELS[name](samples, np.random.default_rng(seed)))
