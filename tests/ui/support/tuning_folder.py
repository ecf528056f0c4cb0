"""A folder of recordings to train on: one espeak voice in five emotions, plus ten faulty files.

Run as a program (`python -m tests.ui.support.tuning_folder FOLDER`), so that espeak-ng stays out of the test process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile

from assistant.events import EMOTIONS
from training.synthesis.corpus import Job, make_clips
from training.synthesis.voices import Source, sentence

VOICE = "en-us+m3"
RATE = 16_000
PLANTED = {
    "sad/unreadable.wav": "unreadable",
    "sad/cut-short.wav": "unreadable",
    "happy/too-short.wav": "too short",
    "happy/too-long.wav": "too long",
    "angry/clipped.wav": "clipped",
    "angry/silent.wav": "silent",
    "neutral/noisy.wav": "noisy",
    "neutral/again.wav": "duplicate",
    "neutral/no-words.wav": "no transcript",
    "joy/unknown.wav": "unknown emotion",
}
"""What is wrong with each, in the word that the check has for it."""


def make(folder: Path, sentences: int) -> None:
    """Write `sentences` sentences in the five emotions, and the ten faulty files."""
    clean = []
    for number in range(sentences):
        text = sentence(np.random.default_rng([11, number]))
        work = folder.parent / "work"
        (work / "audio").mkdir(parents=True, exist_ok=True)
        source = Source(f"speaker-{number:02d}", "espeak", VOICE, "test", text)
        for row in make_clips(Job(source, work, work, 11)):
            if row["rendition"] in EMOTIONS:
                samples, _ = soundfile.read(work / row["audio"], dtype="float32")
                _write(folder / row["emotion"] / f"{number:02d}.wav", samples, text)
                clean.append((row["emotion"], samples, text))
    of = {emotion: samples for emotion, samples, _ in clean}
    text = clean[-1][2]
    random = np.random.default_rng(0)
    neutral = of["neutral"]
    noise = random.normal(0, np.sqrt(np.mean(neutral**2)), len(neutral))
    (folder / "sad").mkdir(exist_ok=True)
    (folder / "sad" / "unreadable.wav").write_bytes(b"this is no sound at all" * 50)
    _write(folder / "sad" / "cut-short.wav", of["sad"], text)
    whole = (folder / "sad" / "cut-short.wav").read_bytes()
    (folder / "sad" / "cut-short.wav").write_bytes(whole[: len(whole) // 3])
    _write(folder / "happy" / "too-short.wav", of["happy"][8000:12000], text)
    _write(folder / "happy" / "too-long.wav", np.tile(of["happy"], 14), text)
    _write(folder / "angry" / "clipped.wav", (of["angry"] * 12).clip(-1, 1), text)
    _write(folder / "angry" / "silent.wav", np.zeros(2 * RATE, np.float32), text)
    _write(folder / "neutral" / "noisy.wav", (neutral + noise).clip(-1, 1) * 0.5, text)
    _write(folder / "neutral" / "again.wav", neutral, text)
    _write(folder / "neutral" / "no-words.wav", neutral[::-1].copy(), "")
    _write(folder / "joy" / "unknown.wav", of["happy"] * 0.5, text)


def _write(path: Path, samples: object, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE)
    if text:
        path.with_suffix(".txt").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
