"""Backends by the checkpoint's `model_type`: the one place where another model is added.

A loader takes a `ModelChoice` and returns an `assistant.backend.protocol.Backend`; the model process serves whatever
it returns. To add a model, write a class with the protocol's methods and put its loader into `LOADERS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from assistant.backend.protocol import Backend, ModelChoice
from assistant.events import EmotionReading, Exchange, Message, Spoken
from model.checkpoints import loader, memory_plan
from model.checkpoints.inventory import longest_context
from model.checkpoints.memory import memory_of
from model.checkpoints.memory_plan import Plan
from model.checkpoints.safe_reader import read_config
from model.config import SpeechLanguageConfig
from model.inference.engine import Engine
from model.weights.fetch import Progress

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Loader:
    """How one kind of model is planned and loaded.

    Attributes:
        load: takes the choice and a callback for download progress; returns the backend, or raises a `ModelError`.
        plan: takes the choice and the positions of conversation to keep (None: as many as fit); returns what each
            way to load it needs of memory, before anything is loaded.
    """

    load: Callable[[ModelChoice, Report], Backend]
    plan: Callable[[ModelChoice, int | None], Plan]


class SpeechLanguageBackend:
    """BLSP-Emo and its relatives, as `Backend`: Whisper's encoder, adapter or transcript, and a causal LM.

    Args:
        engine: with the loaded checkpoint.
        load_ms: what loading took, for `about`.
    """

    def __init__(self, engine: Engine, load_ms: float) -> None:
        self.engine = engine
        self.transcribes_first = engine.model.config.path == "transcript"
        self._load_ms = load_ms
        self._encode_ms = 0.0

    def about(self) -> Mapping[str, Any]:
        """See `Backend.about`."""
        checkpoint, config = self.engine.checkpoint, self.engine.model.config
        on_gpu = checkpoint.device == "cuda"
        return {
            "name": checkpoint.name,
            "device": checkpoint.device,
            "quantize": checkpoint.quantize,
            "why": " ".join(_compromises(checkpoint)),
            "memory_bytes": torch.cuda.memory_reserved() if on_gpu else memory_of("cpu").held,
            "path": config.path,
            "frame_seconds": config.frame_seconds,
            "reads_emotion": checkpoint.model.emotion_head is not None,
            "prosody_estimate": config.emotion_source == "encoder",
            "load_ms": self._load_ms,
        }

    def hear(self, message: Spoken) -> EmotionReading | None:
        """See `Backend.hear`."""
        hearing = self.engine.hear(message)
        self._encode_ms = hearing.encode_ms
        return hearing.reading

    def transcribe(self, message: Spoken) -> tuple[str, str] | None:
        """See `Backend.transcribe`."""
        words = self.engine.transcript(message)
        return None if words is None else (words.text, words.language)

    def reply(
        self, history: Sequence[Exchange], message: Message, *, empathy: bool, cancelled: Callable[[], bool]
    ) -> Iterator[str]:
        """See `Backend.reply`."""
        if not isinstance(message, Spoken):
            self._encode_ms = 0.0
        return self.engine.reply(history, message, empathy=empathy, cancelled=cancelled)

    def figures(self) -> Mapping[str, float]:
        """See `Backend.figures`."""
        return {"encode_ms": self._encode_ms} | asdict(self.engine.figures)

    def prepare(self, history: Sequence[Exchange], *, empathy: bool, cancelled: Callable[[], bool]) -> None:
        """See `Backend.prepare`."""
        self.engine.prepare(history, empathy=empathy, cancelled=cancelled)

    def forget(self) -> None:
        """See `Backend.forget`."""
        self.engine.forget()


def load_speech_language(choice: ModelChoice, progress: Report) -> Backend:
    """Load a preset, or a folder of this project's format.

    Raises:
        WeightsMissing, BadInput: as `model.checkpoints.loader.load`.
    """
    started = time.perf_counter()
    checkpoint = loader.load(
        choice.source, device=choice.device, quantize=choice.quantize, threads=choice.threads, progress=progress
    )
    engine = Engine(checkpoint)
    return SpeechLanguageBackend(engine, (time.perf_counter() - started) * 1e3)


def plan_speech_language(choice: ModelChoice, context: int | None) -> Plan:
    """Plan a preset, or a folder of this project's or the original's format.

    Raises:
        WeightsMissing: there is no such checkpoint, or its parts were not fetched yet.
    """
    about = loader.inspect(choice.source)
    return memory_plan.plan(about, device=choice.device, quantize=choice.quantize, context=context)


LOADERS: dict[str, Loader] = {SpeechLanguageConfig.model_type: Loader(load_speech_language, plan_speech_language)}
"""By the `model_type` in a checkpoint folder's config.json."""


def loader_of(source: str) -> Loader:
    """The loader of a preset or a checkpoint folder.

    A preset and a folder of an unknown type go to the project's own loader, which reports what is wrong with the
    latter.

    Args:
        source: a preset's name, or a folder.

    Returns:
        The loader.
    """
    kind = None
    if source not in loader.presets() and (Path(source) / "config.json").is_file():
        kind = read_config(Path(source)).get("model_type")
    return LOADERS.get(kind or "", LOADERS[SpeechLanguageConfig.model_type])


def _compromises(checkpoint: loader.Checkpoint) -> Iterator[str]:
    """Why a CPU is used, and what there was too little memory for."""
    if checkpoint.device == "cpu":
        if torch.cuda.is_available():
            yield "It runs on the CPU, as chosen."
        else:
            why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA GPU was found"
            yield f"It runs on the CPU: {why}."
    longest = longest_context(checkpoint.model.language_model.config)
    if checkpoint.context < longest:
        yield f"Memory is short: {checkpoint.context} positions of conversation are kept instead of {longest}."
