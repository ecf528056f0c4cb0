"""Recorded speech in made noise, labelled: which utterances are found, and what becomes a turn that is none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import soundfile

from assistant.audio.endpointing import Endpointer, SileroDetector
from assistant.events import SAMPLE_RATE, Samples, Utterance
from assistant.messages import SpeechEnded
from model.checkpoints.loader import RESOURCES

GAP_SECONDS, ALONE_SECONDS = 2.5, 60.0
SPEECH_DB = -23.0  # of each recording, over the whole of it


def decibels(samples: Samples) -> float:
    return 10 * float(np.log10(np.mean(np.square(samples)) + 1e-12))


def at_level(samples: np.ndarray, level: float) -> Samples:
    return (samples * 10 ** ((level - decibels(samples)) / 20)).astype(np.float32)


def pink(length: int) -> np.ndarray:
    spectrum = np.fft.rfft(np.random.default_rng(3).standard_normal(length))
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 20)), length)


def fan(length: int) -> np.ndarray:
    """A hum at 100 Hz and its harmonics, and a rush that comes and goes with the blades."""
    t = np.arange(length) / SAMPLE_RATE
    hum = sum(np.sin(2 * np.pi * 100 * n * t + n) / n for n in range(1, 9))
    return hum + 0.5 * at_level(pink(length), 0.0) * (1 + 0.3 * np.sin(2 * np.pi * 7 * t))


def music(length: int) -> np.ndarray:
    """Plucked chords, a melody that slides, and a drum: a progression of four bars at 100 beats a minute."""
    rng, tick, out = np.random.default_rng(5), round(0.6 * SAMPLE_RATE), np.zeros(length + 4 * SAMPLE_RATE)
    t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    chords = [(220.0, 261.6, 329.6), (174.6, 220.0, 261.6), (261.6, 329.6, 392.0), (196.0, 246.9, 293.7)]
    for number, at in enumerate(range(0, length, tick)):
        chord = chords[number // 4 % 4]
        for note in chord:
            out[at : at + len(t)] += sum(np.sin(2 * np.pi * note * n * t) / n for n in range(1, 7)) * np.exp(-3 * t) / 3
        melody = chord[int(rng.integers(3))] * 2
        slide = melody * (1 + 0.01 * np.sin(2 * np.pi * 5 * t))
        out[at : at + tick] += (0.5 * np.sin(2 * np.pi * np.cumsum(slide) / SAMPLE_RATE) * np.minimum(1, 4 * t))[:tick]
        out[at : at + len(t)] += rng.standard_normal(len(t)) * np.exp(-40 * t)
    return out[:length]


def clicks(length: int) -> np.ndarray:
    """Five key strokes a second: a burst of 4 ms each, and its ring."""
    rng, out = np.random.default_rng(7), np.zeros(length + SAMPLE_RATE)
    t = np.arange(SAMPLE_RATE // 20) / SAMPLE_RATE
    for at in rng.integers(0, length, 5 * length // SAMPLE_RATE):
        burst = rng.standard_normal(len(t)) * np.exp(-t / 0.002) + 0.3 * np.sin(2 * np.pi * 2400 * t) * np.exp(
            -t / 0.01
        )
        out[at : at + len(t)] += rng.uniform(0.3, 1.0) * burst
    return out[:length]


@cache
def speech() -> tuple[Samples, tuple[tuple[float, float], ...]]:
    """The recordings with silence between, and where each one's words begin and end, in seconds."""
    parts, spans, at = [np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)], [], GAP_SECONDS
    for file in sorted((RESOURCES / "samples").glob("*.flac")):
        samples = at_level(soundfile.read(file, dtype="float32")[0], SPEECH_DB)
        voiced = np.flatnonzero(np.abs(samples) > 0.05 * np.abs(samples).max())
        spans.append((at + voiced[0] / SAMPLE_RATE, at + voiced[-1] / SAMPLE_RATE))
        parts += [samples, np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)]
        at += len(samples) / SAMPLE_RATE + GAP_SECONDS
    return np.concatenate(parts), tuple(spans)


def heard(samples: Samples) -> list[Utterance]:
    endpointer = Endpointer(SileroDetector())
    blocks = (samples[at : at + 320] for at in range(0, len(samples), 320))
    return [one.utterance for block in blocks for one in endpointer.feed(block) if isinstance(one, SpeechEnded)]


@pytest.mark.parametrize(
    ("name", "noise", "snr", "least_recall", "most_false"),
    [
        ("quiet room", pink, 40, 1.0, 0.0),
        pytest.param("pink noise", pink, 20, 1.0, 0.0, marks=pytest.mark.real),
        pytest.param("pink noise", pink, 10, 1.0, 0.0, marks=pytest.mark.real),
        ("pink noise", pink, 5, 0.9, 0.0),
        pytest.param("hum and fan", fan, 20, 1.0, 0.0, marks=pytest.mark.real),
        pytest.param("hum and fan", fan, 10, 1.0, 0.0, marks=pytest.mark.real),
        ("hum and fan", fan, 5, 0.9, 0.0),
        pytest.param("music", music, 20, 1.0, 0.0, marks=pytest.mark.real),
        pytest.param("music", music, 10, 1.0, 0.0, marks=pytest.mark.real),
        ("music", music, 5, 0.9, 0.0),
        pytest.param("clicks", clicks, 20, 1.0, 0.0, marks=pytest.mark.real),
        pytest.param("clicks", clicks, 10, 1.0, 0.0, marks=pytest.mark.real),
        ("clicks", clicks, 5, 0.9, 0.0),
    ],
)
def test_speech_is_found_in_noise_and_noise_is_no_turn(
    name: str,
    noise: Callable[[int], np.ndarray],
    snr: float,
    least_recall: float,
    most_false: float,
    figure: Callable[[str], None],
) -> None:
    """A recording is found where the utterances cover nine tenths of it; a false turn touches none of them."""
    said, spans = speech()
    alone = np.zeros(round(ALONE_SECONDS * SAMPLE_RATE), np.float32)  # nobody says anything
    mixed = np.concatenate([said, alone])
    mixed = np.clip(mixed + at_level(noise(len(mixed)), SPEECH_DB - snr), -1, 1).astype(np.float32)
    found = heard(mixed)
    covered = [
        sum(max(0.0, min(one.ended, end) - max(one.started, start)) for one in found) / (end - start)
        for start, end in spans
    ]
    recall = float(np.mean(np.array(covered) >= 0.9))
    touching = [any(one.started < end and start < one.ended for start, end in spans) for one in found]
    false = (len(found) - sum(touching)) / (len(mixed) / SAMPLE_RATE - sum(end - start for start, end in spans)) * 60
    figure(
        f"{name}, {snr} dB: recall {recall:.2f} of {len(spans)}, {false:.1f} false turns a minute, "
        f"{sum(touching)} utterances"
    )
    assert recall >= least_recall
    assert false <= most_false
