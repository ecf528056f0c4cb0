"""The model process: takes asks from a pipe, answers through it, and survives every failed ask.

It runs in a child of the assistant (`assistant.backend.model_process`) and serves any `Backend`. Decoding happens on
the main thread, and every piece of text goes straight to the pipe; the cancel number is read before every token.
"""

from __future__ import annotations

import collections
import gc
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from assistant.backend.protocol import Backend, LoadFailed, Loading, ModelChoice, Ready
from assistant.events import Spoken
from assistant.messages import Ask, ModelDone, ModelFailed, ModelReading, ModelText, ModelTranscript, Prepare
from model.commands.options import quiet_libraries
from model.errors import ModelError
from model.inference.backends import loader_of
from model.weights.fetch import Progress

_REPORT_SECONDS = 0.2


def serve(connection: Connection, cancelled: Any, choice: ModelChoice) -> None:
    """Load a backend and answer until the pipe is closed or None comes.

    Args:
        connection: this side of the pipe.
        cancelled: a shared integer: every ask up to it is cancelled.
        choice: what to load.
    """
    quiet_libraries()  # progress goes through the pipe
    connection.send(Loading(f"Loading {choice.source} ..."))
    try:
        backend = loader_of(choice.source).load(choice, _progress(connection))
    except ModelError as error:
        connection.send(LoadFailed(str(error)))
        return
    except (MemoryError, torch.OutOfMemoryError):
        connection.send(LoadFailed("Memory ran out while loading: close other programs, or choose a smaller model."))
        return
    connection.send(Ready(backend.about()))
    _Server(connection, cancelled, backend).run()


def _progress(connection: Connection) -> Callable[[Progress], None]:
    last = 0.0

    def notify(step: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _REPORT_SECONDS or step.done == step.total:
            last = now
            share = f" {step.done / step.total:.0%}" if step.total else ""
            connection.send(Loading(f"{step.what}{share}"))

    return notify


class _Server:
    def __init__(self, connection: Connection, cancelled: Any, backend: Backend) -> None:
        self.connection = connection
        self.cancelled = cancelled
        self.backend = backend
        self.waiting: collections.deque[Ask | Prepare | None] = collections.deque()

    def run(self) -> None:
        while True:
            try:
                if not self.waiting:
                    self.waiting.append(self.connection.recv())
                self._collect()
                request = self.waiting.popleft()
                if request is None:
                    return
                if isinstance(request, Ask):
                    self._answer(request)
                elif not self.waiting:
                    self._prepare(request)
            except (EOFError, OSError):  # the assistant is gone
                return

    def _collect(self) -> None:
        while self.connection.poll():
            self.waiting.append(self.connection.recv())

    def _answer(self, ask: Ask) -> None:
        if self._is_cancelled(ask.ask):
            return
        try:
            self._reply(ask)
        except ModelError as error:
            self.connection.send(ModelFailed(ask.ask, str(error)))
        except (MemoryError, torch.OutOfMemoryError):
            self.backend.forget()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            remedy = "close other programs, begin a new conversation, or choose a smaller model."
            self.connection.send(ModelFailed(ask.ask, f"Memory ran out: {remedy}"))

    def _reply(self, ask: Ask) -> None:
        backend, send, message = self.backend, self.connection.send, ask.message
        if isinstance(message, Spoken):
            send(ModelReading(ask.ask, backend.hear(message)))
            if backend.transcribes_first:
                self._transcribe(ask, message)
        for piece in backend.reply(
            ask.history, message, empathy=ask.empathy, cancelled=lambda: self._is_cancelled(ask.ask)
        ):
            send(ModelText(ask.ask, piece))
        if self._is_cancelled(ask.ask):
            return
        send(ModelDone(ask.ask, backend.figures()))
        if isinstance(message, Spoken) and not backend.transcribes_first:
            self._collect()
            if not any(isinstance(request, Ask) for request in self.waiting):
                self._transcribe(ask, message)

    def _transcribe(self, ask: Ask, message: Spoken) -> None:
        words = self.backend.transcribe(message)
        if words is not None:
            self.connection.send(ModelTranscript(ask.ask, *words))

    def _prepare(self, prepare: Prepare) -> None:
        try:
            self.backend.prepare(prepare.history, empathy=prepare.empathy, cancelled=self.connection.poll)
        except (ModelError, MemoryError, torch.OutOfMemoryError):
            self.backend.forget()  # only a preparation: the next ask reports what is wrong

    def _is_cancelled(self, ask: int) -> bool:
        return bool(self.cancelled.value >= ask)
