"""Rooms, microphones, noise, codecs and voices drawn at random, so that a channel says nothing about an emotion.

A draw belongs to a speaker and a number, not to a clip: all clips of the speaker go through the same room, microphone
and codec, the acted and the calm ones alike, and their voice is shifted alike. Such a draw is a speaker of its own
for whatever compares clips with the speaker's neutral ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from assistant.events import SAMPLE_RATE, Samples
from model.audio.prosody import speech_frames
from model.audio.voice import VOICE_RMS, levelled

_HOP = 320


@dataclass(frozen=True, slots=True)
class Draw:
    """One voice, room, microphone, noise and codec.

    Attributes:
        speed: of playback: above 1, voice and formants are higher and the tempo is faster.
        pitch, formants, tempo: factors of the vocoder, all 1: no vocoder.
        room: an impulse response, or None.
        microphone: gain per frequency, linear, over `rfftfreq` of 1024 samples, or None.
        noise: samples to be repeated, or None; `noise_db`: how far they lie below the speech.
        codec: "none", "mp3", "vorbis", "ulaw" or "adpcm".
        clip: the level at which the microphone clips, relative to the speech's RMS; 0: never.
    """

    speed: float = 1.0
    pitch: float = 1.0
    formants: float = 1.0
    tempo: float = 1.0
    room: Samples | None = None
    microphone: Samples | None = None
    noise: Samples | None = None
    noise_db: float = 60.0
    codec: str = "none"
    clip: float = 0.0


def draw(rng: Generator, noises: Sequence[Samples], *, vocoder: bool = False) -> Draw:
    """A random draw.

    Args:
        rng: of everything that is drawn.
        noises: recordings of noise at 16 kHz, any length; may be empty: then noise is made.
        vocoder: change pitch, formants and tempo apart from each other, which is slow.
    """
    voice = {"speed": float(rng.uniform(0.9, 1.12))}
    if vocoder:
        voice = {
            "pitch": float(2 ** rng.uniform(-0.3, 0.3)),
            "formants": float(2 ** rng.uniform(-0.18, 0.18)),
            "tempo": float(2 ** rng.uniform(-0.15, 0.15)),
        }
    noisy = rng.random() < 0.7
    return Draw(
        **voice,
        room=_room(rng) if rng.random() < 0.6 else None,
        microphone=_microphone(rng) if rng.random() < 0.8 else None,
        noise=_noise(rng, noises) if noisy else None,
        noise_db=float(rng.uniform(8, 40)),
        codec=str(rng.choice(["none", "none", "mp3", "vorbis", "ulaw", "adpcm"])),
        clip=float(rng.uniform(3, 8)) if rng.random() < 0.15 else 0.0,
    )


def trimmed(samples: Samples, *, keep: float = 0.25) -> Samples:
    """The clip from `keep` seconds before its first to `keep` seconds after its last frame of speech."""
    at = np.flatnonzero(speech_frames(samples))
    margin = int(keep * SAMPLE_RATE)
    return samples[max(0, at[0] * _HOP - margin) : (at[-1] + 1) * _HOP + margin]


def apply(draw: Draw, samples: Samples, rng: Generator) -> Samples:
    """A levelled clip as the draw's speaker says it into the draw's microphone; `rng`: where the noise begins."""
    if draw.speed != 1:
        samples = soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE / draw.speed)
    if (draw.pitch, draw.formants, draw.tempo) != (1, 1, 1):
        samples = vocoded(samples, draw.pitch, draw.formants, draw.tempo)
    if draw.room is not None:
        samples = convolved(samples, draw.room)[: len(samples) + SAMPLE_RATE // 5]
    samples = levelled(samples)
    if draw.noise is not None:
        start = int(rng.integers(len(draw.noise)))
        noise = np.resize(np.roll(draw.noise, -start), len(samples))
        samples = samples + noise * VOICE_RMS * 10 ** (-draw.noise_db / 20)
    if draw.microphone is not None:
        samples = shaped(samples, draw.microphone)
    if draw.clip:
        samples = np.clip(samples, -draw.clip * VOICE_RMS, draw.clip * VOICE_RMS)
    return levelled(CODECS[draw.codec](samples))


def convolved(samples: Samples, response: Samples) -> Samples:
    """The full convolution of a clip and an impulse response, float32."""
    size = len(samples) + len(response) - 1
    fast = 1 << (size - 1).bit_length()
    product = np.fft.rfft(samples, fast) * np.fft.rfft(response, fast)
    return np.asarray(np.fft.irfft(product, fast)[:size], np.float32)


def shaped(samples: Samples, gain: NDArray[np.floating]) -> Samples:
    """The clip through a filter of linear phase without delay; `gain` is linear over evenly spaced frequencies."""
    size = len(samples)
    spectrum = np.fft.rfft(samples)
    places = np.linspace(0, 1, len(spectrum))
    spectrum *= np.interp(places, np.linspace(0, 1, len(gain)), gain)
    return np.asarray(np.fft.irfft(spectrum, size), np.float32)


def vocoded(samples: Samples, pitch: float, formants: float, tempo: float) -> Samples:
    """The clip with its pitch, formants and tempo multiplied, by the WORLD vocoder (Morise et al. 2016)."""
    import pyworld

    sound = samples.astype(np.float64)
    f0, times = pyworld.dio(sound, SAMPLE_RATE)
    f0 = pyworld.stonemask(sound, f0, times, SAMPLE_RATE)
    envelope = pyworld.cheaptrick(sound, f0, times, SAMPLE_RATE)
    noise = pyworld.d4c(sound, f0, times, SAMPLE_RATE)
    bins = np.arange(envelope.shape[1])
    source = np.minimum(bins / formants, bins[-1])
    low = source.astype(int)
    share = source - low
    high = np.minimum(low + 1, bins[-1])
    envelope = np.ascontiguousarray(envelope[:, low] * (1 - share) + envelope[:, high] * share)
    made = pyworld.synthesize(f0 * pitch, envelope, noise, SAMPLE_RATE, 5.0 / tempo)
    return np.asarray(made, np.float32)


def _room(rng: Generator) -> Samples:
    """Noise that dies away behind a direct sound: 0.1 to 0.9 s for 60 dB, the direct sound 12 to -3 dB above it."""
    seconds = rng.uniform(0.1, 0.9)
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    tail = np.convolve(tail, [0.3, 0.5, 0.2], "same") if rng.random() < 0.5 else tail
    tail[: int(rng.uniform(0.001, 0.012) * SAMPLE_RATE)] = 0
    tail *= 10 ** (-rng.uniform(-3, 12) / 20) / np.sqrt((tail**2).sum() + 1e-9)
    tail[0] = 1
    return tail.astype(np.float32)


def _microphone(rng: Generator) -> Samples:
    """A tilt of up to 4 dB an octave, three broad bumps of up to 8 dB, and at times a band's lower and upper end."""
    hertz = np.fft.rfftfreq(1024, 1 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(hertz, 30) / 1000)
    decibels = rng.uniform(-4, 4) * octaves.clip(-4, 3)
    for _ in range(3):
        middle, width = np.log2(rng.uniform(150, 6000) / 1000), rng.uniform(0.2, 1.0)
        decibels = decibels + rng.uniform(-8, 8) * np.exp(-(((octaves - middle) / width) ** 2))
    if rng.random() < 0.5:
        low = rng.uniform(60, 350)
        decibels = decibels - 12 * np.maximum(np.log2(low / np.maximum(hertz, 30)), 0)
    if rng.random() < 0.5:
        high = rng.uniform(3200, 7500)
        decibels = decibels - 48 * np.maximum(np.log2(np.maximum(hertz, 30) / high), 0)
    return np.asarray(10 ** (np.clip(decibels, -60, 30) / 20), np.float32)


