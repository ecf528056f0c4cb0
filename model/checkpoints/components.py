"""The parts of a checkpoint folder in this project's format, built without trusting the folder.

Each part is built from known settings by the expected class: neither a config nor another file of the folder chooses a
class, an attention kernel, a path or a size.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, TypedDict

import jinja2
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import (
    CONFIG_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from assistant.events import SAMPLE_RATE
from model.checkpoints.safe_reader import TensorInfo, read_config, read_json, read_text, shown
from model.config import LINEAR_LAYERS, MEL_HOP_SAMPLES, SpeechLanguageConfig
from model.errors import WeightsMissing
from model.nn.speech_llm import SpeechLanguageModel

LANGUAGE_MODELS = ("gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
"""Supported types of language model: dense decoders, whose code loads nothing else."""

_INVALID = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError)


def model_config(config: Mapping[str, Any], folder: Path) -> SpeechLanguageConfig:
    """The config of a speech language model.

    Args:
        config: a cleaned config.json (`safe_reader.checked_folder`).
        folder: where it is, for error messages.

    Returns:
        The config, with known settings only.

    Raises:
        WeightsMissing: a setting is missing or has an invalid value.
    """
    path = folder / "config.json"
    speech, text = config.get("speech_config"), config.get("text_config")
    if not isinstance(speech, dict) or not isinstance(text, dict):
        raise _refused(path, "speech_config or text_config")
    settings = _known(config, SpeechLanguageConfig, {"dtype"})
    # transformers checks no types where annotations are strings, as they are in model/config.py.
    hints = {key: kind for key, kind in get_annotations(SpeechLanguageConfig, eval_str=True).items() if key in settings}
    settings |= {
        key: float(settings[key]) for key, kind in hints.items() if kind is float and type(settings[key]) is int
    }
    try:
        validate_typed_dict(TypedDict("Settings", hints), {key: settings[key] for key in hints})  # type: ignore[operator]
        built = SpeechLanguageConfig(
            **settings
            | {"speech_config": WhisperConfig(**_known(speech, WhisperConfig))}
            | {"text_config": language_config(text, path)}
        )
        for key, valid in _valid_settings(built).items():
            if not valid:
                raise _refused(path, key, getattr(built, key))
    except _INVALID as error:
        raise _refused(path, "inconsistent settings", error) from error
    return built


def language_config(config: Mapping[str, Any], path: Path) -> PreTrainedConfig:
    """The config of a language model alone, from its cleaned settings in the file `path`.

    Raises:
        WeightsMissing: its type is not in `LANGUAGE_MODELS`, or a setting is invalid.
    """
    if config.get("model_type") not in LANGUAGE_MODELS:
        raise _refused(path, "the language model's model_type", config.get("model_type"))
    kind: type[PreTrainedConfig] = CONFIG_MAPPING[config["model_type"]]
    try:
        return kind(**_known(config, kind, {"rope_theta", "rope_scaling", "head_dim", "long_prompts"}))
    except _INVALID as error:
        raise _refused(path, "inconsistent settings", error) from error


def _refused(path: Path, what: str, value: object = "") -> WeightsMissing:
    return WeightsMissing(f"{path} cannot be used because of {what} ({shown(value) or 'missing'}): save it again.")


def _known(settings: Mapping[str, Any], kind: type, extra: Iterable[str] = ()) -> dict[str, Any]:
    general = {field.name for field in fields(PreTrainedConfig)}
    names = {field.name for field in fields(kind)} - general | set(extra)
    return {key: value for key, value in settings.items() if key in names}


def _valid_settings(config: SpeechLanguageConfig) -> dict[str, bool]:
    kernels, layers = config.adapter_kernel_sizes, config.speech_config.encoder_layers
    long = getattr(config.text_config, "long_prompts", {"trained_length": 1, "dynamic_ntk": False, "logn": False})
    places = [(name, spec or mark) for _, name, spec, mark in string.Formatter().parse(config.tone_template)]
    return {
        "adapter_kernel_sizes": len(kernels) <= 8 and all(0 < kernel < 100 and kernel % 2 for kernel in kernels),
        "adapter_inner_size": config.adapter_inner_size > 0 or not kernels,
        "adapter_layers": not config.adapter_layers or (config.adapter_type == "spelling" and bool(kernels)),
        "lora_targets": set(config.lora_targets) <= set(LINEAR_LAYERS),
        "emotion_layers": len(config.emotion_layers) <= layers + 1
        and all(-layers - 1 <= layer <= layers for layer in config.emotion_layers),
        "emotion_threshold": 0 <= config.emotion_threshold <= 1,
        "examples": len(config.examples) <= 64 and all(len(pair) == 2 for pair in config.examples),
        "tone_template": all(name in ("tone", "words", None) and not rest for name, rest in places),
        "text_config": {key: type(value) for key, value in long.items()}
        == {"trained_length": int, "dynamic_ntk": bool, "logn": bool},
    }


def check_fit(config: SpeechLanguageConfig, tensors: Mapping[str, TensorInfo], folder: Path) -> None:
    """Compare a checkpoint's tensors with those that its config requires, before memory is allocated for either.

    Args:
        config: of the checkpoint.
        tensors: from the headers of its weight files.
        folder: for error messages.

    Raises:
        WeightsMissing: tensors are missing or have another shape.
    """
    layers = config.speech_config.encoder_layers + config.adapter_layers + config.text_config.num_hidden_layers
    if layers > len(tensors):
        raise _refused(
            folder / "config.json",
            f"num_hidden_layers, encoder_layers and adapter_layers beyond {len(tensors)} tensors",
            layers,
        )
    try:
        with torch.device("meta"):
            model = SpeechLanguageModel(config)
    except (*_INVALID, AssertionError) as error:
        raise _refused(folder / "config.json", "inconsistent settings", error) from error
    tied = getattr(model, "all_tied_weights_keys", {})
    asked = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    missing = sorted(asked.keys() - tensors.keys())
    if missing:
        raise WeightsMissing(f"{folder} lacks {len(missing)} weights ({missing[0]}, ...): save or convert it again.")
    if unread := sorted(name for name in tensors if name.startswith("emotion_head.") and name not in asked):
        raise _refused(
            folder / "config.json", f"an emotion_hidden that leaves {unread[0]} unread", config.emotion_hidden
        )
    for name, shape in asked.items():
        # A 4-bit matrix has another shape in the file; `nf4.prepare_layers` checks it.
        if tensors[name].shape != shape and f"{name}.absmax" not in tensors:
            raise WeightsMissing(
                f"{tensors[name].file} has {name} of shape {tensors[name].shape}, and config.json requires {shape}: "
                "save or convert it again."
            )


def refuse_nonfinite(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Refuse NaN and infinite weights.

    Args:
        tensors: names and values; each is reduced once, on its device.
        folder: for error messages.

    Raises:
        WeightsMissing: with the name of the first such tensor.
    """
    checked = [
        (name, torch.aminmax(tensor)) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()
    ]
    if not checked:
        return
    all_finite = torch.stack([torch.stack(extremes).float() for _, extremes in checked]).isfinite().all(1).tolist()
    for (name, _), finite in zip(checked, all_finite, strict=True):
        if not finite:
            raise WeightsMissing(f"{folder} has NaN or infinite weights (in {shown(name)}): save or convert it again.")


