"""The model process: takes asks from a pipe, answers through it, and outlives every failed ask.

Runs in a child of the assistant (`assistant.backend.model_process`). Decoding happens on the main thread and
every piece of text goes straight to the pipe; the cancel number is read before every token.
"""

from __future__ import annotations

import collections
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch

from assistant.events import Spoken
from assistant.messages import (
    Ask,
    LoadFailed,
    Loading,
    ModelChoice,
    ModelDone,
    ModelFailed,
    ModelReading,
    ModelText,
    ModelTranscript,
    Prepare,
    Ready,
)
from model.checkpoints import loader
from model.checkpoints.inventory import longest_context
from model.checkpoints.loader import Checkpoint
from model.checkpoints.memory import memory_of
from model.commands.options import quiet_libraries
from model.errors import ModelError
from model.inference.engine import Engine
from model.weights.fetch import Progress

_REPORT_SECONDS = 0.2


def serve(connection: Connection, cancelled: Any, choice: ModelChoice) -> None:
    """Load the checkpoint and answer until the pipe is closed or None comes.

    Args:
        connection: this side of the pipe.
        cancelled: a shared integer: every ask up to it is cancelled.
        choice: what to load.
    """
    started = time.perf_counter()
    quiet_libraries()  # loading is told through the pipe
    connection.send(Loading(f"Loading {choice.source} ..."))
    try:
        loaded = loader.load(
            choice.source,
            device=choice.device,
            quantize=choice.quantize,
            threads=choice.threads,
            progress=_progress(connection),
        )
        engine = Engine(loaded)
    except ModelError as error:
        connection.send(LoadFailed(str(error)))
        return
    except (MemoryError, torch.OutOfMemoryError):
        connection.send(LoadFailed("Memory ran out while loading: close other programs, or choose a smaller model."))
        return
    config = loaded.model.config
    about = {
        "name": loaded.name,
        "device": loaded.device,
        "quantize": loaded.quantize,
        "why": " ".join(_compromises(loaded)),
        "memory_bytes": _held(loaded.device),
        "path": config.path,
        "frame_seconds": config.frame_seconds,
        "reads_emotion": loaded.model.emotion_head is not None,
        "prosody_estimate": config.emotion_source == "encoder",
        "load_ms": (time.perf_counter() - started) * 1e3,
    }
    connection.send(Ready(about))
    _Server(connection, cancelled, engine).run()


def _compromises(loaded: Checkpoint) -> Iterator[str]:
    """Why a CPU is used, and what there was too little memory for."""
    if loaded.device == "cpu":
        if torch.cuda.is_available():
            yield "It runs on the CPU, as chosen."
        else:
            why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA GPU was found"
            yield f"It runs on the CPU: {why}."
    longest = longest_context(loaded.model.language_model.config)
    if loaded.context < longest:
        yield f"Memory is short: {loaded.context} positions of conversation are kept instead of {longest}."


def _held(device: str) -> int:
    """Bytes that the loaded model's process holds, on the card if it is there."""
    return torch.cuda.memory_reserved() if device == "cuda" else memory_of("cpu").held


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
    def __init__(self, connection: Connection, cancelled: Any, engine: Engine) -> None:
        self.connection = connection
        self.cancelled = cancelled
        self.engine = engine
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
            self.engine.forget()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            remedy = "close other programs, begin a new conversation, or choose a smaller model."
            self.connection.send(ModelFailed(ask.ask, f"Memory ran out: {remedy}"))

    def _reply(self, ask: Ask) -> None:
        engine, send, message = self.engine, self.connection.send, ask.message
        encode_ms = 0.0
        words_first = engine.model.config.path == "transcript"
        if isinstance(message, Spoken):
            hearing = engine.hear(message)
            encode_ms = hearing.encode_ms
            send(ModelReading(ask.ask, hearing.reading))
            if words_first:
                self._words(ask, message)
        for piece in engine.reply(
            ask.history, message, empathy=ask.empathy, cancelled=lambda: self._is_cancelled(ask.ask)
        ):
            send(ModelText(ask.ask, piece))
        if self._is_cancelled(ask.ask):
            return
        send(ModelDone(ask.ask, {"encode_ms": encode_ms} | asdict(engine.figures)))
        if isinstance(message, Spoken) and not words_first:
            self._collect()
            if not any(isinstance(request, Ask) for request in self.waiting):
                self._words(ask, message)

    def _words(self, ask: Ask, message: Spoken) -> None:
        words = self.engine.transcript(message)
        if words is not None:
            self.connection.send(ModelTranscript(ask.ask, words.text, words.language))

    def _prepare(self, prepare: Prepare) -> None:
        try:
            self.engine.prepare(prepare.history, empathy=prepare.empathy, cancelled=self.connection.poll)
        except (ModelError, MemoryError, torch.OutOfMemoryError):
            self.engine.forget()  # only a preparation: the next ask reports what is wrong

    def _is_cancelled(self, ask: int) -> bool:
        return bool(self.cancelled.value >= ask)
