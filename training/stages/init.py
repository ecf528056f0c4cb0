"""`python -m training init`: an initial checkpoint from a Whisper encoder and a language model.

The weights of both are copied tensor by tensor, in their own type, so memory holds little more than the new parts: the
adapter, LoRA (A as in arXiv 2106.09685, B zero, so that the language model is unchanged) and the emotion head.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from model.checkpoints import components
from model.checkpoints.convert import staging_of
from model.checkpoints.inventory import is_adapter
from model.checkpoints.safe_reader import TensorInfo, list_tensors, read_config, read_shard
from model.checkpoints.tensor_writer import JOURNAL, Layout, TensorSpec, TensorWriter, lay_out
from model.config import SpeechLanguageConfig
from model.errors import BadInput, WeightsMissing
from model.files import write_atomically
from model.nn.speech_llm import SpeechLanguageModel
from model.weights.weight_files import write_json
from training.data.chat import read_chat
from training.data.sources import fetching, model_folder
from training.runs.config import AdapterOptions, InitOptions
from training.runs.run_folder import Bar, Run, open_run

_HEAD_STD = 0.02
_LORA_ACTS = ("lora_alpha", "lora_scope")  # LoRA's settings that its tensors do not show


def init(options: InitOptions) -> dict[str, Any]:
    """Write the checkpoint `options.out`, or resume an interrupted run.

    Args:
        options: of the command.

    Returns:
        A summary: sources, bytes and new parameters.

    Raises:
        BadInput: the folder is not empty, or the adapter's weights do not fit.
        WeightsMissing: a part is missing, damaged or unknown.
    """
    staging = staging_of(options.out)
    folder = options.out.with_name(f"{options.out.name}.run")
    try:
        with open_run(folder, options.plain(), kept=staging) as run:
            return _make(options, staging, run)
    except OSError as error:
        raise WeightsMissing(
            f"{error.filename or staging} cannot be read or written ({error.strerror}): make room and try again; "
            "it is resumed."
        ) from error


def _make(options: InitOptions, staging: Path, run: Run) -> dict[str, Any]:
    with fetching(run) as progress:
        speech = model_folder(options.speech, progress)
        text = model_folder(options.text, progress)
    config = _config(options, speech, text)
    with torch.device("meta"):
        model = SpeechLanguageModel(config)
    new = fresh_parts(model, options.seed)
    if options.adapter_weights is not None:
        new |= _given_parts(options.adapter_weights, new, {name: str(getattr(config, name)) for name in _LORA_ACTS})
    sources = _sources(model, new, speech, text)
    forms = {name: TensorSpec(info.shape, info.dtype) for name, info in sources.items()}
    forms |= {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in new.items()}
    layout = lay_out(forms)
    staging.mkdir(parents=True, exist_ok=True)
    files = sorted({info.file for info in sources.values()})
    fingerprint = repr([options.plain(), *((file.name, file.stat().st_mtime_ns) for file in files)])
    with closing(TensorWriter(staging, layout, fingerprint)) as writer:
        _write_settings(staging, config, layout, speech, text)
        with run.bar("init", sum(form.size for form in forms.values()), unit="bytes") as bar:
            _write_weights(writer, sources, new, bar)
    (staging / JOURNAL).unlink()
    if options.out.exists():
        options.out.rmdir()
    staging.rename(options.out)
    return _summary(options, new, layout)


def _summary(options: InitOptions, new: dict[str, Tensor], layout: Layout) -> dict[str, Any]:
    marks = {"adapter": "adapter.", "lora": ".lora_", "emotion_head": "emotion_head."}
    return {
        "checkpoint": str(options.out),
        "speech": options.speech,
        "text": options.text,
        "bytes": sum(layout.sizes.values()),
        "new_parameters": {
            part: sum(value.numel() for name, value in new.items() if mark in name) for part, mark in marks.items()
        },
    }


def _config(options: InitOptions, speech: Path, text: Path) -> SpeechLanguageConfig:
    speech_config, text_config = read_config(speech), read_config(text)
    if speech_config.get("model_type") != "whisper":
        raise WeightsMissing(f"{speech} is a {speech_config.get('model_type')} model, not a Whisper: choose another.")
    if text_config.get("model_type") not in components.LANGUAGE_MODELS:
        raise WeightsMissing(
            f"{text} is a {text_config.get('model_type')} model, none of {', '.join(components.LANGUAGE_MODELS)}: "
            "choose another, and convert a Qwen-1 first (python -m model.convert)."
        )
    for folder, found in ((speech, speech_config), (text, text_config)):
        if "quantization_config" in found:
            raise WeightsMissing(
                f"{folder} is quantized, but training starts from unquantized weights: choose another."
            )
    chosen = options.plain()
    settings = {name: chosen[name] for name in chosen.keys() & {field.name for field in fields(SpeechLanguageConfig)}}
    settings |= {
        "speech_config": speech_config,
        "text_config": text_config,
        "adapter_type": options.adapter,
        "adapter_kernel_sizes": list(options.kernels),
        "adapter_inner_size": options.inner,
        "adapter_layers": options.layers,
    }
    config = components.model_config(settings, options.out)
    if options.adapter == "cformer" and config.speech_config.d_model % options.cformer_heads:
        raise BadInput(f"--cformer-heads: the encoder's {config.speech_config.d_model} are not divisible by it")
    config.architectures = [SpeechLanguageModel.__name__]
    return config


def write_adapter(options: AdapterOptions) -> dict[str, Any]:
    """Write a checkpoint's adapter and its partial LoRA to one safetensors file in float16.

    LoRA with B still zero is left out. The metadata records LoRA's alpha and scope.

    Args:
        options: of the command.

    Returns:
        File, number of parameters and bytes.

    Raises:
        BadInput: there is no adapter, or the file cannot be written.
        WeightsMissing: the checkpoint is missing or damaged.
    """
    files = {info.file for name, info in list_tensors(options.checkpoint).items() if is_adapter(name)}
    found = {name: value for file in files for name, value in read_shard(file).items() if is_adapter(name)}
    if not any(name.startswith("adapter.") for name in found):
        raise BadInput(f"{options.checkpoint} has no adapter.")
    if not any(value.any() for name, value in found.items() if name.endswith(".lora_b")):
        found = {name: value for name, value in found.items() if ".lora_" not in name}
    stated = read_config(options.checkpoint)
    how = {name: str(stated[name]) for name in _LORA_ACTS if name in stated}
    narrow = {name: value.half() if value.is_floating_point() else value for name, value in found.items()}
    lost = [name for name, value in narrow.items() if not value.float().isfinite().all()]
    if lost:
        raise BadInput(f"{options.checkpoint} has weights in {lost[0]} that 16 bits cannot represent.")
    try:
        write_atomically(options.out, save(narrow, how))
    except OSError as error:
        raise BadInput(f"{options.out} cannot be written ({error.strerror}): choose another path.") from error
    numbers = sum(value.numel() for value in narrow.values())
    return {"adapter": str(options.out), "parameters": numbers, "bytes": options.out.stat().st_size}


def fresh_parts(model: SpeechLanguageModel, seed: int) -> dict[str, Tensor]:
    """New weights, float32, of the adapter, LoRA and the emotion head of `model`, which may be on "meta".

    The adapter's layers are initialised as in torch, LoRA's A by Kaiming's uniform rule, B with zeros, the head
    randomly with a standard deviation of 0.02. The same seed gives the same weights.
    """
    new: dict[str, Tensor] = {}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if model.adapter is not None:
            adapter = model.adapter.to_empty(device="cpu")
            for layer in adapter.modules():
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()
            new |= {f"adapter.{name}": value for name, value in adapter.state_dict().items()}
        for name, value in model.named_parameters():
            if name.endswith(".lora_a"):
                new[name] = torch.nn.init.kaiming_uniform_(torch.empty(value.shape), a=math.sqrt(5))
            elif name.endswith(".lora_b"):
                new[name] = torch.zeros(value.shape)
        if model.emotion_head is not None:
            new |= {f"emotion_head.{name}": torch.zeros(v.shape) for name, v in model.emotion_head.state_dict().items()}
            new["emotion_head.temperature"] += 1
            new["emotion_head.weight"].normal_(std=_HEAD_STD)
    return new


def _given_parts(file: Path, new: dict[str, Tensor], how: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file that replace new ones; names without "adapter." belong to the adapter.

    Args:
        file: the safetensors file.
        new: the new weights.
        how: LoRA's settings in the new checkpoint.
    """
    try:
        given = load_file(file)
        with safe_open(file, "pt") as opened:
            stated = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} is not a safetensors file ({error}): choose the adapter's weights.") from error
    named = {name if name in new else f"adapter.{name}": value for name, value in given.items()}
    for name, value in named.items():
        if name not in new:
            raise BadInput(
                f"{file} has {name.removeprefix('adapter.')}, which the new checkpoint does not have: "
                "give its --adapter, --kernels, --layers and --lora-rank."
            )
        if value.shape != new[name].shape:
            raise BadInput(
                f"{file} has {name} of shape {list(value.shape)}, not {list(new[name].shape)}: "
                "use the --kernels, --inner, --lora-rank and models that it was trained with."
            )
    lora = any(".lora_" in name for name in named)
    missing = [name for name in new if is_adapter(name) and (lora or ".lora_" not in name) and name not in named]
    if missing:
        raise BadInput(
            f"{file} lacks {len(missing)} of the adapter's weights ({missing[0]}, ...): choose another file, "
            "or give its --kernels and --layers."
        )
    for option, wanted in how.items():
        if lora and stated.get(option, wanted) != wanted:
            flag = option.replace("_", "-")
            raise BadInput(f"{file} has LoRA of {option} {stated[option]}, not {wanted}: give --{flag}.")
    return {name: value.to(new[name].dtype) for name, value in named.items()}