def generation(folder: Path, most_tokens: int) -> GenerationConfig:
    """The supported settings of generation_config.json.

    Args:
        folder: of the checkpoint.
        most_tokens: maximum length of a reply.

    Returns:
        The generation config.

    Raises:
        WeightsMissing: a setting is out of bounds.
    """
    path = folder / "generation_config.json"
    return GenerationConfig(**effective_settings(read_config(folder, path.name), path, most_tokens))


def effective_settings(settings: Mapping[str, Any], path: Path, most_tokens: int) -> dict[str, Any]:
    """The supported generation settings among the cleaned ones of `path`; see `generation`."""
    bounds: dict[str, tuple[Any, float, float]] = {
        "do_sample": (bool, 0, 1),
        "temperature": ((int, float), 0.01, 100.0),
        "top_k": (int, 0, 2**22),
        "top_p": ((int, float), 0.0, 1.0),
        "repetition_penalty": ((int, float), 0.01, 100.0),
        "max_new_tokens": (int, 1, most_tokens),
        "eos_token_id": (int, 0, 2**22),
        "pad_token_id": (int, 0, 2**22),
        "bos_token_id": (int, 0, 2**22),
    }
    kept = {key: settings[key] for key in bounds if settings.get(key) is not None}
    for key, value in kept.items():
        kind, least, most = bounds[key]
        values: list[Any] = value if isinstance(value, list) and key == "eos_token_id" else [value]
        if len(values) > 64 or not values or not all(isinstance(v, kind) and least <= v <= most for v in values):
            raise _refused(path, key, value)
    return kept


