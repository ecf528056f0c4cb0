"""Shared state of the sections: sizes, clock, the model between sections."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, WhisperConfig

from model.config import SpeechLanguageConfig
from model.nn.speech_llm import SpeechLanguageModel

Figures = dict[str, float | int | str | bool | None]
"""A section's results, with units in the names."""

FRAMES = 500
"""Encoder frames of 10 s of speech."""

_REPEATS = 3


@dataclass(frozen=True)
class Size:
    """Sizes of the model and the measurements; lengths in positions."""

    speech: dict[str, Any]
    text: dict[str, Any]
    adapter_inner: int
    context: int
    prompt: int
    new_tokens: int
    batch: int
    text_tokens: int
    steps: int
    copy_bytes: int
    learning_rate: float

    def config(self) -> SpeechLanguageConfig:
        """The checkpoint's config: three convolutions of kernel 5, LoRA of rank 16 on every linear layer."""
        return SpeechLanguageConfig(
            speech_config=WhisperConfig(**self.speech),
            text_config=Qwen2Config(**self.text, bos_token_id=None, eos_token_id=None, pad_token_id=None),
            adapter_inner_size=self.adapter_inner,
            lora_rank=16,
        )


SIZES = {
    "full": Size(
        speech={"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
        text={
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 8192,
        },
        adapter_inner=512, context=4096, prompt=256, new_tokens=128, batch=8, text_tokens=64, steps=50,
        copy_bytes=4 << 30, learning_rate=3e-4,
    ),
    "tiny": Size(
        speech={"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
        text={
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
        },
        adapter_inner=16, context=512, prompt=64, new_tokens=16, batch=2, text_tokens=16, steps=8,
        copy_bytes=16 << 20, learning_rate=3e-3,
    ),
}  # fmt: skip


@dataclass
class Run:
    """One run's settings and what its sections pass on to each other."""

    size: Size
    device: str
    work: Path
    model: Any = None
    logits: Tensor | None = None
    figures: Figures = field(default_factory=dict)
    profile: str = ""

    @property
    def cuda(self) -> bool:
        """Whether this runs on a GPU."""
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The type of what is not quantized."""
        return torch.bfloat16 if self.cuda else torch.float32

    def loaded(self) -> SpeechLanguageModel:
        """The 4-bit model of an earlier section."""
        assert self.model is not None, "no 4-bit model: an earlier section failed"
        return self.model

    def now(self) -> float:
        """Seconds, after all work queued on the device."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], object], repeats: int = _REPEATS) -> float:
        """Median duration of `work` after one warm-up."""
        times = []
        for _ in range(repeats + 1):
            started = self.now()
            work()
            times.append(self.now() - started)
        return statistics.median(times[1:])

    def drop(self) -> None:
        """Free the model."""
        self.model = None
        self.forget_peak()

    def forget_peak(self) -> None:
        """Reset the memory peak."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def prompt(self, rows: int = 1) -> Tensor:
        """Random token ids [rows, prompt], the same every time."""
        ids = torch.randint(0, 500, (rows, self.size.prompt), generator=torch.Generator().manual_seed(5))
        return ids.to(self.device)


def bandwidth(run: Run) -> Figures:
    """Memory bandwidth of a large copy on the device: bytes read and bytes written."""
    source = torch.ones(run.size.copy_bytes // 4, device=run.device)
    target = torch.empty_like(source)
    seconds = run.seconds(lambda: target.copy_(source), 10)
    return {"memory_bandwidth_gb_per_second": 2 * run.size.copy_bytes / seconds / 1e9}
