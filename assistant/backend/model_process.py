"""Supervises the model process: loads, asks, cancels, watches, restarts and replaces it.

A crash or an out-of-memory kill costs one turn and no more: the child keeps only caches, every ask carries the
history. The child's target imports the model by name, so that this process never holds torch.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from assistant.backend.protocol import LoadFailed, Loading, ModelChoice, Ready
from assistant.events import ModelStatus
from assistant.messages import Ask, InboxEvent, ModelDone, ModelFailed, Prepare

_POLL_SECONDS = 0.2
_CLOSE_SECONDS = 5.0


class Model(Protocol):
    """What the conversation needs of a model. Answers go to the callback with the ask's number."""

    def ask(self, ask: Ask) -> None: ...

    def prepare(self, prepare: Prepare) -> None: ...

    def cancel(self, ask: int) -> None: ...

    def close(self) -> None: ...


Report = Callable[[InboxEvent | ModelStatus | Ready], None]


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Seconds without a message after which the child counts as hung: while loading, and while answering."""

    load: float = 600.0
    answer: float = 90.0


def _child(connection: Connection, cancelled: Any, choice: ModelChoice, server: str) -> None:
    """The process's target. Torch is first imported here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the assistant handles Ctrl-C
    importlib.import_module(server).serve(connection, cancelled, choice)


