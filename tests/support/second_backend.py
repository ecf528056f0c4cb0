"""A second model behind the backend protocol: no Whisper, no Llama, no Transformers. And a server that knows it.

It hears by the energy of 20 ms frames through one linear layer and answers with a GRU over a few words. Its weights
are random; what matters is that the assistant needs nothing else from a model.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from assistant.backend.protocol import ModelChoice
from assistant.events import EMOTIONS, EmotionReading, Exchange, Message, Spoken
from model.checkpoints.memory_plan import Plan
from model.commands.server import serve as serve_backend
from model.errors import WeightsMissing
from model.inference.backends import LOADERS, Loader, Report

KIND = "tiny_gru"
WORDS = ("yes", "no", "maybe", "tomorrow", "here", "there", "and", "then")


class TinyGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ear = nn.Linear(1, len(EMOTIONS))
        self.words = nn.Embedding(len(WORDS), 16)
        self.cell = nn.GRUCell(16, 16)
        self.out = nn.Linear(16, len(WORDS))


def make_checkpoint(folder: Path) -> Path:
    """A checkpoint folder of this kind."""
    folder.mkdir()
    torch.manual_seed(7)
    save_file(TinyGru().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": KIND}))
    return folder


class SecondBackend:
    transcribes_first = False

    def __init__(self, model: TinyGru) -> None:
        self.model = model
        self.said = 0

    def about(self) -> Mapping[str, Any]:
        return {"name": "tiny GRU", "device": "cpu", "quantize": "none", "path": "speech", "frame_seconds": 0.02,
                "reads_emotion": True}  # fmt: skip

    @torch.inference_mode()
    def hear(self, message: Spoken) -> EmotionReading | None:
        frames = message.samples[: len(message.samples) // 320 * 320].reshape(-1, 320)
        energy = torch.from_numpy(np.log(np.square(frames).mean(1, keepdims=True) + 1e-6))
        shares = self.model.ear.weight[:, 0] * energy / len(energy)
        logits = shares.sum(0) + self.model.ear.bias
        probabilities = logits.softmax(0).numpy()
        label = EMOTIONS[int(probabilities.argmax())]
        return EmotionReading(probabilities, label, 0.02, shares.numpy(), self.model.ear.bias.numpy())

    def transcribe(self, message: Spoken) -> tuple[str, str] | None:
        return None

    @torch.inference_mode()
    def reply(
        self, history: Sequence[Exchange], message: Message, *, empathy: bool, cancelled: Callable[[], bool]
    ) -> Iterator[str]:
        seed = zlib.crc32(repr((len(history), empathy)).encode())
        state = torch.full((1, 16), (seed % 97) / 97)
        word = torch.tensor([seed % len(WORDS)])
        for self.said in range(1, 6):
            if cancelled():
                return
            yield f"{WORDS[int(word)]} "
            state = self.model.cell(self.model.words(word), state)
            logits = self.model.out(state)
            logits[0, word] = -1e9  # no word twice in a row
            word = logits.argmax(1)
        yield "indeed."

    def figures(self) -> Mapping[str, float]:
        return {"tokens": float(self.said)}

    def prepare(self, history: Sequence[Exchange], *, empathy: bool, cancelled: Callable[[], bool]) -> None:
        """It keeps nothing between calls."""

    def forget(self) -> None:
        """It keeps nothing between calls."""


def _load(choice: ModelChoice, progress: Report) -> SecondBackend:
    model = TinyGru()
    try:
        model.load_state_dict(load_file(Path(choice.source) / "model.safetensors"))
    except OSError as error:
        raise WeightsMissing(f"{choice.source} holds no weights: make the checkpoint again.") from error
    return SecondBackend(model.eval())


def _plan(choice: ModelChoice, context: int | None) -> Plan:
    raise WeightsMissing("Four kilobytes fit everywhere.")


def serve(connection: Connection, cancelled: Any, choice: ModelChoice) -> None:
    """The model process's server, with one more entry in the dictionary of loaders."""
    LOADERS[KIND] = Loader(_load, _plan)
    serve_backend(connection, cancelled, choice)