def _sources(model: SpeechLanguageModel, new: dict[str, Tensor], speech: Path, text: Path) -> dict[str, TensorInfo]:
    """The source of each of the model's other tensors in the two folders."""
    heard, written = list_tensors(speech), list_tensors(text)
    tied = getattr(model, "all_tied_weights_keys", {})
    found: dict[str, TensorInfo] = {}
    for name, value in model.state_dict().items():
        if name in new or name in tied:
            continue
        part, _, inner = name.partition(".")
        folder, tensors = (speech, heard) if part == "encoder" else (text, written)
        inner = inner.replace(".base.", ".")
        names = (f"model.encoder.{inner}", f"encoder.{inner}") if part == "encoder" else (inner,)
        info = next((tensors[candidate] for candidate in names if candidate in tensors), None)
        if info is None or info.shape != tuple(value.shape) or not info.dtype.is_floating_point:
            shape = "missing" if info is None else f"{info.dtype} {list(info.shape)}, not {list(value.shape)}"
            raise WeightsMissing(f"{folder} has no weights for its own config.json: {names[0]} is {shape}.")
        found[name] = info
    return found


def _write_weights(writer: TensorWriter, sources: dict[str, TensorInfo], new: dict[str, Tensor], bar: Bar) -> None:
    for name, value in new.items():
        if not writer.write(name, value):
            raise BadInput(f"--adapter-weights has NaN or infinite weights (in {name}): choose another file.")
        bar.advance(value.nbytes)
    for file in sorted({info.file for info in sources.values()}):
        here = {name: info for name, info in sources.items() if info.file == file}
        tensors = {} if writer.done.issuperset(here) else read_shard(file)
        for name, info in here.items():
            if name not in writer.done and not writer.write(name, tensors[info.name]):
                raise WeightsMissing(f"{file} has NaN or infinite weights (in {info.name}): get it again.")
            bar.advance(TensorSpec(info.shape, info.dtype).size)
        tensors.clear()  # the memory map is released with its last tensor
        writer.commit()


def _write_settings(staging: Path, config: SpeechLanguageConfig, layout: Layout, speech: Path, text: Path) -> None:
    config.save_pretrained(staging)
    read_chat(text).tokenizer.save_pretrained(staging)
    components.extractor(speech, config.speech_config.num_mel_bins).save_pretrained(staging)
    components.generation(text, config.text_config.max_position_embeddings).save_pretrained(staging)
    if layout.index:
        write_json(staging / "model.safetensors.index.json", layout.index)
