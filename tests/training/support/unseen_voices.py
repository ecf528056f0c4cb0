"""Recordings by voices that mini was never fitted to, in the five emotions: some to learn from, others to judge.

Run as a program (`python -m tests.training.support.unseen_voices FOLDER`), so that espeak-ng stays out
of the test's process.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np

from assistant.events import EMOTIONS
from training.synthesis.corpus import Job, make_clips
from training.synthesis.voices import TEST_VOICES, Source, sentence

VOICES = ("en-us+belinda", "en-us+m3", "en+edward")
LEARNT, JUDGED = 8, 24  # sentences, each five times


def make(folder: Path) -> None:
    """Write learn.jsonl and judge.jsonl for each voice."""
    for voice in VOICES:
        assert voice in TEST_VOICES, "the head was fitted to it"
        name = voice.replace("+", "_")
        (folder / name / "audio").mkdir(parents=True)
        rows: dict[str, list[str]] = {"learn": [], "judge": []}
        for number in range(LEARNT + JUDGED):
            text = sentence(np.random.default_rng([77, zlib.crc32(voice.encode()), number]))
            source = Source(f"{name}-{number:02d}", "espeak", voice, "test", text)
            for row in make_clips(Job(source, folder / name, folder, 77)):
                if row["rendition"] in EMOTIONS:
                    line = {"audio": row["audio"], "text": text, "emotion": row["emotion"], "speaker": voice}
                    rows["learn" if number < LEARNT else "judge"].append(json.dumps(line) + "\n")
        for part, lines in rows.items():
            (folder / name / f"{part}.jsonl").write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
