"""Loading a checkpoint: a folder of this project's own format, or a preset put together from its parts."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    WhisperFeatureExtractor,
)

from model import fetch
from model.config import SpeechLanguageConfig
from model.errors import WeightsMissing
from model.int8 import quantize_int8
from model.speech_llm import SpeechLanguageModel
from model.transcribe import Transcriber

RESOURCES = Path(str(files("resources")))
RECOGNISER = "whisper-base"
"""Writes the transcript for checkpoints that do not bring a recogniser of their own."""

_NEW_TOKENS = 128  # of a reply, where generation_config.json names no limit
_CONTEXT = 4096  # positions kept of a conversation; the language model's own limit applies as well


@dataclass(slots=True, eq=False)
class Checkpoint:
    """Everything that an engine needs, on its device.

    Attributes:
        name: the preset's name or the folder's path.
        quantize: "none", "int8" or "nf4", as loaded.
        context: positions of conversation to keep.
    """

    name: str
    model: SpeechLanguageModel
    tokenizer: Any
    extractor: WhisperFeatureExtractor
    generation: GenerationConfig
    transcriber: Transcriber | None
    device: str
    quantize: str
    context: int = _CONTEXT

    def save(self, folder: Path) -> None:
        """Write an ordinary folder that `load` takes: weights, configs, tokenizer (no recogniser)."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.extractor.save_pretrained(folder)
        self.generation.save_pretrained(folder)


def presets() -> dict[str, dict[str, Any]]:
    """The presets of resources/presets.toml by name."""
    return tomllib.loads((RESOURCES / "presets.toml").read_text("utf-8"))


def load(
    source: str,
    *,
    device: str = "auto",
    quantize: str = "auto",
    threads: int | None = None,
    progress: Callable[[fetch.Progress], None] | None = None,
) -> Checkpoint:
    """Load a preset (fetching its parts when they are not there yet) or a checkpoint folder.

    Args:
        source: "mini", another preset, or the path of a folder with this project's config.json.
        device: "auto" (CUDA when there is one), "cpu" or "cuda".
        quantize: "auto" (NF4 on CUDA, int8 on a CPU), "none", "int8" (CPU) or "nf4".
        threads: torch's compute threads in this process; None leaves one core to sound and window.
        progress: told how the fetching of parts goes.

    Raises:
        WeightsMissing: no such checkpoint, part, or device.
    """
    device = _device(device)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) - 1))
    if quantize == "auto":
        quantize = "nf4" if device == "cuda" else "int8"
    if quantize == "int8" and device == "cuda":
        raise WeightsMissing("int8 runs on the CPU only: choose --quantize nf4 or none, or --device cpu.")
    known = presets()
    if source in known:
        checkpoint = _compose(source, known[source], device, quantize, progress)
    else:
        checkpoint = _from_folder(Path(source), device, quantize, progress)
    checkpoint.model.eval()
    if quantize == "int8":
        quantize_int8(checkpoint.model.encoder)
        quantize_int8(checkpoint.model.language_model)
    return checkpoint


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise WeightsMissing("No CUDA device is available: use --device cpu, or see `doctor` for why.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _place(model: SpeechLanguageModel, device: str, quantize: str) -> None:
    """Move the parts to their device; a language model in NF4 is there already and cannot be moved."""
    parts: list[torch.nn.Module | None] = [model.encoder, model.adapter, model.emotion_head]
    if quantize != "nf4":
        parts.append(model.language_model)
    for part in parts:
        if part is not None:
            part.to(device)


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _nf4(device: str) -> BitsAndBytesConfig:
    # The encoder, adapter and head stay in 16 bit; lm_head is skipped as bitsandbytes does by default.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_dtype(device),
        llm_int8_skip_modules=["encoder", "adapter", "emotion_head", "lm_head"],
    )


def _compose(
    name: str,
    preset: dict[str, Any],
    device: str,
    quantize: str,
    progress: Callable[[fetch.Progress], None] | None,
) -> Checkpoint:
    speech = fetch.ensure(preset["speech"], progress=progress)
    text = fetch.ensure(preset["text"], progress=progress)
    transcriber = Transcriber.load(speech, int8=device == "cpu")
    language_model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        text,
        dtype=_dtype(device),
        quantization_config=_nf4(device) if quantize == "nf4" else None,
        device_map=device if quantize == "nf4" else None,
    )
    head = RESOURCES / preset["head"]
    config = SpeechLanguageConfig(
        speech_config=transcriber.encoder.config.to_dict(),
        text_config=language_model.config.to_dict(),
        **preset["config"],
        **_reading_settings(head),
    )
    model = SpeechLanguageModel(config, transcriber.encoder, language_model)
    if model.emotion_head is not None:
        model.emotion_head.load_state_dict(load_file(head / "head.safetensors"))
    _place(model, device, quantize)
    transcriber.to(device)
    generation = GenerationConfig.from_pretrained(text)
    generation.update(**preset["generation"])
    return Checkpoint(
        name=name,
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(text),
        extractor=transcriber.extractor,
        generation=generation,
        transcriber=transcriber,
        device=device,
        quantize=quantize,
    )


def _reading_settings(head: Path) -> dict[str, Any]:
    reading = json.loads((head / "reading.json").read_text("utf-8"))
    return {
        "emotion_layers": reading["layers"],
        "emotion_threshold": reading["threshold"],
        "emotion_frame_group": reading["frame_group"],
    }


def _from_folder(
    folder: Path, device: str, quantize: str, progress: Callable[[fetch.Progress], None] | None
) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise WeightsMissing(
            f"{folder} is neither a preset ({', '.join(presets())}) nor a checkpoint folder with a config.json."
        )
    try:
        return _read_folder(folder, device, quantize, progress)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsMissing(f"{folder} cannot be loaded ({first_line}): save or convert it again.") from error


def _read_folder(
    folder: Path, device: str, quantize: str, progress: Callable[[fetch.Progress], None] | None
) -> Checkpoint:
    kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    if kind != SpeechLanguageConfig.model_type:
        raise WeightsMissing(
            f"{folder} holds a {kind or 'nameless'} model: convert it first (python -m model.convert)."
        )
    model: SpeechLanguageModel
    report: dict[str, Any]
    model, report = SpeechLanguageModel.from_pretrained(  # type: ignore[misc]  # a pair with output_loading_info
        folder,
        output_loading_info=True,
        dtype=_dtype(device),
        quantization_config=_nf4(device) if quantize == "nf4" else None,
        device_map=device if quantize == "nf4" else None,
    )
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise WeightsMissing(f"{folder} lacks {len(absent)} weights ({absent[0]}, ...): save or convert it again.")
    _place(model, device, quantize)
    generation = GenerationConfig.from_pretrained(folder)
    generation.max_new_tokens = generation.max_new_tokens or _NEW_TOKENS
    return Checkpoint(
        name=str(folder),
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        extractor=WhisperFeatureExtractor.from_pretrained(folder),
        generation=generation,
        transcriber=Transcriber.load(fetch.ensure(RECOGNISER, progress=progress), int8=True),
        device=device,
        quantize=quantize,
    )
