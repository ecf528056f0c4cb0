"""Write what an earlier version keeps for its user into BLSP_HOME, and what it reads there as expected.json.

It runs with the code of commit ea304cf only; README.md beside it says how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from assistant.corrections import keep
from assistant.recorder import Recorder
from assistant.session import as_json, correct, read_session
from assistant.tuning_data import Recording, write_manifest
from model.engine import Engine

from assistant.events import EMOTIONS, EmotionReading, Outcome, Samples, Spoken, Turn, TurnEnded, Typed
from assistant.finetune import Stage, TuningRun, write_plan
from assistant.settings import Settings, load, save
from model import checkpoint, tuned
from model.audio import read_audio

HOME = Path(os.environ["BLSP_HOME"])
CORRECTIONS = HOME / "corrections.jsonl"
RATE = 16_000
HIDDEN = 16  # of mini's 1024 hidden units, so that the head stays small
_READING = EmotionReading(
    probabilities=np.array([0.08, 0.04, 0.12, 0.7, 0.06], np.float32),
    label="sad",
    frame_seconds=0.16,
    contributions=np.arange(-10, 10, dtype=np.float32).reshape(4, 5) / 8,
    offset=np.array([0.5, -0.25, 0.0, 0.25, 0.125], np.float32),
)


def hum(pitch: float, seconds: float, rate: int = RATE) -> Samples:
    """A voice-like sound: a falling tone with overtones that swells four times a second."""
    at = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * pitch * (at - 0.1 * at**2)
    tone = sum(np.sin(n * phase) / n for n in range(1, 6))
    return (0.2 * np.abs(np.sin(4 * np.pi * at)) * tone).astype(np.float32)


def module(*words: str) -> None:
    """Run `python -m ...` of this version."""
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)


def write_settings() -> None:
    """Every setting, none of them at its default."""
    chosen = Settings(started=True)
    sections: Mapping[str, dict[str, Any]] = {
        "model": {"source": "mini-0.5b", "device": "cpu", "quantize": "int8", "folders": ("/srv/models/mine",)},
        "sound": {"microphone": "USB microphone", "speaker": "Kopfhörer", "echo": "half"},
        "turns": {
            "hands_free": True, "patience": "patient", "barge_in": "key", "empathy": False, "shortcut": "Ctrl+Space",
        },
        "voice": {
            "engine": "kokoro", "name": "af_heart", "rate": 1.25, "pitch": 0.9, "volume": 0.75, "follow_mood": False,
        },
        "recording": {"mode": "days", "days": 90, "corrections": True, "asked": True},
        "looks": {"theme": "contrast", "text_size": 1.5, "language": "zh", "tray": True},
    }  # fmt: skip
    for name, values in sections.items():
        chosen = chosen.changed(name, **values)
    save(HOME / "settings.toml", chosen)


def write_session() -> Path:
    """Four turns: spoken, typed, interrupted, and one that is undone; the first reading is corrected."""
    recorder = Recorder(HOME / "sessions", print, about={"model": "mini", "device": "cpu", "keep_days": 90})
    assert recorder.folder is not None
    first, third = Spoken(hum(180, 0.75)), Spoken(hum(240, 0.5))
    replies: list[tuple[Turn, Samples | None]] = [
        (_turn(1, first, "The café is closed today.", _READING, "Was it your favourite place?"), hum(150, 0.6, 22_050)),
        (_turn(2, Typed("What else is open? 你好"), None, None, "The bakery opens at eight."), None),
        (
            _turn(3, third, "Never mind.", None, "All right. Shall we talk about something else?", "All right."),
            hum(150, 0.3, 22_050),
        ),
        (_turn(4, Typed("Forget this."), None, None, "It is forgotten."), None),
    ]
    for turn, sound in replies:
        recorder.utterance(turn.number, turn.message)
        recorder.ended(TurnEnded(turn), sound, 22_050)
    recorder.note("undone", turn=4)
    recorder.close()
    correct(recorder.folder, 1, "angry", consent=True, corrections=CORRECTIONS)
    keep(CORRECTIONS, _turn(2, third, "Never mind.", None, "All right."), "neutral", "not-recorded")
    return recorder.folder


def _turn(
    number: int,
    message: Spoken | Typed,
    words: str | None,
    reading: EmotionReading | None,
    reply: str,
    heard: str | None = None,
) -> Turn:
    outcome = Outcome.ANSWERED if heard is None else Outcome.INTERRUPTED
    marks, figures = {"ended": 1.0, "first_sound": 1.75}, {"encode_ms": 80.5, "first_token_ms": 410.25}
    return Turn(number, message, words, reading, reply, reply if heard is None else heard, outcome, marks, figures)


def write_orphan() -> None:
    """A session whose process ends without a word while the user speaks."""
    if os.fork() == 0:
        recorder = Recorder(HOME / "sessions", print, about={"model": "mini"})
        asked = Spoken(hum(200, 0.3))
        recorder.utterance(1, asked)
        recorder.ended(TurnEnded(_turn(1, asked, "Are you there?", None, "Yes, I am.")))
        for chunk in np.array_split(hum(200, 0.5), 10):
            recorder.sound(2, chunk)
        os._exit(1)
    os.wait()


def write_runs() -> None:
    """Ten recordings, a run on them that is finished and in use, and one that was stopped while it listened."""
    rows = []
    for number in range(10):
        path = HOME / "recordings" / f"{number}.flac"
        path.parent.mkdir(exist_ok=True)
        emotion = EMOTIONS[number % 5]
        soundfile.write(path, hum(110 + 40 * (number % 5) + 3 * number, 0.6, 8000), 8000, subtype="PCM_16")
        rows.append(Recording(str(path), f"sentence {number // 5}", emotion, f"speaker-{number // 5}"))
    start = HOME / "start"
    _few_units(start)
    for name in ("2026-11-29-101500-finished", "2026-11-29-111500-stopped"):
        run = HOME / "runs" / name
        run.mkdir(parents=True)
        write_manifest(run / "manifest.jsonl", rows, {})
        write_plan(run / "plan.json", {"seconds": 12.5, "peak_bytes": 900_000_000, "fits": True, "remedies": []})
    finished, stopped = sorted((HOME / "runs").iterdir())
    options = ("--model", str(start), "--folds", "2", "--steps", "12", "--judged", "2", "--replies", "2")
    module("training", "tune", str(finished), "--manifest", str(finished / "manifest.jsonl"), *options)
    module("training", "adopt", str(finished))
    words = ("training", "tune", str(stopped), "--manifest", str(stopped / "manifest.jsonl"), *options)
    with subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL):
        while not list(stopped.glob("features/*.npy")):
            time.sleep(0.005)
        (stopped / "stop").touch()
    assert [TuningRun.open(run).stage for run in (finished, stopped)] == [Stage.FINISHED, Stage.STOPPED]


def _few_units(folder: Path) -> None:
    """mini with the first hidden units of its head alone."""
    head = checkpoint.load("mini").model.emotion_head
    assert head is not None
    tensors = dict(head.state_dict())
    for name, dimension in (("inner.weight", 0), ("inner.bias", 0), ("outer.weight", 1)):
        tensors[name] = torch.narrow(tensors[name], dimension, 0, HIDDEN)
    reading = json.loads((checkpoint.RESOURCES / "mini" / "reading.json").read_text())
    tuned.save(folder, "mini", checkpoint.presets()["mini"], tensors, reading | {"hidden": HIDDEN})


def write_expected(session: Path) -> None:
    """What this version reads in its own files."""
    settings, _ = load(HOME / "settings.toml")
    engine = Engine(checkpoint.load(settings.model.source, device="cpu"))
    readings = {}
    for path in sorted((HOME / "recordings").iterdir()):
        reading = engine.hear(Spoken(read_audio(path))).reading
        assert reading is not None
        readings[path.name] = reading.as_dict() | {"contributions": reading.contributions.sum(0).tolist()}
    expected = {
        "settings": settings.model_dump(mode="json"),
        "session": as_json(read_session(session)),
        "readings": readings,
    }
    (HOME / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_settings()
    session = write_session()
    module("main", "sessions", "export", session.name, "--output", str(HOME))
    write_orphan()
    write_runs()
    write_expected(session)