def extractor(folder: Path, mels: int) -> WhisperFeatureExtractor:
    """The feature extractor of a checkpoint.

    Args:
        folder: of the checkpoint.
        mels: mel bins of the encoder's input.

    Returns:
        Whisper's feature extractor.

    Raises:
        WeightsMissing: preprocessor_config.json describes other features than Whisper's.
    """
    settings = read_config(folder, "preprocessor_config.json")
    fixed = {"sampling_rate": SAMPLE_RATE, "hop_length": MEL_HOP_SAMPLES, "n_fft": 400, "padding_value": 0.0}
    for key, value in (fixed | {"feature_size": mels}).items():
        if settings.get(key, value) != value:
            raise _refused(folder / "preprocessor_config.json", f"{key}, which must be {value},", settings[key])
    seconds = settings.get("chunk_length", 30)
    if type(seconds) is not int or not 1 <= seconds <= 30:
        raise _refused(folder / "preprocessor_config.json", "chunk_length", seconds)
    return WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds, **fixed)


def tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """The tokenizer of tokenizer.json with its chat template; no other tokenizer class is used.

    Args:
        folder: of the checkpoint.
        vocabulary: rows of the language model's embeddings.

    Returns:
        The tokenizer, checked with a sample conversation.

    Raises:
        WeightsMissing: it is invalid, could take very long, or has ids beyond the embeddings.
    """
    path, settings_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    _check_steps(read_json(path), path)
    settings = read_config(folder, settings_path.name)
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    specials = {key: _content(settings[key]) for key in names if settings.get(key)}
    template = _chat_template(folder, settings)
    try:
        made = PreTrainedTokenizerFast(tokenizer_file=str(path), chat_template=template, **specials)
    except Exception as error:  # tokenizers raises no narrower class
        raise _refused(path, "its contents", error) from error
    backend = made.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    highest = max(backend.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= vocabulary:
        raise _refused(path, f"an id beyond the {vocabulary} embeddings of the model", highest)
    _probe(made, folder)
    return made


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _check_steps(settings: dict[str, Any], path: Path) -> None:
    """Refuse patterns that can take more than quadratic time, and replacements that can make text grow."""
    replacements = 0
    waiting = [value for key, value in settings.items() if key not in ("model", "added_tokens")]
    while waiting:
        step = waiting.pop()
        if isinstance(step, list):
            waiting += step
        if not isinstance(step, dict):
            continue
        waiting += step.values()
        pattern = step.get("Regex", "")
        if not isinstance(pattern, str) or not _quick(pattern):
            raise _refused(path, "a pattern that can take very long", pattern)
        replacements += step.get("type") in ("Replace", "Prepend")
        grows = replacements > 4 or len(str(step.get("content", ""))) > 8
        if grows or step.get("type") == "Precompiled" or step.get("String") == "":
            raise _refused(path, "an unsupported tokenizer step", step.get("type"))


# The parts of a pattern, by the sign used for each below; x is one character or a character class. Back references
# and groups other than plain ones and lookaheads are not accepted.
_PARTS = {
    "x": r"\\[pP]\{\^?\w+\}|\\[sSdDwWrntvfhHbBAzZ]|\\[^\w]|[^\\\[\](){}|*+?]"
    r"|\[\^?(?:\\[pP]\{\^?\w+\}|\\[sSdDwWrntvfhH]|\\[^\w]|[^\[\]\\])+\]",
    "(": r"\((?:\?(?:i?:|!|=))?",
    ")": r"\)",
    "|": r"\|",
    "*": r"[*+][+?]?|\{\d{1,2}(?:,\d{0,2})?\}",
    "?": r"\?",
}
_PART = re.compile("|".join(f"({part})" for part in _PARTS.values()))
_QUICK = re.compile(r"(?:[xg]\??)*(?:x\*(?:[xg]\??)*)?(?:x\*(?:[xg]\?)*)?")


def _quick(pattern: str) -> bool:
    """Whether a search by the pattern takes at most quadratic time.

    That holds for a choice of sequences in which only single characters repeat, at two places at most, and nothing can
    fail after the second: then each start fails or succeeds in linear time.
    """
    if len(pattern) > 2000:
        return False
    signs, end = "", 0
    for part in _PART.finditer(pattern):
        if part.start() != end:
            return False
        signs += list(_PARTS)[int(part.lastindex or 1) - 1]
        end = part.end()
    choices = re.sub(r"\([x|]*\)", "g", signs).split("|")
    short = all(choice.count("?") <= 3 and choice.count("g") <= 2 for choice in choices)
    return end == len(pattern) and short and all(_QUICK.fullmatch(choice) for choice in choices)


_TEMPLATE_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.Const, nodes.Name),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Add, nodes.Sub, nodes.Concat, nodes.Test, nodes.Filter, nodes.Call, nodes.CondExpr, nodes.Neg),
)
_TEXT_METHODS = ("strip", "lstrip", "rstrip", "startswith", "endswith")


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    """The template, after a check that it only chooses and joins texts, message by message."""
    path = folder / "chat_template.jinja"
    template = read_text(path) if path.exists() else settings.get("chat_template")
    if not isinstance(template, str) or len(template) > 2**14:
        raise _refused(folder / "tokenizer_config.json", "chat_template", template if template is None else "too long")
    try:
        tree = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).parse(template)
        valid = _only_joins(tree, 0)
    except (jinja2.TemplateError, RecursionError) as error:
        raise _refused(path, "its chat template", error) from error
    if not valid:
        raise _refused(path, "its chat template", "it does more than join the messages of a conversation")
    return template


