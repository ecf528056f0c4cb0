"""Loading a checkpoint: a folder of this project's own format, or a preset composed of parts."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    WhisperFeatureExtractor,
)

from model.checkpoints import components, inventory, memory_plan, reply_tuning, tuned
from model.checkpoints.inventory import CONTEXT
from model.checkpoints.memory import returning_freed_blocks
from model.checkpoints.memory_plan import usable_device, usable_mode
from model.checkpoints.safe_reader import checked_folder, list_tensors, read_config, read_shard
from model.config import SpeechLanguageConfig
from model.errors import BadInput, WeightsMissing
from model.nn.int8 import quantize_int8
from model.nn.nf4 import MODES, prepare_layers, quantize_nf4, settings, stored_mode
from model.nn.speech_llm import SpeechLanguageModel
from model.nn.transcribe import Transcriber
from model.weights import fetch

RESOURCES = Path(str(files("resources")))
RECOGNISER = "whisper-base"
"""The recogniser of checkpoints without their own."""

READINGS = ("people", "free")
"""The shipped emotion heads: "people", the default, also learnt from speech under CC BY-NC-SA 4.0, which binds it to
that licence; "free" from permissive data alone, for commercial use too."""

T = TypeVar("T")

_NEW_TOKENS = 128  # of a reply, where generation_config.json names no limit


@dataclass(slots=True, eq=False)
class Checkpoint:
    """A loaded checkpoint, on its device.

    Attributes:
        name: the preset's name or the folder's path.
        model: in eval mode.
        tokenizer: with a chat template.
        extractor: of log-mel features.
        generation: how replies are sampled.
        transcriber: the recogniser, or None.
        device: "cpu" or "cuda".
        quantize: "none", "int8", "nf4" or "nf4-all", as loaded.
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
    context: int = CONTEXT

    def save(self, folder: Path) -> None:
        """Write an ordinary folder that `load` accepts: weights, configs, tokenizer (no recogniser).

        4-bit weights are written unchanged, and are not quantized again when they are loaded.

        Args:
            folder: to write.

        Raises:
            BadInput: int8 weights, which are computed while loading and not stored.
        """
        if self.quantize == "int8":
            raise BadInput(
                "int8 weights are computed while loading and not stored: load with quantize none, nf4 or nf4-all."
            )
        # Names of the modules: transformers cannot reverse its conversion of 4-bit weights.
        self.model.save_pretrained(folder, save_original_format=False)
        self.tokenizer.save_pretrained(folder)
        self.extractor.save_pretrained(folder)
        self.generation.save_pretrained(folder)


def presets() -> dict[str, dict[str, Any]]:
    """The presets of resources/presets.toml.

    Returns:
        Their settings by name.
    """
    return tomllib.loads((RESOURCES / "presets.toml").read_text("utf-8"))


def preset_of(source: str, reading: str | None = None) -> dict[str, Any] | None:
    """The preset behind a source.

    Args:
        source: a preset's name, or a folder.
        reading: the emotion head in use: one of `READINGS`, or the folder of one; None: the preset's own.

    Returns:
        The settings of a preset, or of the preset that a tuned checkpoint is based on; None for an ordinary folder.

    Raises:
        WeightsMissing: a tuned checkpoint is damaged.
        BadInput: the source has an emotion head of its own, or there is none in the folder.
    """
    known = presets()
    preset = known.get(source) or tuned.preset_of(Path(source), known)
    if reading is None:
        return preset
    if source not in known:
        raise BadInput(f"{source} has an emotion head of its own: leave out --reading.")
    folder = RESOURCES / "mini" / reading if reading in READINGS else Path(reading).absolute()
    if not (folder / "reading.json").is_file():
        raise BadInput(f"{reading} is no emotion head: use {', '.join(READINGS)} or the folder of one.")
    return {**known[source], "head": str(folder)}


def inspect(source: str) -> inventory.Source:
    """Inspect a preset or folder before it is loaded, for `memory_plan.plan`.

    Args:
        source: a preset's name, or a folder.

    Returns:
        Its tensors and configs.

    Raises:
        WeightsMissing: there is no such checkpoint, or its parts are not downloaded yet.
    """
    preset = preset_of(source)
    if preset is None:
        return explained(Path(source), inventory.inspect_folder)
    speech, text = (fetch.home() / "models" / preset[part] for part in ("speech", "text"))
    if not (speech / "config.json").is_file() or not (text / "config.json").is_file():
        raise WeightsMissing(f"{source} is not downloaded yet: run undertone ask --model {source} --text Hello.")
    return inventory.inspect_preset(source, preset, speech, text)


