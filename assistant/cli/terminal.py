"""The conversation in a terminal: a status line, the turns above it, and the keyboard; or lines of text or JSON.

A terminal tells when a key goes down and never when it goes up: the space key begins and ends what one says.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import dataclasses
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from assistant.backend.protocol import Ready
from assistant.cli.recording_choice import in_terminal
from assistant.events import (
    SAMPLE_RATE,
    UNSURE,
    EmotionRead,
    EmotionReading,
    Event,
    Failed,
    InputLevel,
    ModelStatus,
    ReplyFinished,
    ReplyText,
    Spoken,
    State,
    StateChanged,
    Transcribed,
    TurnEnded,
    Typed,
    UtteranceEnded,
)
from assistant.talk import Talk

HELP = "space begins and ends what you say · type and Enter to write · Ctrl-C stops the reply, twice ends"
_TWICE_SECONDS = 2.0
_BAR, _QUIETEST_DB = 12, -60.0
_FRAME_SECONDS = 0.05
_SETTLED_SECONDS = 2.0  # of silence after the last recording before its turn has surely ended


def as_line(event: Event | Ready) -> str:
    """An event as one JSON line: `type`, then its fields; recordings by their length in seconds."""
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(event).__name__)
    values = {field.name: _plain(getattr(event, field.name)) for field in dataclasses.fields(event)}
    return json.dumps({"type": name.lstrip("_"), **values}, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, EmotionReading):
        return value.as_dict()
    if isinstance(value, Spoken):
        return {"seconds": round(len(value.samples) / SAMPLE_RATE, 3)}
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return dict(value) if hasattr(value, "keys") else value


def describe(reading: EmotionReading | None) -> str:
    """A reading in words."""
    if reading is None:
        return ""
    if reading.label == UNSURE:
        return f"unsure, closest to {reading.strongest}"
    return f"sounds {reading.label}, {reading.confidence:.0%}"


def delay_of(turn: Any) -> float | None:
    """Milliseconds from the end of the user's turn to the first sound, or to the first text of a silent reply."""
    marks = turn.marks
    first = marks.get("first_sound", marks.get("first_text"))
    return None if first is None or "ended" not in marks else max(0.0, first - marks["ended"]) * 1e3


class Screen:
    """The screen: finished lines scroll, the status line stays."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.typed = ""
        self.status: ModelStatus | None = None
        self._state, self._user_speaking = State.IDLE, False
        self._level = -120.0
        self._reply = ""
        self._delay = ""

    def show(self, event: Event | Ready) -> None:
        """Take in an event."""
        if isinstance(event, InputLevel):
            self._level = event.decibels
        elif isinstance(event, StateChanged):
            self._state, self._user_speaking = event.state, event.user_speaking
        elif isinstance(event, ModelStatus):
            self.status = event
            if event.status != "loading":
                self._line("dim", event.text)
        elif isinstance(event, Failed):
            self._line("yellow", event.message)
        elif isinstance(event, UtteranceEnded) and isinstance(event.message, Typed):
            self._line("bold", "You   ", event.message.text)
        elif isinstance(event, EmotionRead) and event.reading is not None:
            self._line("cyan", "Voice ", describe(event.reading))
        elif isinstance(event, Transcribed):
            self._line("bold", "You   ", event.text)
        elif isinstance(event, ReplyText):
            self._reply += event.text
        elif isinstance(event, ReplyFinished):
            self._reply = ""
            self._line("green", "Reply ", event.text)
        elif isinstance(event, TurnEnded):
            self._end(event)

    def _end(self, event: TurnEnded) -> None:
        turn, self._reply = event.turn, ""
        delay = delay_of(turn)
        self._delay = "" if delay is None else f"{delay:.0f} ms"
        if turn.outcome.value in ("interrupted", "stopped"):
            self._line("dim", f"      {turn.outcome.value}; heard: {turn.heard or 'nothing'}")

    def _line(self, style: str, first: str, rest: str = "") -> None:
        # Model output is text, never markup.
        self.console.print(Text.assemble((first, style), rest))

    def __rich__(self) -> Text:
        """The status line."""
        full = round(_BAR * min(1.0, max(0.0, 1 - self._level / _QUIETEST_DB)))
        loading = self.status is not None and self.status.status == "loading"
        doing = self.status.text if loading and self.status else self._state.value
        if self._user_speaking:
            doing = "you are speaking"
        parts = Text.assemble(("▮" * full, "green"), ("▯" * (_BAR - full), "dim"), f" {doing}  ")
        parts.append(f"{self._delay}  " if self._delay else "", "dim")
        parts.append(f"> {self.typed}▏" if self.typed else self._reply.replace("\n", " ")[-200:])
        parts.no_wrap, parts.overflow = True, "ellipsis"
        return parts


class Stopper:
    """Ctrl-C: once stops the current turn, twice within two seconds ends the program."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._pressed_at = -_TWICE_SECONDS

    def press(self) -> None:
        """Raises KeyboardInterrupt the second time."""
        now = time.monotonic()
        if now - self._pressed_at < _TWICE_SECONDS:
            raise KeyboardInterrupt
        self._pressed_at = now
        self._stop()

    def handle(self, _signal: int, _frame: FrameType | None) -> None:
        """The same as a signal handler."""
        self.press()