def _only_joins(node: nodes.Node, loops: int, assigned: bool = False) -> bool:
    """Whether a template's work is bounded by its own length and by the number and lengths of the messages.

    Loops nest once, over the value of a name; assigned values are chosen or cut, not joined, so no text can grow from
    turn to turn; only the functions listed above are called.
    """
    loops += isinstance(node, nodes.For)
    valid = isinstance(node, _TEMPLATE_NODES) and loops <= 2
    if isinstance(node, nodes.For):
        valid &= not node.recursive and isinstance(node.iter, nodes.Name | nodes.Getattr | nodes.Getitem)
    elif isinstance(node, nodes.Filter):
        valid &= node.name in ("trim", "length") or (node.name == "tojson" and not assigned)
    elif isinstance(node, nodes.Call):
        valid &= (isinstance(node.node, nodes.Name) and node.node.name == "raise_exception") or (
            isinstance(node.node, nodes.Getattr) and node.node.attr in _TEXT_METHODS
        )
    elif isinstance(node, nodes.Name | nodes.Getattr):
        valid &= not (node.name if isinstance(node, nodes.Name) else node.attr).startswith("_")
    elif isinstance(node, nodes.Const) and assigned:
        valid &= not isinstance(node.value, str) or len(node.value) <= 64
    elif isinstance(node, nodes.Add | nodes.Concat):
        valid &= not assigned
    assigned |= isinstance(node, nodes.Assign)
    return valid and all(_only_joins(child, loops, assigned) for child in node.iter_child_nodes())


def _probe(made: PreTrainedTokenizerFast, folder: Path) -> None:
    """Refuse a template that does not show each message exactly once, in order."""
    said = ["\ue001", "\ue002", "\ue003", "\ue004"]
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
    try:
        shown = str(made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (jinja2.TemplateError, *_INVALID) as error:
        raise _refused(folder, "its chat template", error) from error
    if re.findall("[\ue001-\ue004]", shown) != said:
        raise _refused(folder, "its chat template", "it does not show each message once")
