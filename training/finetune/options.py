"""The options of `tune` and `check`: one definition for command line, run.toml and wizard. Knows no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from assistant.events import EMOTIONS
from assistant.options import POSITIONAL
from training.runs.config import IGNORE, Options, Pairs

What = Literal["head", "stage1", "stage2", "both"]


class TuneOptions(Options):
    """`tune`: fine-tune a checkpoint on the user's own recordings, and compare it on held-out ones."""

    run: Path = Field(description="the run folder", json_schema_extra=POSITIONAL)
    manifest: Path = Field(description="JSONL with audio, text, emotion, as written by `check --write`")
    model: str = Field("mini", description="preset or checkpoint folder to start from")
    what: What = Field(
        "head",
        description="head: only the emotion reading; stage1: words (adapter); stage2: emotion "
        "(adapter, partial LoRA, head); both: one after the other",
    )
    folds: int = Field(5, ge=2, le=20, description="parts; each is read by a head trained on the others")
    steps: int = Field(60, ge=1, le=100_000, description="steps of the fit, or of each stage")
    learning_rate: float | None = Field(None, gt=0, le=1, description="of the stages")
    batch_size: int = Field(8, ge=1, description="rows per step, in the stages")
    rows_at_once: int = Field(2, ge=1, description="rows per pass: fewer need less memory")
    validation: float = Field(0.2, gt=0, lt=0.9, description="share of rows held out from the stages")
    judged: int = Field(8, ge=0, le=1000, description="number of neutral rows whose continuation loss is compared")
    replies: int = Field(4, ge=0, le=100, description="number of recordings answered before and after")
    seed: int = Field(0, ge=0, description="of the division of the rows")


class CheckOptions(Options):
    """`check`: how usable recordings are. SOURCE is a manifest, a folder, or the user's corrections.jsonl."""

    source: Path = Field(description="JSONL, or a folder of recordings", json_schema_extra=POSITIONAL)
    emotion_map: Pairs = Field({}, description="map other emotion labels: joy=happy,fear=ignore")
    write: Path | None = Field(None, description="write a manifest of the usable recordings")

    @model_validator(mode="after")
    def _emotions_known(self) -> Self:
        for name, target in self.emotion_map.items():
            if target not in (*EMOTIONS, IGNORE):
                raise ValueError(f"--emotion-map: {name}={target} is none of {', '.join((*EMOTIONS, IGNORE))}")
        return self
