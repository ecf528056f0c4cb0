"""What the model's process tells of itself once it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from assistant.backend.protocol import Loading, ModelChoice, Ready
from model.checkpoints import loader
from model.commands.server import serve
from tests.support.tiny import tiny_checkpoint


class Pipe:
    """The child's side of the pipe: keeps what is sent, and has one request, to end."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.send: Callable[[Any], None] = self.sent.append

    def poll(self) -> bool:
        return False

    def recv(self) -> None:
        return None


@pytest.mark.parametrize(("context", "emitted"), [(4096, False), (1024, True)])
def test_a_conversation_cut_short_for_memory_is_told(
    monkeypatch: pytest.MonkeyPatch, context: int, emitted: bool
) -> None:
    monkeypatch.setattr(loader, "load", lambda *_args, **_kwargs: replace(tiny_checkpoint(), context=context))
    pipe = Pipe()
    serve(pipe, None, ModelChoice("tiny"))  # type: ignore[arg-type]  # all of a connection that it needs
    loading, ready = pipe.sent
    assert isinstance(loading, Loading)
    assert isinstance(ready, Ready)
    assert "runs on the CPU" in ready.about["why"]
    assert ("Memory is short: 1024 positions" in ready.about["why"]) is emitted
