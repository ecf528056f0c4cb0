"""The conversation loop: endpointing, conversation, model and player joined by one inbox.

Everything that happens (a chunk of sound, an answer of the model, a key) goes into the inbox. One thread takes it
out, owns all state, executes the commands that follow and notifies the listener. The thread is a loop around `take`
and `tick`, which a test may call itself with its own clock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from assistant.audio.clips import ClipPlayer
from assistant.audio.endpointing import Endpointer
from assistant.backend.model_process import Model
from assistant.backend.protocol import Ready
from assistant.events import (
    AudioChunk,
    Event,
    Failed,
    InputLevel,
    ModelStatus,
    Samples,
    State,
)
from assistant.messages import (
    Ask,
    BargeIn,
    CancelAsk,
    Command,
    DiscardUtterance,
    InboxEvent,
    Prepare,
    SettingsChanged,
    SpeechRejected,
    StopRequested,
    Tick,
    TurnSettings,
)
from assistant.speech.playback import ReplyPlayer
from assistant.turns.conversation import Conversation

_BEAT_SECONDS = 0.02
_LEVEL_SECONDS = 0.05

Heard = InboxEvent | AudioChunk | ModelStatus | Ready | Failed


class Listener(Protocol):
    """Receives every event, in order, on the loop's thread; it must not block."""

    def __call__(self, event: Event | Ready) -> None: ...


class InputProcessor(Protocol):
    """Resamples the device's sound to mono 16 kHz and cancels the assistant's own voice."""

    def take(self, chunk: AudioChunk, *, speaking: bool) -> tuple[Samples, Samples]:
        """The chunk as recorded and with the echo cancelled, equally long."""


class ConversationLoop:
    """Owns a conversation and runs it.

    Args:
        endpointer: finds utterances in the microphone's sound.
        processor: resamples the microphone's sound and cancels the echo.
        listener: receives every event.
        tap: receives the microphone's resampled sound, before it is judged.
        clock: seconds; the turns' marks are in them.
    """

    def __init__(
        self,
        endpointer: Endpointer,
        processor: InputProcessor,
        listener: Listener,
        *,
        tap: Callable[[Samples], None] | None = None,
        settings: TurnSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.conversation = Conversation(settings)
        self.endpointer = endpointer
        self.muted = False
        """Whether the microphone is ignored."""
        self.deaf = False
        """Whether speech detection gets silence, during an audio check."""
        self._processor = processor
        self._listener = listener
        self._tap = tap
        self._clock = clock
        self._started = clock()
        self._inbox: queue.SimpleQueue[Heard | Callable[[], None] | None] = queue.SimpleQueue()
        self._level_at = 0.0
        self._model: Model | None = None
        self._voice: ReplyPlayer | None = None
        self._clips: ClipPlayer | None = None
        self._thread: threading.Thread | None = None

    def attach(self, model: Model, voice: ReplyPlayer, clips: ClipPlayer | None = None) -> None:
        """Connect the model and the player, which report to `put`, and the player of recordings."""
        self._model, self._voice, self._clips = model, voice, clips

    # ---- from any thread

    def put(self, happened: Heard | Callable[[], None]) -> None:
        """Put an event, or a call to make on the loop's thread, into the inbox."""
        self._inbox.put(happened)

    def press(self) -> None:
        """The talk key went down."""
        self._inbox.put(lambda: self._hear(self.endpointer.press()))

    def release(self) -> None:
        """The talk key went up."""
        self._inbox.put(self.endpointer.release)

    def stop(self) -> None:
        """Stop listening, thinking, speaking."""
        self._inbox.put(StopRequested())

    def set_hands_free(self, on: bool) -> None:
        """Switch hands-free listening."""
        self._inbox.put(lambda: setattr(self.endpointer, "hands_free", on))

    def set_muted(self, on: bool) -> None:
        """Mute or unmute the microphone; muting discards the utterance in progress."""

        def change() -> None:
            self.muted = on
            if on:
                self.endpointer.drop()
                self._handle(SpeechRejected())

        self._inbox.put(change)

    def configure(self, settings: TurnSettings) -> None:
        """Change the turn settings."""
        self._inbox.put(SettingsChanged(settings))

    def start(self) -> None:
        """Start the loop's thread."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="conversation")
        self._thread.start()

    def close(self) -> None:
        """End the thread. Model, player and devices belong to the caller."""
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()
            self._thread = None

    # ---- on the owner's thread

    @property
    def now(self) -> float:
        """Seconds since the loop was made, by its clock."""
        return self._clock() - self._started

    def take(self, happened: Heard | Callable[[], None]) -> None:
        """Process one item of the inbox."""
        if isinstance(happened, AudioChunk):
            self._take_sound(happened)
        elif isinstance(happened, ModelStatus | Ready | Failed):
            self._listener(happened)
        elif callable(happened):
            happened()
        else:
            self._handle(happened)

    def tick(self) -> None:
        """Time has passed: check playback and timeouts."""
        if self._voice is not None:
            self._voice.pump()
        if self._clips is not None:
            self._clips.pump()
        self._handle(Tick())

    def empty(self) -> None:
        """Process everything in the inbox."""
        while not self._inbox.empty():
            happened = self._inbox.get()
            if happened is not None:
                self.take(happened)

    def _run(self) -> None:
        beat_at = 0.0
        while True:
            try:
                happened = self._inbox.get(timeout=_BEAT_SECONDS)
            except queue.Empty:
                pass
            else:
                if happened is None:
                    return
                self.take(happened)
            if self.now - beat_at >= _BEAT_SECONDS:
                beat_at = self.now
                self.tick()

    def _take_sound(self, chunk: AudioChunk) -> None:
        clip = self._clips is not None and self._clips.playing
        speaking = clip or self.conversation.state is State.SPEAKING
        raw, cleaned = self._processor.take(chunk, speaking=speaking)
        if not len(raw):
            return
        if self._tap is not None:
            self._tap(raw)
        if self.now - self._level_at >= _LEVEL_SECONDS:
            self._level_at = self.now
            power = 0.0 if self.muted else float(np.mean(np.square(raw)))
            self._listener(InputLevel(max(-120.0, 10 * float(np.log10(power + 1e-12)))))
        if self.deaf or (clip and self.conversation.settings.barge_in is not BargeIn.VOICE):
            cleaned = np.zeros_like(cleaned)
        if not self.muted:
            self.endpointer.over_speech = speaking
            self._hear(self.endpointer.feed(raw, cleaned))

    def _hear(self, inbox_events: Iterable[InboxEvent]) -> None:
        for happened in inbox_events:
            self._handle(happened)

    def _handle(self, happened: InboxEvent) -> None:
        for outcome in self.conversation.handle(happened, self.now):
            if isinstance(outcome, Command):
                self._execute(outcome)
            else:
                self._listener(outcome)

    def _execute(self, command: Any) -> None:
        assert self._model is not None, "attach comes first"
        assert self._voice is not None, "attach comes first"
        if isinstance(command, Ask):
            self._model.ask(command)
        elif isinstance(command, Prepare):
            self._model.prepare(command)
        elif isinstance(command, CancelAsk):
            self._model.cancel(command.ask)
        elif isinstance(command, DiscardUtterance):
            self.endpointer.drop()
        else:
            self._voice.execute(command)
