"""Checkpoints of the original's form for the tests of converting: written anew, and what must come of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.convert import convert, examine
from model.checkpoints.safe_reader import list_tensors, read_shard
from model.weights import fetch
from tests import GOLDENS

CHECKPOINTS = GOLDENS / "checkpoints"
State = dict[str, Tensor]
Change = Callable[[State, dict[str, Any]], object]


def state_of(folder: Path) -> State:
    return {
        name: tensor
        for file in sorted({i.file for i in list_tensors(folder).values()})
        for name, tensor in read_shard(file).items()
    }


def variant(source: Path, folder: Path, form: str = "bin", shards: int = 1, change: Change | None = None) -> Path:
    """Write the checkpoint `source` anew: another format, other shards, other contents."""
    state, config = dict(state_of(source)), json.loads((source / "config.json").read_text())
    if change:
        change(state, config)
    folder.mkdir(exist_ok=True)
    for name in ("generation_config.json", "qwen.tiktoken"):
        shutil.copy(source / name, folder)
    (folder / "config.json").write_text(json.dumps(config))
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    weight_map = {}
    for number in range(shards):
        part = {name: tensor.clone() for name, tensor in list(state.items())[number::shards]}
        file = f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        if form == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization=form == "bin")
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


RENAMES = {
    r"whisper_model\.": "encoder.",
    r"adapter\.subsampler\.conv_layers": "adapter.convolutions",
    r"adapter\.speech_ln": "adapter.norm",
    r"adapter\.(pre|post)_cif_layers": r"adapter.\1_layers",
    r"adapter\.cif_proj": "adapter.projection",
    r"adapter\.token_embed_proj": "adapter.token_projection",
    r"adapter\.lm_head": "adapter.token_head",
    r"hidden2emotion": "emotion_head",
    r"(qwen_model\.)(?:model\.)?": "language_model.",
    r"\.transformer\.wte": ".model.embed_tokens",
    r"\.transformer\.ln_f": ".model.norm",
    r"\.transformer\.h\.": ".model.layers.",
    r"\.ln_1": ".input_layernorm",
    r"\.ln_2": ".post_attention_layernorm",
    r"\.attn\.c_proj": ".self_attn.o_proj",
    r"\.mlp\.c_proj": ".mlp.down_proj",
    r"\.w1": ".up_proj",
    r"\.w2": ".gate_proj",
}


def expected(state: State) -> State:
    """What the converted checkpoint must hold, from the facts about the original's names."""
    found: State = {}
    for old, tensor in state.items():
        linear, _, leaf = old.rpartition(".lora_") if ".lora_" in old else old.rpartition(".")
        has_lora = f"{linear}.lora_A.default.weight" in state
        if ".lora_" in old:
            leaf = "lora_" + leaf[0].lower()
        elif has_lora:
            leaf = f"base.{leaf}"
        new = linear
        for pattern, replacement in RENAMES.items():
            new = re.sub(pattern, replacement, new)
        if new.endswith(".attn.c_attn"):
            new = new.removesuffix(".attn.c_attn")
            rows = [tensor] * 3 if leaf == "lora_a" else tensor.chunk(3)
            found |= {f"{new}.self_attn.{part}_proj.{leaf}": row for part, row in zip("qkv", rows, strict=True)}
        else:
            found[f"{new}.{leaf}"] = tensor
    if "emotion_head.weight" in found:
        width = found["emotion_head.weight"].shape[1]
        found |= {"emotion_head.centre": torch.zeros(width), "emotion_head.offset": torch.zeros(5)}
        found["emotion_head.temperature"] = torch.ones(())
    return found


def equal(actual: State, wanted: State) -> bool:
    return actual.keys() == wanted.keys() and all(
        actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor) for name, tensor in wanted.items()
    )


def converted(source: Path, target: Path, **options: Any) -> Path:
    convert(examine(source, **options), target)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupted_after(count: int) -> Callable[[fetch.Progress], None]:
    calls = iter(range(count))

    def step(_: fetch.Progress) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return step
