"""The original's numbers (tests/goldens/numeric), its batches as our rows, our weights by its names."""

from __future__ import annotations

import json
import re
from functools import cache

import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperFeatureExtractor

from model.audio.features import encoder_frames, log_mel
from model.nn.speech_llm import SpeechLanguageModel
from tests import GOLDENS
from training.data.batches import IGNORED, TrainingRow

NUMBERS = {
    variant: json.loads((GOLDENS / "numeric" / variant / "losses.json").read_text("utf-8")) for variant in "abcd"
}
LORA_NAME = re.compile(r"language_model\.model\.layers\.(\d+)\.(.+)\.lora_([ab])")
LORA_MODULES = {
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.w1",
    "mlp.gate_proj": "mlp.w2",
    "mlp.down_proj": "mlp.c_proj",
}
ADAPTER_PARTS = {
    "convolutions": "subsampler.conv_layers",
    "norm": "speech_ln",
    "pre_layers": "pre_cif_layers",
    "post_layers": "post_cif_layers",
    "projection": "cif_proj",
    "token_projection": "token_embed_proj",
    "token_head": "lm_head",
}


@cache
def recording(name: str) -> tuple[Tensor, int]:
    samples, _ = soundfile.read(GOLDENS / "audio" / f"{name}.wav", dtype="float32")
    return log_mel(WhisperFeatureExtractor(), samples, trimmed=False)[0], encoder_frames(len(samples))


@cache
def rows_of(variant: str, name: str) -> list[TrainingRow]:
    """The rows of one of the original's collated batches."""
    stored = load_file(GOLDENS / "numeric" / variant / f"loss_batch_{name}.safetensors")
    rows = []
    for at, line in enumerate(NUMBERS[variant]["batches"][name]):
        features, frames = recording(line["audio"])
        opening, speech_instruction, text_instruction, text, suffix = (
            stored[f"{segment}_ids"][at][stored[f"{segment}_mask"][at].bool()].tolist()
            for segment in ("start", "audio_instruction", "instruction", "input", "suffix")
        )
        closing = len(suffix) - int((stored["suffix_labels"][at] != IGNORED).sum())
        rows.append(
            TrainingRow(
                opening=opening,
                speech_instruction=speech_instruction,
                text_instruction=text_instruction,
                text=text,
                closing=suffix[:closing],
                answer=suffix[closing:],
                emotion=int(stored["emotion_labels"][at]),
                encoder_frames=frames,
                features=features,
            )
        )
    return rows


def under_original_names(model: SpeechLanguageModel, *, gradients: bool) -> dict[str, Tensor]:
    """What is trainable, or its gradients, by the original's names, q, k and v fused as there."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        if not parameter.requires_grad or tensor is None:
            continue
        if match := LORA_NAME.fullmatch(name):
            layer, module, which = match.groups()
            fused = LORA_MODULES.get(module, "attn.c_attn")
            key = f"qwen_model.model.transformer.h.{layer}.{fused}.lora_{which.upper()}.default.weight"
        elif name.startswith("adapter."):
            _, part, rest = name.split(".", 2)
            key = f"adapter.{ADAPTER_PARTS.get(part, part)}.{rest}"
        else:
            key = "hidden2emotion.weight"
        found.setdefault(key, []).append(tensor)
    # The original's q, k and v share their A; its gradient is the sum of ours.
    return {key: torch.cat(parts) if "lora_B" in key else sum(parts) for key, parts in found.items()}


def close(ours: Tensor, theirs: float | Tensor, relative: float) -> bool:
    return bool((ours.detach() - theirs).abs() <= relative * abs(theirs))