def _noise(rng: Generator, noises: Sequence[Samples]) -> Samples:
    """Four seconds of a recording, or of noise with a random slope and hum; its RMS is 1."""
    size = 4 * SAMPLE_RATE
    if noises and rng.random() < 0.5:
        whole = noises[int(rng.integers(len(noises)))]
        start = int(rng.integers(max(1, len(whole) - size)))
        made = np.resize(whole[start : start + size], size).astype(np.float64)
    else:
        spectrum = np.fft.rfft(rng.standard_normal(size))
        spectrum *= np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 40) ** rng.uniform(-1.2, 0.2)
        made = np.fft.irfft(spectrum, size)
        if rng.random() < 0.3:
            hum = np.sin(2 * np.pi * rng.choice([50, 60, 100, 120]) * np.arange(size) / SAMPLE_RATE)
            made = made / made.std() + rng.uniform(0.2, 1.5) * hum
    return np.asarray(made / (made.std() + 1e-9), np.float32)


def through_file(samples: Samples, rate: int, container: str, subtype: str, **how: float) -> Samples:
    """The clip written to a sound file at `rate` and read again: what the codec leaves of it."""
    room = 0.9 / max(0.9, float(np.abs(samples).max()))
    given = soxr.resample(samples * room, SAMPLE_RATE, rate) if rate != SAMPLE_RATE else samples * room
    buffer = io.BytesIO()
    soundfile.write(buffer, given, rate, format=container, subtype=subtype, **how)
    buffer.seek(0)
    read, _ = soundfile.read(buffer, dtype="float32")
    read = soxr.resample(read, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else read
    return np.asarray(read / room, np.float32)


CODECS: dict[str, Callable[[Samples], Samples]] = {
    "none": lambda samples: samples,
    "mp3": lambda samples: through_file(samples, 16_000, "MP3", "MPEG_LAYER_III", compression_level=0.9),
    "vorbis": lambda samples: through_file(samples, 16_000, "OGG", "VORBIS", compression_level=0.9),
    "ulaw": lambda samples: through_file(samples, 8_000, "WAV", "ULAW"),
    "adpcm": lambda samples: through_file(samples, 16_000, "WAV", "IMA_ADPCM"),
}
