"""What of a conversation goes to disk: the last moments of the line, and a thread that writes sessions."""

from __future__ import annotations

import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from assistant.assistant import Line
from assistant.corrections import keep
from assistant.errors import AssistantError
from assistant.events import (
    AudioChunk,
    Event,
    Failed,
    Samples,
    StateChanged,
    Transcribed,
    Turn,
    TurnEnded,
    TurnUndone,
    UtteranceEnded,
)
from assistant.recorder import RATE, Recorder
from assistant.session import correct, tidy
from assistant.signals import Ready
from assistant.voice import ReplyVoice

_RECALLED_SECONDS = 1.5  # of sound kept for the journal: speech is known to be speech only after it began


class Tape:
    """Remembers the last moments of the line, and hands on what the user says while they say it.

    Attributes:
        record: takes the samples of a turn in the making.
        listener: takes every chunk of the microphone as it comes, mono 16 kHz.
    """

    def __init__(self, line: Line) -> None:
        self.record: Callable[[int, Samples], None] | None = None
        self.listener: Callable[[Samples], None] | None = None
        self._line = line
        self._past: deque[Samples] = deque()
        self._turn: int | None = None

    def take(self, chunk: AudioChunk, *, speaking: bool) -> tuple[Samples, Samples]:
        """See `assistant.assistant.Line`."""
        raw, judged = self._line.take(chunk, speaking=speaking)
        self._past.append(raw)
        while sum(map(len, self._past)) - len(self._past[0]) > _RECALLED_SECONDS * RATE:
            self._past.popleft()
        if self._turn is not None and self.record is not None:
            self.record(self._turn, raw)
        if self.listener is not None and len(raw):
            self.listener(raw)
        return raw, judged

    def begin(self, turn: int, seconds: float) -> None:
        """The user has been speaking for so long."""
        self._turn = turn
        if self.record is not None and self._past:
            self.record(turn, np.concatenate(list(self._past))[-round(seconds * RATE) :])

    def end(self) -> None:
        """The user has stopped."""
        self._turn = None


class Scribe:
    """Writes sessions and corrections on a thread of its own: a slow disk keeps nobody waiting.

    Args:
        report: told in words when something cannot be written, and what was tidied up.
        about: what a session's first line says besides: the model and so on.
        corrections: the file of all corrections; None keeps none.
    """

    def __init__(
        self, report: Callable[[Failed], None], about: Callable[[], Mapping[str, Any]], corrections: Path | None
    ) -> None:
        self.recorder: Recorder | None = None
        self._report = report
        self._about = about
        self._corrections = corrections
        self._root: Path | None = None
        self._after = 0  # turns up to this one belong to earlier sessions
        self._until: int | None = None  # turns beyond this one belong to the next
        self._folders: dict[int, Path] = {}  # of the turns that were recorded
        self._unrecorded = f"unrecorded-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scribe")
        self._thread.start()

    # ---- from any thread

    def record(self, root: Path | None, keep_days: int | None = None) -> None:
        """Record below `root` from now on, or not (None). What earlier runs left there is looked after first."""
        self._orders.put(lambda: self._record(root, keep_days))

    def begin_anew(self, last: int) -> None:
        """A new conversation follows turn number `last`: its session begins with its first turn."""
        self._orders.put(lambda: setattr(self, "_until", last))

    def correct(self, turn: Turn, emotion: str | None, *, consent: bool) -> None:
        """The user says how a spoken turn really sounded, or takes it back (None)."""
        self._orders.put(lambda: self._correct(turn, emotion, consent=consent))

    def sound(self, turn: int, samples: Samples) -> None:
        """What the user is saying."""
        self._order(turn, lambda recorder: recorder.sound(turn, samples))

    def note(self, event: Event | Ready, voice: ReplyVoice) -> None:
        """What of an event belongs on disk."""
        if isinstance(event, UtteranceEnded):
            self._order(event.turn, lambda recorder: self._utterance(recorder, event))
        elif isinstance(event, TurnEnded):
            audio, rate = (voice.heard_audio, voice.heard_rate) if event.turn.heard else (None, RATE)
            self._order(event.turn.number, lambda recorder: recorder.ended(event, audio, rate))
        elif isinstance(event, Transcribed):
            # It may come after the turn's end.
            values = {"turn": event.turn, "text": event.text, "language": event.language}
            self._order(event.turn, lambda recorder: recorder.note("transcribed", **values))
        elif isinstance(event, TurnUndone):
            self._order(event.turn, lambda recorder: recorder.note("undone", turn=event.turn))
        elif isinstance(event, StateChanged) and not event.user_speaking:
            self._order(None, Recorder.dropped)
        elif isinstance(event, Ready):
            self._order(None, lambda recorder: recorder.note("model_ready", **event.about))
        elif isinstance(event, Failed):
            values = {"turn": event.turn, "message": event.message}
            self._order(event.turn, lambda recorder: recorder.note("failed", **values))

    def close(self) -> None:
        """End the session and the thread."""
        self._orders.put(None)
        self._thread.join()
        if self.recorder is not None:
            self.recorder.close()

    # ---- on the scribe's thread

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()

    def _order(self, turn: int | None, write: Callable[[Recorder], None]) -> None:
        self._orders.put(lambda: self._write(turn, write))

    def _write(self, turn: int | None, write: Callable[[Recorder], None]) -> None:
        if turn is not None and self._until is not None and turn > self._until:
            self._after, self._until = self._until, None
            self._begin()
        late = turn is not None and turn <= self._after
        if self.recorder is not None and not late:
            write(self.recorder)

    def _record(self, root: Path | None, keep_days: int | None) -> None:
        if root is not None:
            for message in tidy(root, keep_days):
                self._report(Failed(None, message))
        if root != self._root:
            self._root = root
            self._begin()

    def _begin(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
        self.recorder = None if self._root is None else Recorder(self._root, self._report, about=self._about())

    def _utterance(self, recorder: Recorder, event: UtteranceEnded) -> None:
        recorder.utterance(event.turn, event.message)
        if recorder.recording and recorder.folder is not None:
            self._folders[event.turn] = recorder.folder

    def _correct(self, turn: Turn, emotion: str | None, *, consent: bool) -> None:
        folder = self._folders.get(turn.number)
        try:
            if folder is not None:
                correct(folder, turn.number, emotion, consent=consent, corrections=self._corrections)
            elif self._corrections is not None:
                keep(self._corrections, turn, emotion if consent else None, self._unrecorded)
        except AssistantError as error:
            self._report(Failed(turn.number, str(error)))
        except OSError as error:
            why = error.strerror or error
            self._report(Failed(turn.number, f"The correction cannot be kept ({why}): free space."))
