"""Speakers that mini has never heard: forty utterances are enough to read their others measurably better."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from assistant.events import EMOTIONS
from model.audio.files import read_audio
from model.checkpoints import loader
from model.inference.engine import Engine
from tests.training.support.unseen_voices import JUDGED, LEARNT, VOICES
from training.finetune.features import copy_head, mean_frame
from training.finetune.judge import WORSE_LOSS, ComparedReading, FixedReadingEngine, interval, neutral_losses
from training.finetune.options import TuneOptions
from training.finetune.tune import tune

NEUTRAL = 8  # recordings of each voice whose continuation loss is compared


@pytest.mark.real
def test_a_speaker_that_mini_has_not_heard(tmp_path: Path, figure: Callable[[str], None]) -> None:
    subprocess.run([sys.executable, "-m", "tests.training.support.unseen_voices", str(tmp_path)], check=True)
    gained, right, losses = list[float](), [0.0, 0.0], np.zeros(2)
    for voice in VOICES:
        folder = tmp_path / voice.replace("+", "_")
        given = {"run": folder / "run", "manifest": folder / "learn.jsonl", "judged": 0, "replies": 0}
        assert tune(TuneOptions.of(given))["learnt_from"] == 5 * LEARNT
        rows = [json.loads(line) for line in (folder / "judge.jsonl").read_text().splitlines()]
        before, after = (loader.load(source) for source in ("mini", str(folder / "run" / "model")))
        frames = torch.stack([mean_frame(after, read_audio(folder / row["audio"])) for row in rows])
        pairs = zip(*(torch.softmax(copy_head(one).of_means(frames), 1) for one in (before, after)), strict=True)
        heard = [
            ComparedReading(folder / row["audio"], row["text"], EMOTIONS.index(row["emotion"]), *pair)
            for row, pair in zip(rows, pairs, strict=True)
        ]
        hits = np.array(
            [[float(int(side.argmax()) == one.emotion) for side in (one.before, one.after)] for one in heard]
        )
        right = [total + share / len(VOICES) for total, share in zip(right, hits.mean(0), strict=True)]
        gained += list((hits[:, 1] - hits[:, 0]).reshape(JUDGED, 5).mean(1))  # a sentence is drawn as a whole
        thresholds = (copy_head(before).threshold, copy_head(after).threshold)
        neutral = [one for one in heard if one.emotion == 0][:NEUTRAL]
        loss = neutral_losses(FixedReadingEngine(Engine(after)), neutral, thresholds, lambda: None)
        losses += loss["tokens"] * np.array([loss["before"], loss["after"]])
    low, high = interval(np.array(gained))
    figure(
        f"{len(VOICES)} voices, {5 * JUDGED} recordings each: {right[0]:.1%} before, {right[1]:.1%} after "
        f"({low:+.1%} to {high:+.1%}); continuation loss of neutral speech {losses[1] / losses[0] - 1:+.2%}"
    )
    assert low > 0
    assert losses[1] <= WORSE_LOSS * losses[0]
