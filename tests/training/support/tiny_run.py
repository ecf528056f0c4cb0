"""A tiny checkpoint and a tiny prepared data set to train on, made by the commands themselves; what a run says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers import WhisperForConditionalGeneration as Whisper

import training
from assistant.events import EMOTIONS
from tests.support.tiny import SPEECH, TEXT, tiny_tokenizer
from training.data.prepare import prepare
from training.runs.config import InitOptions, PrepareOptions, TrainOptions
from training.runs.run_folder import read_progress
from training.stages.init import init

CONFIGS = Path(training.__file__).parent / "accelerate"
TEXTS = ("the rain in spain", "open the door", "what a day", "stay here a little longer then", "no", "an inner thing")


def make_checkpoint(folder: Path, **changes: object) -> Path:
    """An `init` checkpoint of a tiny Whisper and a tiny Llama, in `folder`/start."""
    torch.manual_seed(0)
    speech = WhisperConfig(**SPEECH, encoder_layers=1, encoder_ffn_dim=32, decoder_attention_heads=4)
    Whisper(speech).save_pretrained(folder / "speech")
    WhisperFeatureExtractor().save_pretrained(folder / "speech")
    text = LlamaForCausalLM(
        LlamaConfig(
            **TEXT,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
    for parameter in text.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    text.generation_config.eos_token_id = 265
    text.save_pretrained(folder / "text")
    tiny_tokenizer().save_pretrained(folder / "text")
    given = {"out": folder / "start", "speech": str(folder / "speech"), "text": str(folder / "text")}
    init(InitOptions.of(given | {"kernels": "5,3", "inner": 16, "lora_rank": 4, "window": "trimmed"} | changes))
    return folder / "start"


def make_data(folder: Path, checkpoint: Path, rows: int = 24, **changes: object) -> Path:
    """A prepared data set of short noises, in `folder`/data; a quarter of it for validation."""
    (folder / "manifests").mkdir(parents=True)
    random = np.random.default_rng(0)
    lines = []
    for row in range(rows):
        samples = random.normal(0, 0.1, int(16000 * random.uniform(0.3, 0.9))).clip(-1, 1)
        soundfile.write(folder / f"{row % 8}_{row}.wav", samples, 16000)
        text = TEXTS[row % len(TEXTS)]
        line = {"audio": f"{row % 8}_{row}.wav", "text": text, "emotion": EMOTIONS[row % 5]}
        lines.append(json.dumps(line | {"output": f"{text[:9]} and"}))
    (folder / "manifests" / "rows.jsonl").write_text("\n".join(lines) + "\n")
    given = {"dataroot": folder / "manifests", "save_dir": folder / "data", "model": str(checkpoint)}
    given |= {"min_duration": 0.1, "validation": 0.25, "use_emotion": True}
    prepare(PrepareOptions.of(given | changes))
    return folder / "data"


def options(folder: Path, name: str, **changes: object) -> TrainOptions:
    """Options of a run of eight steps over `folder`'s checkpoint and data, in `folder`/name."""
    given = {"data": folder / "data", "model": str(folder / "start"), "run": folder / name}
    given |= {"batch_size": 4, "rows_at_once": 2, "max_steps": 8, "validate_every": 4, "learning_rate": 1e-3}
    return TrainOptions.of(given | {"warmup_steps": 2} | changes)


def losses(run: Path) -> dict[int, float]:
    """The loss of every step; the last report counts."""
    return {line["step"]: line["loss"] for line in read_progress(run) if line["stage"] != "features" and line["loss"]}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def near(one: dict[int, float], other: dict[int, float], tolerance: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(abs(other[step] / one[step] - 1) < tolerance for step in one)
