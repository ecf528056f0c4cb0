"""A model process without a model: the source's name is its script. Run in the child by tests of `ModelProcess`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from assistant.backend.protocol import LoadFailed, Loading, ModelChoice, Ready
from assistant.events import Typed
from assistant.messages import Ask, ModelDone, ModelFailed, ModelText, Prepare


def serve(connection: Connection, cancelled: Any, choice: ModelChoice) -> None:
    connection.send(Loading(f"Loading {choice.source} ..."))
    if choice.source == "missing":
        connection.send(LoadFailed("There is no such checkpoint: add it first."))
        return
    if choice.source == "heavy":
        os.kill(os.getpid(), signal.SIGKILL)
    if choice.source == "slow":
        threading.Event().wait()
    connection.send(Ready({"name": choice.source, "torch": "torch" in sys.modules}))
    while (request := connection.recv()) is not None:
        if isinstance(request, Ask):
            _answer(connection, cancelled, request)
        elif isinstance(request, Prepare):
            connection.send(ModelText(-1, f"prepared {len(request.history)}"))


def _answer(connection: Connection, cancelled: Any, ask: Ask) -> None:
    assert isinstance(ask.message, Typed)
    text = ask.message.text
    if text == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if text == "hang":
        threading.Event().wait()
    if text == "memory":
        connection.send(ModelFailed(ask.ask, "Memory ran out: begin a new conversation."))
        return
    while text == "endless" and cancelled.value < ask.ask:
        connection.send(ModelText(ask.ask, "and on "))
    if cancelled.value < ask.ask:
        connection.send(ModelText(ask.ask, f"you said {text}"))
        connection.send(ModelDone(ask.ask))