class ModelProcess:
    """A model behind a pipe.

    Args:
        choice: the checkpoint to start with; without a source nothing is loaded until `replace`.
        report: receives every answer and every change of status, on a thread of this object.
        ceilings: when the child counts as hung.
        server: the module that the child runs; tests put a scripted one here.
        clock: seconds, by which the ceilings are measured.
    """

    def __init__(
        self,
        choice: ModelChoice,
        report: Report,
        *,
        ceilings: Ceilings | None = None,
        server: str = "model.commands.server",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.choice = choice
        self._report = report
        self._ceilings = ceilings or Ceilings()
        self._server = server
        self._clock = clock
        self._context = multiprocessing.get_context("spawn")
        # Every ask up to this number is cancelled. No lock: a child that is killed while it holds one keeps it.
        self._cancelled = self._context.Value("q", 0, lock=False)
        self._lock = threading.Lock()
        self._asked: Ask | None = None
        self._ready = False
        self._coming = False  # a child is being started, loads, or is ready
        self._crashes = 0  # since the last complete answer
        self._generation = 0  # incremented when a child is replaced: messages of the old one are ignored
        self._outbox: queue.SimpleQueue[Ask | Prepare | None] = queue.SimpleQueue()
        self._process: Any = None
        self._reader: Any = None
        if choice.source:
            with self._lock:
                self._start()

    # ---- called by the conversation

    def ask(self, ask: Ask) -> None:
        """Answer `ask`; it waits until the model is ready."""
        with self._lock:
            self._asked = ask
            self._heard_at = self._clock()
            if self._ready:
                self._outbox.put(ask)
                return
            coming = self._coming
            if not coming:
                self._asked = None
        if not coming:
            self._break(ask.ask, "No model is loaded: choose one in the settings.")

    def prepare(self, prepare: Prepare) -> None:
        """Prefill a history; ignored while the model is not ready."""
        with self._lock:
            if self._ready:
                self._outbox.put(prepare)

    def cancel(self, ask: int) -> None:
        """Cancel ask number `ask` and every earlier one; they end at the next token."""
        with self._lock:
            self._cancelled.value = max(self._cancelled.value, ask)
            if self._asked is not None and self._asked.ask <= ask:
                self._asked = None

    def replace(self, choice: ModelChoice) -> None:
        """Release the model and load another one. The current ask fails; a waiting ask goes to the new model."""
        if not choice.source:
            self.close()
            return
        self._release(coming=True)
        with self._lock:
            self.choice = choice
            self._crashes = 0
            self._start()

    def close(self) -> None:
        """Release the model; its memory is free when this returns."""
        self._release(coming=False)
        self._report(ModelStatus("stopped", "The model is not loaded."))

    def _release(self, *, coming: bool) -> None:
        with self._lock:
            self._generation += 1
            self._coming = coming
            was_ready, self._ready = self._ready, False
            asked = self._asked if was_ready or not coming else None
            if asked is not None:
                self._cancelled.value = max(self._cancelled.value, asked.ask)
                self._asked = None
            process, reader = self._process, self._reader
            if was_ready:
                self._outbox.put(None)
        if process is None:
            return
        if asked is not None:
            self._break(asked.ask, "The model was released: ask again once one is loaded.")
        if was_ready:
            process.join(_CLOSE_SECONDS)
        if process.is_alive():  # a child that loads does not listen
            process.kill()
            process.join()
        reader.join(_CLOSE_SECONDS)

    # ---- the child and its reader thread

    def _start(self) -> None:
        """The caller holds the lock."""
        self._generation += 1
        self._ready, self._coming = False, True
        ours, theirs = self._context.Pipe()
        target = (theirs, self._cancelled, self.choice, self._server)
        self._process = self._context.Process(target=_child, args=target, daemon=True, name="model")
        self._process.start()
        theirs.close()
        self._heard_at = self._clock()
        self._outbox = queue.SimpleQueue()
        writer = threading.Thread(target=_write, args=(ours, self._outbox), daemon=True, name="model writer")
        writer.start()
        arguments = (ours, self._outbox, writer, self._process, self._generation)
        self._reader = threading.Thread(target=self._read, args=arguments, daemon=True, name="model reader")
        self._reader.start()

    def _read(
        self,
        connection: Connection,
        outbox: queue.SimpleQueue[Any],
        writer: threading.Thread,
        process: Any,
        generation: int,
    ) -> None:
        hung = False
        while True:
            try:
                if connection.poll(_POLL_SECONDS):
                    self._take(connection.recv(), generation)
                elif self._hangs(generation):
                    hung = True
                    process.kill()
                    break
                elif not process.is_alive() and not connection.poll():
                    break
            except (EOFError, OSError):
                break
        process.join()
        outbox.put(None)
        writer.join(_CLOSE_SECONDS)
        connection.close()
        self._exited(process.exitcode, generation, hung=hung)

    def _take(self, message: Any, generation: int) -> None:
        with self._lock:
            if generation != self._generation:
                return
            self._heard_at = self._clock()
            broken = None
            if isinstance(message, LoadFailed):
                self._generation += 1  # its exit is expected
                self._coming = False
                broken, self._asked = self._asked, None
            elif isinstance(message, Ready):
                self._ready = True
                if self._asked is not None:
                    self._outbox.put(self._asked)
            elif isinstance(message, ModelDone | ModelFailed):
                self._crashes = 0
                if self._asked is not None and self._asked.ask <= message.ask:
                    self._asked = None
        if isinstance(message, Loading):
            self._report(ModelStatus("loading", message.text))
        elif isinstance(message, LoadFailed):
            self._report(ModelStatus("failed", message.message))
            if broken is not None:
                self._break(broken.ask, message.message)
        else:
            self._report(message)
        if isinstance(message, Ready):
            self._report(ModelStatus("ready", f"{message.about.get('name', self.choice.source)} is ready."))

    def _hangs(self, generation: int) -> bool:
        with self._lock:
            silent = self._clock() - self._heard_at
            if generation != self._generation:
                return False
            if not self._ready:
                return silent > self._ceilings.load
            return self._asked is not None and silent > self._ceilings.answer

    def _exited(self, exitcode: int | None, generation: int, *, hung: bool) -> None:
        """The child ended. If that was unexpected, report why and restart it once."""
        with self._lock:
            if generation != self._generation:
                return
            asked, self._asked = self._asked, None
            was_ready, self._ready = self._ready, False
            self._crashes += 1
            again = self._coming = self._crashes == 1 and was_ready
            if again:
                self._start()
        why = _why(exitcode, hung=hung, loading=not was_ready)
        if again:
            self._report(ModelStatus("loading", f"{why} It is restarting."))
        else:
            self._report(ModelStatus("failed", f"{why} Choose a smaller model, or restart it in the settings."))
        if asked is not None:
            self._break(asked.ask, f"{why} Say it again.")

    def _break(self, ask: int, message: str) -> None:
        self._report(ModelFailed(ask, message))


def _write(connection: Connection, outbox: queue.SimpleQueue[Ask | Prepare | None]) -> None:
    """Send the outbox, until None. On its own thread: a busy child reads late, long histories fill the pipe."""
    with contextlib.suppress(OSError):  # the child is gone: the reader notices and reports
        while True:
            message = outbox.get()
            connection.send(message)
            if message is None:
                return


def _why(exitcode: int | None, *, hung: bool, loading: bool) -> str:
    doing = "while loading" if loading else "while answering"
    if hung:
        return f"The model stopped responding {doing}."
    if exitcode == -9:
        return f"The system stopped the model {doing}, most likely because memory ran out."
    if exitcode is not None and exitcode < 0:
        return f"The model crashed {doing} (signal {-exitcode})."
    return f"The model ended unexpectedly {doing} (exit {exitcode})."