class Keyboard:
    """Maps keys to talking, typing and stopping."""

    def __init__(self, talk: Talk, screen: Screen, stopper: Stopper) -> None:
        self._talk, self._screen, self._stopper = talk, screen, stopper
        self._down = False

    def key(self, key: str) -> bool:
        """One character. Returns False when the user is done: Ctrl-D on an empty line."""
        typed = self._screen.typed
        if key == "\x03":
            self._down = False
            self._stopper.press()
        elif key == "\x04":
            return bool(typed)
        elif key in "\r\n":
            self._screen.typed = ""
            self._talk.type(typed)
        elif key in "\x7f\b":
            self._screen.typed = typed[:-1]
        elif key == " " and not typed:
            self._down = not self._down
            self._talk.loop.press() if self._down else self._talk.loop.release()
        elif key.isprintable():
            self._screen.typed = typed + key
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Input:
    """Text from the standard input; empty at its end."""

    text: str


Inbox = queue.SimpleQueue[Event | Ready | _Input]


def run(make: Callable[[Callable[[Event | Ready], None]], Talk], *, as_json: bool, log: Path) -> None:
    """Hold the conversation until the user ends it, or typed lines and recordings end.

    Args:
        make: the conversation, given its listener.
        as_json: one JSON line per event on stdout, and nothing else.
        log: where a terminal's sound libraries may write what would spoil the screen.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    inbox: Inbox = queue.SimpleQueue()
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # inherited by the model process: only this process handles Ctrl-C
    shown = in_terminal(as_json=as_json)
    try:
        with _messages_to(log) if shown else contextlib.nullcontext():
            talk = make(inbox.put)
            stopper = Stopper(talk.stop)
            try:
                signal.signal(signal.SIGINT, stopper.handle)
                talk.start()
                if shown:
                    _in_terminal(talk, inbox, stopper)
                else:
                    _in_lines(talk, inbox, as_json=as_json)
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                talk.close()
    finally:
        signal.signal(signal.SIGINT, before)


def _in_terminal(talk: Talk, inbox: Inbox, stopper: Stopper) -> None:
    console = Console()
    screen = Screen(console)
    keyboard = Keyboard(talk, screen, stopper)
    console.print(Text(HELP, "dim"))
    with _keys(), Live(screen, console=console, auto_refresh=False, transient=True) as live:
        _read_input(inbox)
        while not _over(talk, lines_ended=False, busy=False):
            for happened in _waiting(inbox):
                if not isinstance(happened, _Input):
                    screen.show(happened)
                elif not happened.text or not all(map(keyboard.key, happened.text)):
                    return
            live.refresh()


def _in_lines(talk: Talk, inbox: Inbox, *, as_json: bool) -> None:
    """Answer typed lines one after the other; without any, listen to the microphone until Ctrl-C."""
    screen = Screen(Console(soft_wrap=True))
    show: Callable[[Event | Ready], None] = _print_json if as_json else screen.show
    lines: collections.deque[str] = collections.deque()
    rest, typed, ended, busy = "", False, False, False
    _read_input(inbox)
    while not _over(talk, lines_ended=typed and ended and not lines, busy=busy):
        for happened in _waiting(inbox):
            if isinstance(happened, _Input):
                *whole, rest = (rest + happened.text).split("\n")
                ended = not happened.text
                lines.extend(line for line in [*whole, rest if ended else ""] if line.strip())
            else:
                show(happened)
                busy = busy and not isinstance(happened, TurnEnded)
        if lines and not busy:
            typed = busy = True
            talk.type(lines.popleft())


def _print_json(event: Event | Ready) -> None:
    sys.stdout.write(as_line(event) + "\n")
    sys.stdout.flush()


def _over(talk: Talk, *, lines_ended: bool, busy: bool) -> bool:
    """Whether there is nothing more to come: neither lines nor recordings."""
    heard = talk.sound.input_ended(_SETTLED_SECONDS)
    if busy or not (lines_ended or heard is not None):
        return False
    return heard is not False and talk.quiet


def _waiting(inbox: Inbox) -> Iterator[Event | Ready | _Input]:
    """Wait a moment and yield what came."""
    with contextlib.suppress(queue.Empty):
        yield inbox.get(timeout=_FRAME_SECONDS)
        while True:
            yield inbox.get_nowait()


# ---- the standard input, and the terminal


def _read_input(inbox: Inbox) -> None:
    """Read on a thread of its own, below Python's buffers, whose lock would delay the program's exit."""
    threading.Thread(target=_read, args=(inbox,), daemon=True, name="input").start()


def _read(inbox: Inbox) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    data = b"-"
    while data:
        data = _read_some()
        text = decoder.decode(data)
        if text or not data:
            inbox.put(_Input(text))  # the last one is empty


def _read_some() -> bytes:
    if sys.platform == "win32" and sys.stdin.isatty():
        import msvcrt

        return msvcrt.getwch().encode()
    with contextlib.suppress(OSError):
        return os.read(sys.stdin.fileno(), 4096)
    return b""


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Every key at once, unechoed, Ctrl-C included."""
    if sys.platform == "win32":
        yield
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        mode = termios.tcgetattr(terminal)
        mode[3] &= ~termios.ISIG
        termios.tcsetattr(terminal, termios.TCSADRAIN, mode)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _messages_to(log: Path) -> Iterator[None]:
    """Redirect what native libraries and child processes write to stderr into the log."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    sys.stderr.flush()
    before = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