def load(
    source: str,
    *,
    device: str = "auto",
    quantize: str = "auto",
    reading: str | None = None,
    threads: int | None = None,
    progress: Callable[[fetch.Progress], None] | None = None,
) -> Checkpoint:
    """Load a preset (its parts are downloaded if necessary) or a checkpoint folder.

    Args:
        source: "mini", another preset, or the path of a folder with this project's config.json.
        device: "auto" (CUDA if there is any), "cpu" or "cuda".
        quantize: "none", "int8" (CPU), "nf4" (the language model in 4 bits) or "nf4-all" (the encoder too). "auto": as
            stored if the folder is quantized, otherwise NF4 on CUDA and int8 on a CPU.
        reading: the emotion head, as `preset_of`.
        threads: torch's compute threads in this process; None leaves one core to audio and UI.
        progress: called with the progress of downloads.

    Returns:
        The checkpoint, ready for an engine.

    Raises:
        WeightsMissing: there is no such checkpoint, part or device, or not enough memory.
        BadInput: the folder is stored in 4 bits, and another mode is requested; or as `preset_of`.
    """
    device = usable_device(device)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) - 1))
    preset = preset_of(source, reading)
    with returning_freed_blocks():
        if preset is not None and source in presets():
            checkpoint = _compose(source, preset, device, usable_mode(quantize, device), progress)
        elif preset is not None:
            mode = usable_mode(quantize, device)
            checkpoint = explained(Path(source), lambda _: _compose(source, preset, device, mode, progress))
        else:
            checkpoint = explained(Path(source), lambda folder: _read_folder(folder, device, quantize, progress))
        model = checkpoint.model.eval()
        if checkpoint.quantize == "int8":
            quantize_int8(model.encoder)
            quantize_int8(model.language_model)
        elif checkpoint.quantize in MODES and preset is not None:
            quantize_nf4(model, checkpoint.quantize, compute_type(device))
    return checkpoint


