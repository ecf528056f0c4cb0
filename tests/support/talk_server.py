"""A fast model without a model: its source is a file of replies, one a line, taken by the length of the history."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from assistant.backend.protocol import ModelChoice, Ready
from assistant.events import Spoken
from assistant.messages import Ask, ModelDone, ModelReading, ModelText, ModelTranscript


def serve(connection: Connection, cancelled: Any, choice: ModelChoice) -> None:
    replies = Path(choice.source).read_text("utf-8").splitlines()
    connection.send(Ready({"name": "scripted"}))
    while (request := connection.recv()) is not None:
        if not isinstance(request, Ask) or cancelled.value >= request.ask:
            continue
        if isinstance(request.message, Spoken):
            connection.send(ModelReading(request.ask, None))
            connection.send(ModelTranscript(request.ask, f"{len(request.message.samples) / 16_000:.1f} s of speech"))
        for word in replies[len(request.history) % len(replies)].split():
            connection.send(ModelText(request.ask, f"{word} "))
        connection.send(ModelDone(request.ask, {"encode_ms": 1.0}))
