"""Sessions written by the recorder from shipped samples and scripted readings; no model, no device."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile

from assistant.events import (
    EMOTIONS,
    SAMPLE_RATE,
    UNSURE,
    EmotionReading,
    Message,
    Outcome,
    Samples,
    Spoken,
    Turn,
    TurnEnded,
    Typed,
)
from assistant.sessions.journal import JsonLines, read_lines
from assistant.sessions.recorder import EVENTS, Recorder

SAMPLES = Path(str(files("resources"))) / "samples"
STORY = (
    # recording or typed words, emotion, reply, share of it that was heard
    ("something-is-terribly-wrong", "sad", "I am sorry. Tell me what happened, and we will sort it out.", 1.0),
    ("who-sent-this", UNSURE, "Let us look at the sender together. It may be a colleague's new address.", 1.0),
    ("carried-away-by-monkeys", "surprise", "By monkeys! That is quite a story. Did they take anything else?", 0.4),
    ("What should I do first?", None, "First, take a breath. Then call the office and tell them.", 1.0),
    ("weasels", "angry", "That must be maddening. I would call the technician before lunch.", 1.0),
    ("go-forward", "happy", "Ten metres it is. Onwards!", 1.0),
)


@cache
def words() -> dict[str, str]:
    """The transcript of each sample."""
    with (SAMPLES / "transcripts.tsv").open(encoding="utf-8") as file:
        return {row["file"].removesuffix(".flac"): row["transcript"] for row in csv.DictReader(file, delimiter="\t")}


@cache
def spoken(name: str) -> Spoken:
    samples, rate = soundfile.read(SAMPLES / f"{name}.flac", dtype="float32")
    assert rate == SAMPLE_RATE
    return Spoken(samples)


def reading(label: str, seconds: float) -> EmotionReading:
    """A reading with that label and noisy frames, like a real one."""
    strongest = 0 if label == UNSURE else EMOTIONS.index(label)
    frames = max(1, round(seconds / 0.16))
    waver = np.sin(np.arange(frames)[:, None] * (0.7 + 0.3 * np.arange(5)) + strongest)
    aim = np.zeros(5)
    aim[strongest] = 0.7 if label == UNSURE else 2.2
    contributions = ((aim + 1.5 * waver - 1.5 * waver.mean(0)) / frames).astype(np.float32)
    logits = contributions.sum(0)
    powers = np.exp(logits - logits.max())
    return EmotionReading(
        (powers / powers.sum()).astype(np.float32), label, 0.16, contributions, np.zeros(5, np.float32)
    )


def voice(text: str, rate: int = 22_050) -> Samples:
    """A hum that swells with each word, like speech."""
    at = np.arange(round(len(text.split()) * 0.3 * rate)) / rate
    return (0.3 * np.abs(np.sin(np.pi * at / 0.3)) * np.sin(2 * np.pi * 140 * at)).astype(np.float32)


def record(
    root: Path, started: datetime, story: Sequence[tuple[str, str | None, str, float]] = STORY, **about: Any
) -> Path:
    """Record a session with that start time and return its folder."""
    recorder = Recorder(root, cast(Any, None), about={"model": "mini"} | about)
    assert recorder.folder is not None
    for number, (what, emotion, reply, share) in enumerate(story, 1):
        message: Message = spoken(what) if what in words() else Typed(what)
        seconds = len(message.samples) / SAMPLE_RATE if isinstance(message, Spoken) else 0.0
        recorder.utterance(number, message)
        count = len(reply.split())
        heard = " ".join(reply.split()[: round(count * share)])
        turn = Turn(
            number,
            message,
            words().get(what),
            reading(emotion, seconds) if emotion and seconds else None,
            reply,
            heard,
            Outcome.ANSWERED if share == 1 else Outcome.INTERRUPTED,
            {"ended": 1.0, "first_sound": 1.7},
            {"encode_ms": 80.0, "first_token_ms": 410.0 + number},
        )
        recorder.ended(TurnEnded(turn), voice(heard) if heard else None, 22_050)
    recorder.close()
    return _dated(recorder.folder, started)


def _dated(made: Path, started: datetime) -> Path:
    """Move a session to another start time."""
    lines, _ = read_lines(made / EVENTS)
    (made / EVENTS).unlink()
    again = JsonLines(made / EVENTS)
    again.append(lines[0] | {"started": started.astimezone().isoformat(timespec="seconds")})
    for number, line in enumerate(lines[1:]):
        again.append(line | {"t": 14.0 * number})
    again.close()
    return made.rename(made.with_name(f"{started:%Y-%m-%d_%H-%M-%S}-{made.name[-4:]}"))