def compute_type(device: str) -> torch.dtype:
    """Type of a checkpoint folder's weights on a device."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def _compose(
    name: str,
    preset: dict[str, Any],
    device: str,
    quantize: str,
    progress: Callable[[fetch.Progress], None] | None,
) -> Checkpoint:
    speech = fetch.ensure(preset["speech"], progress=progress)
    text = fetch.ensure(preset["text"], progress=progress)
    tuned.check(preset)
    context = memory_plan.fitting_context(inventory.inspect_preset(name, preset, speech, text), device, quantize)
    transcriber = Transcriber.load(speech, int8=device == "cpu")
    language_model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(text, dtype=compute_type(device))
    reply_tuning.merge(language_model, preset)
    head = inventory.head_folder(preset)
    config = SpeechLanguageConfig(
        speech_config=transcriber.encoder.config.to_dict(),
        text_config=language_model.config.to_dict(),
        **preset["config"] | reply_tuning.prompt(preset),
        **reading_settings(head),
    )
    model = SpeechLanguageModel(config, transcriber.encoder, language_model)
    if model.emotion_head is not None:
        model.emotion_head.load_state_dict(load_file(head / "head.safetensors"))
    if model.adapter is not None:
        weights = load_file(inventory.adapter_file(preset))
        wanted = {key: value.shape for key, value in model.state_dict().items() if inventory.is_adapter(key)}
        if {key: value.shape for key, value in weights.items()} != wanted:
            preset_name = preset.get("preset", name)
            raise WeightsMissing(f"The adapter of {preset_name} is of another version: install this program again.")
        model.load_state_dict(weights, strict=False)
    modules: list[torch.nn.Module | None] = [model.encoder, model.adapter, model.emotion_head, model.language_model]
    for module in modules:
        if module is not None:
            module.to(device)
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
        context=context,
    )


def reading_settings(head: Path) -> dict[str, Any]:
    """The settings of a checkpoint's config in an emotion head's reading.json."""
    reading = json.loads((head / "reading.json").read_text("utf-8"))
    settings = {
        "emotion_layers": reading["layers"],
        "emotion_hidden": reading.get("hidden", 0),
        "emotion_threshold": reading["threshold"],
        "emotion_frame_group": reading["frame_group"],
    }
    newer = ["stacked", "frames", "neutral_threshold", "pair_threshold", "baseline", "voice"]  # earlier heads lack them
    return settings | {f"emotion_{name}": reading[name] for name in newer if name in reading}


def explained(folder: Path, read: Callable[[Path], T]) -> T:
    """Call `read` on a checkpoint folder and explain its errors.

    Args:
        folder: of the checkpoint.
        read: loads or inspects it.

    Returns:
        The result of `read`.

    Raises:
        WeightsMissing: it is no checkpoint folder, it does not fit into memory, or `read` failed.
    """
    if not (folder / "config.json").is_file():
        raise WeightsMissing(
            f"{folder} is neither a preset ({', '.join(presets())}) nor a checkpoint folder with a config.json."
        )
    try:
        return read(folder)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise WeightsMissing(f"{folder} does not fit into memory: `plan` says what does, or close programs.") from error
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsMissing(f"{folder} cannot be loaded ({first_line}): save or convert it again.") from error


def _read_folder(
    folder: Path, device: str, quantize: str, progress: Callable[[fetch.Progress], None] | None
) -> Checkpoint:
    quantize = usable_mode(quantize, device, stored_mode(own_config(folder)))
    context = memory_plan.fitting_context(inventory.inspect_folder(folder), device, quantize)
    model = read_model(folder, device, quantize, compute_type(device))
    generation = components.generation(folder, CONTEXT)
    generation.max_new_tokens = generation.max_new_tokens or _NEW_TOKENS
    return Checkpoint(
        name=str(folder),
        model=model,
        tokenizer=components.tokenizer(folder, model.config.text_config.vocab_size),
        extractor=components.extractor(folder, model.config.speech_config.num_mel_bins),
        generation=generation,
        transcriber=Transcriber.load(fetch.ensure(RECOGNISER, progress=progress), int8=True),
        device=device,
        quantize=quantize,
        context=context,
    )


def own_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a folder in this project's format.

    Args:
        folder: of the checkpoint.

    Returns:
        The checked settings.

    Raises:
        WeightsMissing: it is another kind of model, or as `checked_folder`.
    """
    kind = read_config(folder).get("model_type")
    if kind != SpeechLanguageConfig.model_type:
        raise WeightsMissing(
            f"{folder} holds a {kind or 'nameless'} model: convert it first (python -m model.convert)."
        )
    return checked_folder(folder)


def read_model(folder: Path, device: str, mode: str, dtype: torch.dtype | Literal["auto"]) -> SpeechLanguageModel:
    """Read the model of a folder onto its device, quantizing it to 4 bits if `mode` requires it.

    Args:
        folder: of the checkpoint.
        device: "cpu" or "cuda".
        mode: as `usable_mode` returns it.
        dtype: of what is not quantized; "auto": as stored.

    Returns:
        The model.

    Raises:
        WeightsMissing: it is another kind of model, or damaged.
    """
    stated = own_config(folder)
    stored = stored_mode(stated)
    config = components.model_config(stated, folder)
    tensors = list_tensors(folder)
    components.check_fit(config, tensors, folder)
    four_bit = settings(mode, compute_type(device)) if mode in MODES else None
    if four_bit is not None and stored is None:  # rounding to 4 bits can hide what is not finite
        for file in sorted({info.file for info in tensors.values()}):
            components.refuse_nonfinite(read_shard(file).items(), folder)
    if four_bit is not None and stored is not None:
        config.quantization_config = four_bit.to_dict()
    model: SpeechLanguageModel
    report: dict[str, Any]
    model, report = SpeechLanguageModel.from_pretrained(  # type: ignore[misc]  # a pair with output_loading_info
        folder,
        config=config,
        output_loading_info=True,
        dtype=dtype,
        quantization_config=four_bit if stored is None else None,
        device_map=device,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise WeightsMissing(f"{folder} lacks {len(absent)} weights ({absent[0]}, ...): save or convert it again.")
    if four_bit is None or stored is not None:
        components.refuse_nonfinite(model.state_dict().items(), folder)
    if four_bit is not None:
        prepare_layers(model, compute_type(device))
    if stored is not None and dtype != "auto":
        # transformers leaves the wide weights of a quantized folder in the type in which they are stored.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return model
