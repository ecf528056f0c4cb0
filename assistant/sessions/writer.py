"""Writes a conversation's session and corrections to disk, on a thread of its own."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assistant.backend.protocol import Ready
from assistant.errors import AssistantError
from assistant.events import (
    SAMPLE_RATE,
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
from assistant.sessions.corrections import keep
from assistant.sessions.maintenance import tidy
from assistant.sessions.reader import correct
from assistant.sessions.recorder import Recorder
from assistant.speech.playback import ReplyPlayer


class SessionWriter:
    """Writes sessions and corrections on a thread of its own, so that a slow disk blocks nothing.

    Args:
        report: called with a message when something cannot be written, and about repairs.
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
        self._keep_days: int | None = None
        self._after: int | None = None  # the turn before the session's first one, once that has begun
        self._until: int | None = None  # later turns belong to the next session
        self._places: dict[int, tuple[Path, int]] = {}  # folder and number of recorded turns
        self._unrecorded = f"unrecorded-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="session writer")
        self._thread.start()

    # ---- from any thread

    def maintain(self, root: Path) -> None:
        """Without recording: repair what earlier runs left, and delete expired sessions as promised."""
        self._orders.put(lambda: self._notify(tidy(root, as_promised=True)))

    def record(self, root: Path | None, keep_days: int | None = None) -> None:
        """Record in `root` from now on, or not (None). What earlier runs left there is repaired first."""
        self._orders.put(lambda: self._record(root, keep_days))

    def begin_anew(self, last: int) -> None:
        """A new conversation follows turn number `last`; its session begins with its first turn."""
        self._orders.put(lambda: setattr(self, "_until", last))

    def correct(self, turn: Turn, emotion: str | None, *, consent: bool) -> None:
        """Record how a spoken turn really sounded, or remove that (None)."""
        self._orders.put(lambda: self._correct(turn, emotion, consent=consent))

    def sound(self, turn: int, samples: Samples) -> None:
        """Record samples of the turn in progress."""
        self._order(lambda recorder, number: recorder.sound(number, samples), turn, begins=True)

    def note(self, event: Event | Ready, voice: ReplyPlayer) -> None:
        """Record what an event adds to the session."""
        if isinstance(event, UtteranceEnded):
            self._order(lambda recorder, number: self._utterance(recorder, number, event), event.turn, begins=True)
        elif isinstance(event, TurnEnded):
            audio, rate = (voice.heard_audio, voice.heard_rate) if event.turn.heard else (None, SAMPLE_RATE)
            turn = event.turn
            self._order(
                lambda recorder, number: recorder.ended(TurnEnded(replace(turn, number=number)), audio, rate),
                turn.number,
                begins=True,
            )
        elif isinstance(event, Transcribed):
            # The transcript may come after the turn's end.
            self._write_line("transcribed", event.turn, text=event.text, language=event.language)
        elif isinstance(event, TurnUndone):
            self._write_line("undone", event.turn)
        elif isinstance(event, StateChanged) and not event.user_speaking:
            self._order(lambda recorder, _: recorder.dropped())
        elif isinstance(event, Ready):
            self._order(lambda recorder, _: recorder.note("model_ready", **event.about))
        elif isinstance(event, Failed):
            self._write_line("failed", event.turn, message=event.message)

    def close(self) -> None:
        """End the session and the thread."""
        self._orders.put(None)
        self._thread.join()
        if self.recorder is not None:
            self.recorder.close()

    # ---- on the writer's thread

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            order()

    def _order(self, write: Callable[[Recorder, int], None], turn: int | None = None, *, begins: bool = False) -> None:
        """Call `write` with the recorder and the turn's number in its session, if it belongs to one.

        Args:
            turn: None: what is written belongs to no turn.
            begins: whether a session may begin with it.
        """
        self._orders.put(lambda: self._write(write, turn, begins=begins))

    def _write_line(self, kind: str, turn: int | None, **values: Any) -> None:
        def write(recorder: Recorder, number: int) -> None:
            recorder.note(kind, turn=number if turn is not None else None, **values)

        self._order(write, turn)

    def _write(self, write: Callable[[Recorder, int], None], turn: int | None, *, begins: bool) -> None:
        if turn is not None:
            if self._until is not None and turn > self._until:
                self._begin()
            if self._after is None and begins:
                self._after = turn - 1
            if self._after is None or turn <= self._after:
                return
        if self.recorder is not None:
            write(self.recorder, (turn or 0) - (self._after or 0))

    def _notify(self, messages: Iterable[str]) -> None:
        for message in messages:
            self._report(Failed(None, message))

    def _record(self, root: Path | None, keep_days: int | None) -> None:
        self._keep_days = keep_days
        if root is not None:
            self._notify(tidy(root, keep_days))
        if root != self._root:
            self._root = root
            self._begin()

    def _begin(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
        self.recorder = self._after = self._until = None
        if self._root is not None:
            about = {**self._about(), "keep_days": self._keep_days}
            self.recorder = Recorder(self._root, self._report, about=about)

    def _utterance(self, recorder: Recorder, number: int, event: UtteranceEnded) -> None:
        recorder.utterance(number, event.message)
        if recorder.recording and recorder.folder is not None:
            self._places[event.turn] = (recorder.folder, number)

    def _correct(self, turn: Turn, emotion: str | None, *, consent: bool) -> None:
        place = self._places.get(turn.number)
        try:
            if place is not None:
                correct(*place, emotion, consent=consent, corrections=self._corrections)
            elif self._corrections is not None:
                keep(self._corrections, turn, emotion if consent else None, self._unrecorded)
        except AssistantError as error:
            self._report(Failed(turn.number, str(error)))
        except OSError as error:
            why = error.strerror or error
            self._report(Failed(turn.number, f"The correction cannot be kept ({why}): free space."))
