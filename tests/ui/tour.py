"""`python -m tests.ui.tour OUT`: a picture of every view, in each theme, size and scale, for people to look at.

The conversation is scripted, the recordings are the shipped ones; no model and no device is needed. The longest time
that the window did not react is printed: views are opened for the first time on the way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from PySide6.QtWidgets import QWidget

from assistant.backend.protocol import Ready
from assistant.events import (
    EmotionRead,
    Failed,
    InputLevel,
    ModelStatus,
    Outcome,
    PlaybackProgressed,
    PlaybackStarted,
    ReplyFinished,
    ReplyText,
    SpeechStarted,
    Spoken,
    State,
    StateChanged,
    Transcribed,
    Turn,
    TurnEnded,
    Typed,
    UtteranceEnded,
)
from tests.support.fakes import ToneSynthesizer
from tests.support.work import Calls
from tests.ui.conftest import ScriptedTalk
from tests.ui.support.script import PICTURE, Played, Wait, play
from tests.ui.support.sessions import reading, record, spoken, words
from ui import window as program
from ui.core.app import Services
from ui.main_window import MainWindow

SIZES = {"900x600": (900, 600), "1100x760": (1100, 760), "1600x1000": (1600, 1000)}
ABOUT = {
    "name": "mini", "device": "cpu", "quantize": "int8", "memory_bytes": 884e6, "reads_emotion": True,
    "prosody_estimate": True, "frame_seconds": 0.02, "path": "transcript", "why": "No GPU was found.",
}  # fmt: skip
SETTINGS = ("sound", "turns", "voice", "model", "recording", "appearance", "shortcuts", "diagnostics")
TURNS = (
    ("something-is-terribly-wrong", "sad", "I am sorry. Tell me what happened, and we will sort it out together."),
    ("who-sent-this", "unsure", "Let us look at the sender together. It may be a colleague's new address."),
    ("What should I do first?", None, "First, take a breath. Then call the office and tell them you are on your way."),
    ("weasels", "angry", "That must be maddening. I would call the technician before lunch."),
)
LONG = "And so it went on, from one thought to the next, without ever coming to a point. " * 30 + "w" * 400


class Tour:
    """Goes through the views of one window and photographs each.

    Args:
        out: folder of the pictures.
        suffix: of their names: theme, size and scale.
    """

    def __init__(self, out: Path, suffix: str, size: tuple[int, int]) -> None:
        self.out, self.suffix, self.size = out, suffix, size
        self.taken: list[Path] = []

    def __call__(self, window: MainWindow) -> Generator[Wait, None, None]:
        window.resize(*self.size)
        for step in range(3):
            yield from self.inspect(window, f"first-{step + 1}")
            if step < 2:
                window.pages["first"].advance()  # type: ignore[attr-defined]
        window.app.finish_first_run()
        window.show_page("talk")
        yield from self.talk(window)
        window.show_page("sessions")
        yield "the sessions", lambda: "Something is terribly wrong" in all_text(window)
        yield from self.inspect(window, "sessions")
        for section in SETTINGS:
            window.show_page("settings").show_section(section)  # type: ignore[attr-defined]
            yield from self.inspect(window, f"settings-{section}")
        window.show_page("finetune")
        yield from self.inspect(window, "finetune")

    def talk(self, window: MainWindow) -> Generator[Wait, None, None]:
        talk: Any = window.app.talk
        talk.happen(ModelStatus("loading", "loading mini"))
        yield from self.inspect(window, "talk-loading")
        talk.happen(Ready(ABOUT))
        yield from self.inspect(window, "talk-empty")
        for number, (what, emotion, reply) in enumerate(TURNS, 1):
            talk.happen(*turn_events(number, what, emotion, reply))
        yield from self.inspect(window, "talk")
        number = len(TURNS) + 1
        talk.happen(StateChanged(State.LISTENING, True), SpeechStarted(number, 0.0), InputLevel(-18.0))
        yield from self.inspect(window, "talk-listening")
        talk.happen(*asked(number, "go-forward", "happy"), StateChanged(State.THINKING, False))
        yield from self.inspect(window, "talk-thinking")
        reply = "Ten metres it is. Onwards, and mind the step at the door!"
        talk.happen(ReplyText(number, reply), PlaybackStarted(number), StateChanged(State.SPEAKING, False))
        talk.happen(PlaybackProgressed(number, "Ten metres it is."))
        yield from self.inspect(window, "talk-speaking")
        talk.happen(ended(number, "go-forward", "happy", reply, "Ten metres it is.", Outcome.INTERRUPTED))
        talk.happen(StateChanged(State.IDLE, False))
        yield from self.inspect(window, "talk-interrupted")
        talk.happen(*turn_events(number + 1, "Go on.", None, LONG))
        yield from self.inspect(window, "talk-long")
        talk.happen(Failed(None, "The microphone cannot be used (it stopped): plug one in or choose another."))
        yield from self.inspect(window, "talk-trouble")

    def inspect(self, window: MainWindow, name: str) -> Generator[Wait, None, None]:
        """Wait until the view has been painted, then take its picture."""
        for _ in range(12):
            yield "the view", lambda: True
        yield PICTURE
        path = self.out / f"{name}-{self.suffix}.png"
        assert window.grab().save(str(path))
        self.taken.append(path)
        yield "what follows", lambda: True


def all_text(parent: QWidget) -> str:
    """What is drawn by labels and lists."""
    from tests.ui.support.script import texts

    return texts(parent)


def message_of(what: str) -> Spoken | Typed:
    return spoken(what) if what in words() else Typed(what)


def asked(number: int, what: str, emotion: str | None) -> list[Any]:
    message = message_of(what)
    if isinstance(message, Typed):
        return [UtteranceEnded(number, message)]
    read = EmotionRead(number, reading(emotion or "neutral", len(message.samples) / 16_000))
    return [UtteranceEnded(number, message), read, Transcribed(number, words()[what])]


def ended(number: int, what: str, emotion: str | None, reply: str, heard: str, outcome: Outcome) -> TurnEnded:
    message = message_of(what)
    read = reading(emotion, len(message.samples) / 16_000) if emotion and isinstance(message, Spoken) else None
    marks = {"ended": 10.0, "asked": 9.6, "read": 9.7, "first_text": 10.05, "first_sentence": 10.2,
             "first_speech": 10.22, "first_sound": 10.4, "finished": 14.0}  # fmt: skip
    figures = {"encode_ms": 88.0, "prefill_ms": 120.0, "first_token_ms": 140.0}
    return TurnEnded(Turn(number, message, words().get(what), read, reply, heard, outcome, marks, figures))


def turn_events(number: int, what: str, emotion: str | None, reply: str) -> list[Any]:
    return [
        *asked(number, what, emotion),
        ReplyText(number, reply),
        ReplyFinished(number, reply),
        ended(number, what, emotion, reply, reply, Outcome.ANSWERED),
    ]


def walk(
    out: Path, theme: str, size: str, home: Path, scale: str = "1x", calls: Calls | None = None
) -> tuple[Played, list[Path]]:
    """One tour; how it went, and its pictures."""
    out.mkdir(parents=True, exist_ok=True)
    (home / "settings.toml").write_text(f'[recording]\nmode = "days"\n[looks]\ntheme = "{theme}"\n')
    now = datetime.now()
    for days in (0, 1, 9):
        record(home / "sessions", now - timedelta(days=days, minutes=20))
    python = (sys.executable,)
    make: Callable[..., Any] = ScriptedTalk
    services = Services(home, (*python, "-m", "main"), python, lambda _engine: ToneSynthesizer(), make)
    tour = Tour(out, f"{theme}-{size}-{scale}", SIZES[size])
    return play(tour, run=lambda: program.run(services), calls=calls), tour.taken


def main() -> int:
    """All tours; 2x in a process of its own, for Qt reads the scale once."""
    parser = argparse.ArgumentParser(prog="python -m tests.ui.tour", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--theme", choices=("light", "dark", "contrast"))
    parser.add_argument("--size", choices=SIZES)
    options = parser.parse_args()
    scale = "2x" if os.environ.get("QT_SCALE_FACTOR") == "2" else "1x"
    themes = [options.theme] if options.theme else ["light", "dark", "contrast"]
    for theme in themes:
        for size in [options.size] if options.size else SIZES:
            with tempfile.TemporaryDirectory() as home:
                played, taken = walk(options.out, theme, size, Path(home), scale)
            print(
                f"{theme} {size} {scale}: {len(taken)} pictures, longest stall {played.longest_stall * 1000:.0f} ms, "
                f"of it work {played.longest_work * 1000:.0f} ms"
            )
    if scale == "1x" and not options.theme:
        again = [sys.executable, "-m", "tests.ui.tour", str(options.out), "--theme", "light", "--size", "1100x760"]
        return subprocess.run(again, env={**os.environ, "QT_SCALE_FACTOR": "2"}, check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
