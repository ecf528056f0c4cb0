"""The original BLSP-Emo checkpoints and plain Qwen-1 in this project's terms: configs, tensor names, shapes.

Reads no files and has no weights. Qwen-1 is Qwen2's layout under other names: the fused c_attn is q, k and v in one;
its MLP is c_proj(w1(x) * silu(w2(x))), so w2 is the gate.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2Config
from transformers.activations import ACT2FN

from assistant.events import EMOTIONS
from model.checkpoints.tensor_writer import TensorSpec
from model.config import LINEAR_LAYERS, SpeechLanguageConfig
from model.errors import WeightsMissing

_LINEARS = {
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "mlp.w1": ("mlp.up_proj",),
    "mlp.w2": ("mlp.gate_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}

# Buffers that older versions saved; they are recomputed from the config.
_BUFFERS = re.compile(r"qwen_model\.transformer\.(h\.\d+\.attn\.)?(rotary_emb\.inv_freq|(masked_)?bias|logn_tensor)")

# Variants of LoRA that this project's layout cannot represent.
_OTHER_LORA = (
    *("modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "use_dora", "fan_in_fan_out"),
)
_SAMPLING = ("do_sample", "top_p", "top_k", "temperature", "repetition_penalty", "max_new_tokens", "min_new_tokens")


class Move(NamedTuple):
    """The target of one source tensor.

    Attributes:
        shape: its required shape.
        targets: its new names.
        split: whether each target gets an equal share of the rows, in order; otherwise each gets the whole tensor.
    """

    shape: tuple[int, ...]
    targets: tuple[str, ...]
    split: bool = False

    def pieces(self) -> Iterator[tuple[str, int, int]]:
        """Yield (new name, first row, end row)."""
        share = self.shape[0] // len(self.targets) if self.split else 0
        for number, target in enumerate(self.targets):
            yield target, number * share, (number + 1) * share if self.split else self.shape[0]


@dataclass(frozen=True, slots=True)
class Original:
    """The conversion of a source.

    Attributes:
        config: of the converted checkpoint.
        moves: for every tensor that the source must have, by `canonical` name.
        constants: tensors without a counterpart in the original.
    """

    config: PreTrainedConfig
    moves: dict[str, Move]
    constants: dict[str, Tensor]

    def forms(self, dtypes: Mapping[str, torch.dtype]) -> dict[str, TensorSpec]:
        """Shape and type of every tensor of the converted checkpoint, given the source's types by canonical name."""
        forms = {
            target: TensorSpec((stop - start, *move.shape[1:]), dtypes[name])
            for name, move in self.moves.items()
            for target, start, stop in move.pieces()
        }
        return forms | {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in self.constants.items()}


def canonical(name: str, *, plain: bool) -> str | None:
    """The canonical name of a source tensor, whatever wrapped the language model; None for an unneeded buffer.

    Args:
        name: as in the file.
        plain: whether the source is a plain Qwen-1.
    """
    if plain:
        name = f"qwen_model.{name}"
    name = re.sub(r"^qwen_model\.model\.", "qwen_model.", name)
    if name.startswith("qwen_model."):
        name = name.replace(".base_layer.", ".")  # PEFT's newer releases
    return None if _BUFFERS.fullmatch(name) else name


def display_name(name: str, names: Collection[str]) -> str:
    """The `canonical` name as it is written in a source with the tensors `names`."""
    prefixes = ("qwen_model.model.", "qwen_model.", "")
    used = [prefix for prefix in prefixes if any(other.startswith(f"{prefix}transformer.") for other in names)]
    return re.sub(r"^qwen_model\.", used[0] if used else "qwen_model.", name)


def interpret_config(config: dict[str, Any], names: Collection[str]) -> Original:
    """Read the original's config.

    Args:
        config: config.json, cleaned (`safe_reader.read_config`).
        names: the source's canonical tensor names; only they show whether there is an emotion head.

    Raises:
        WeightsMissing: a setting is missing or invalid, or this project does not support it.
    """
    if is_plain(config):
        text = _text_config(config)
        qwen2 = Qwen2Config(architectures=["Qwen2ForCausalLM"], **text)
        return Original(qwen2, dict(_language_moves(text, "", 0, ())), {})
    for part in ("whisper_config", "qwen_config"):
        if not isinstance(config.get(part), dict):
            raise WeightsMissing(
                f"config.json has no {part}, so this is neither BLSP-Emo nor a Qwen-1: give the original's folder."
            )
    if config.get("num_emotions", len(EMOTIONS)) != len(EMOTIONS):
        _refuse("num_emotions", config["num_emotions"])
    speech, text = _speech_config(config["whisper_config"]), _text_config(config["qwen_config"])
    adapter, lora = _adapter_config(config), _lora_config(config)
    has_head = "hidden2emotion.weight" in names
    model = SpeechLanguageConfig(
        architectures=["SpeechLanguageModel"],
        speech_config={"model_type": "whisper"} | speech,
        text_config={"model_type": "qwen2"} | text,
        emotion_source="adapter" if has_head else "none",
        penalty_scope="reply",
        **adapter,
        **lora,
    )
    moves = dict(_encoder_moves(speech)) | dict(_adapter_moves(adapter, speech, text))
    moves |= _language_moves(text, "language_model.", model.lora_rank, model.lora_targets)
    constants: dict[str, Tensor] = {}
    if has_head:
        moves["hidden2emotion.weight"] = Move((len(EMOTIONS), text["hidden_size"]), ("emotion_head.weight",))
        constants["emotion_head.centre"] = torch.zeros(text["hidden_size"])
        constants["emotion_head.offset"] = torch.zeros(len(EMOTIONS))
        constants["emotion_head.temperature"] = torch.ones(())
    return Original(model, moves, constants)


def is_plain(config: dict[str, Any]) -> bool:
    """Whether the config is that of a Qwen-1 without speech."""
    return config.get("model_type") == "qwen"


def generation_settings(given: dict[str, Any], end_of_text: int, im_start: int, im_end: int) -> dict[str, Any]:
    """The generation_config.json of the converted checkpoint.

    Args:
        given: the source's generation_config.json, cleaned; its sampling settings are kept.
        end_of_text: token id; the original stops at all three and pads with this one.
        im_start: token id.
        im_end: token id.

    Raises:
        WeightsMissing: a setting is not a number.
    """
    kept = {key: given[key] for key in _SAMPLING if given.get(key) is not None}
    for key, value in kept.items():
        if type(value) not in ((bool,) if key == "do_sample" else (int, float)):
            _refuse(key, value, "generation_config.json")
    return kept | {"eos_token_id": [im_end, im_start, end_of_text], "pad_token_id": end_of_text}


def _refuse(key: str, value: Any, file: str = "config.json") -> NoReturn:
    raise WeightsMissing(f"The source's {file} has {key} = {str(value)[:80]!r}, which cannot be converted.")


def _size(config: dict[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    value: Any = config.get(key, default)
    if type(value) is not int or value < least:
        _refuse(key, value)
    return value


def _real(config: dict[str, Any], key: str, default: float | None = None, least: float = 0.0) -> float:
    value: Any = config.get(key, default)
    if type(value) not in (int, float) or value < least:
        _refuse(key, value)
    return float(value)


def _flag(config: dict[str, Any], key: str, default: bool) -> bool:
    value: Any = config.get(key, default)
    if type(value) is not bool:
        _refuse(key, value)
    return value


def _speech_config(whisper: dict[str, Any]) -> dict[str, Any]:
    sizes = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
    speech: dict[str, Any] = {key: _size(whisper, key) for key in sizes}
    speech["max_source_positions"] = _size(whisper, "max_source_positions", 1500)
    if speech["max_source_positions"] % 50:  # the feature extractor's window is in whole seconds
        _refuse("max_source_positions", speech["max_source_positions"])
    for key in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop"):
        speech[key] = _real(whisper, key, 0.0)
    speech["scale_embedding"] = _flag(whisper, "scale_embedding", False)
    speech["activation_function"] = whisper.get("activation_function", "gelu")
    if str(speech["activation_function"]) not in ACT2FN:
        _refuse("activation_function", speech["activation_function"])
    if speech["d_model"] % speech["encoder_attention_heads"]:
        _refuse("encoder_attention_heads", speech["encoder_attention_heads"])
    return speech


def _text_config(qwen: dict[str, Any]) -> dict[str, Any]:
    """Qwen-1's settings as Qwen2's; the defaults are those of Qwen-7B."""
    hidden, heads, width = (_size(qwen, key) for key in ("hidden_size", "num_attention_heads", "intermediate_size"))
    head = _size(qwen, "kv_channels", 128)
    for key, value in (("rotary_pct", 1.0), ("no_bias", True), ("scale_attn_weights", True)):
        if qwen.get(key, value) != value:
            _refuse(key, qwen[key])
    if head * heads != hidden or head % 2:
        _refuse("kv_channels", head)
    if width % 2:
        _refuse("intermediate_size", width)
    positions = _size(qwen, "max_position_embeddings", 8192)
    return {
        "vocab_size": _size(qwen, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": width // 2,
        "num_hidden_layers": _size(qwen, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head,
        "hidden_act": "silu",
        "rms_norm_eps": _real(qwen, "layer_norm_epsilon", 1e-6),
        "rope_parameters": {"rope_type": "default", "rope_theta": _real(qwen, "rotary_emb_base", 10000.0, least=1.0)},
        "max_position_embeddings": positions,
        "use_sliding_window": False,
        "attention_dropout": _real(qwen, "attn_dropout_prob", 0.0),
        "tie_word_embeddings": False,
        "long_prompts": {
            "trained_length": _size(qwen, "seq_length", positions),
            "dynamic_ntk": _flag(qwen, "use_dynamic_ntk", True),
            "logn": _flag(qwen, "use_logn_attn", True),
        },
    }


def _adapter_config(config: dict[str, Any]) -> dict[str, Any]:
    kind = config.get("adapter_type", "subsampler")
    if kind == "cformer":
        if config["whisper_config"]["d_model"] % SpeechLanguageConfig.cformer_heads:
            _refuse("d_model", config["whisper_config"]["d_model"])
        return {
            "adapter_type": "cformer",
            "cformer_pre_layers": _size(config, "num_pre_cif_layers", 4, least=0),
            "cformer_post_layers": _size(config, "num_post_cif_layers", 4, least=0),
        }
    if kind != "subsampler":
        _refuse("adapter_type", kind)
    kernels = config.get("conv_kernel_sizes", "5,5,5")
    if not isinstance(kernels, str) or not re.fullmatch(r" *\d?[13579] *(, *\d?[13579] *){0,7}", kernels):
        _refuse("conv_kernel_sizes", kernels)
    return {
        "adapter_type": "conv",
        "adapter_kernel_sizes": [int(size) for size in kernels.split(",")],
        "adapter_inner_size": _size(config, "adapter_inner_dim", 512),
    }


def _lora_config(config: dict[str, Any]) -> dict[str, Any]:
    scope, lora = config.get("lora_scope", "audio"), config.get("lora_config") or {}
    if scope not in ("audio", "text", "global"):
        _refuse("lora_scope", scope)
    if not isinstance(lora, dict):
        _refuse("lora_config", lora)
    if not lora:
        return {"lora_rank": 0, "lora_scope": scope}
    for key in _OTHER_LORA:
        if lora.get(key):
            _refuse(f"lora_config.{key}", lora[key])
    wanted = lora.get("target_modules")
    if not isinstance(wanted, list) or not wanted or not all(isinstance(module, str) for module in wanted):
        _refuse("lora_config.target_modules", wanted)
    targets = set()
    for module in wanted:
        matching = [names for linear, names in _LINEARS.items() if f".{linear}".endswith(f".{module}")]
        if not matching:
            _refuse("lora_config.target_modules", module)
        targets |= {name.rpartition(".")[2] for names in matching for name in names}
    return {
        "lora_rank": _size(lora, "r"),
        "lora_alpha": _real(lora, "lora_alpha"),
        "lora_dropout": _real(lora, "lora_dropout", 0.0),
        "lora_targets": [layer for layer in LINEAR_LAYERS if layer in targets],
        "lora_scope": scope,
    }


def _encoder_moves(speech: dict[str, Any]) -> Iterator[tuple[str, Move]]:
    size, mels = speech["d_model"], speech["num_mel_bins"]
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (size, mels, 3),
        "conv1.bias": (size,),
        "conv2.weight": (size, size, 3),
        "conv2.bias": (size,),
        "embed_positions.weight": (speech["max_source_positions"], size),
        "layer_norm.weight": (size,),
        "layer_norm.bias": (size,),
    }
    for number in range(speech["encoder_layers"]):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in _whisper_layer(speech).items()}
    for name, shape in shapes.items():
        yield f"whisper_model.{name}", Move(shape, (f"encoder.{name}",))


def _whisper_layer(speech: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    size, inner = speech["d_model"], speech["encoder_ffn_dim"]
    matrices = {f"self_attn.{name}_proj.weight": (size, size) for name in ("q", "k", "v", "out")}
    matrices |= {"fc1.weight": (inner, size), "fc2.weight": (size, inner)}
    vectors = [f"self_attn.{name}_proj.bias" for name in ("q", "v", "out")] + ["fc2.bias"]
    for norm in ("self_attn_layer_norm", "final_layer_norm"):
        vectors += [f"{norm}.weight", f"{norm}.bias"]
    return matrices | {"fc1.bias": (inner,)} | dict.fromkeys(vectors, (size,))


def _adapter_moves(adapter: dict[str, Any], speech: dict[str, Any], text: dict[str, Any]) -> Iterator[tuple[str, Move]]:
    size, width = speech["d_model"], text["hidden_size"]
    if adapter["adapter_type"] == "cformer":
        for place in ("pre", "post"):
            for number in range(adapter[f"cformer_{place}_layers"]):
                for name, shape in _whisper_layer(speech).items():
                    old, new = f"{place}_cif_layers.{number}.{name}", f"{place}_layers.{number}.{name}"
                    yield f"adapter.{old}", Move(shape, (f"adapter.{new}",))
        yield "adapter.cif_proj.weight", Move((size, size - 1), ("adapter.projection.weight",))
        yield "adapter.cif_proj.bias", Move((size,), ("adapter.projection.bias",))
        yield "adapter.token_embed_proj.weight", Move((width, size), ("adapter.token_projection.weight",))
        yield "adapter.token_embed_proj.bias", Move((width,), ("adapter.token_projection.bias",))
        yield "adapter.lm_head.weight", Move((text["vocab_size"], size), ("adapter.token_head.weight",))
        return
    kernels, inner = adapter["adapter_kernel_sizes"], adapter["adapter_inner_size"]
    for number, kernel in enumerate(kernels):
        out = 2 * (width if number == len(kernels) - 1 else size)  # the gated linear unit halves it
        old, new = f"adapter.subsampler.conv_layers.{number}", f"adapter.convolutions.{number}"
        yield f"{old}.weight", Move((out, size, kernel), (f"{new}.weight",))
        yield f"{old}.bias", Move((out,), (f"{new}.bias",))
    yield "adapter.fc1.weight", Move((inner, width), ("adapter.fc1.weight",))
    yield "adapter.fc2.weight", Move((width, inner), ("adapter.fc2.weight",))
    yield "adapter.speech_ln.weight", Move((width,), ("adapter.norm.weight",))
    yield "adapter.speech_ln.bias", Move((width,), ("adapter.norm.bias",))


def _language_moves(
    text: dict[str, Any], prefix: str, rank: int, targets: Collection[str]
) -> Iterator[tuple[str, Move]]:
    """Moves of Qwen-1 under `prefix`, with LoRA of `rank` (0: none) on the layers `targets` (our names)."""
    size, width, vocabulary = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    shapes = {
        "attn.c_attn": (3 * size, size),
        "attn.c_proj": (size, size),
        "mlp.w1": (width, size),
        "mlp.w2": (width, size),
        "mlp.c_proj": (size, width),
    }
    old, new = "qwen_model.transformer", f"{prefix}model"
    yield f"{old}.wte.weight", Move((vocabulary, size), (f"{new}.embed_tokens.weight",))
    for number in range(text["num_hidden_layers"]):
        block, layer = f"{old}.h.{number}", f"{new}.layers.{number}"
        yield f"{block}.ln_1.weight", Move((size,), (f"{layer}.input_layernorm.weight",))
        for linear, names in _LINEARS.items():
            has_lora = bool(rank) and names[0].rpartition(".")[2] in targets
            places = [f"{layer}.{name}" for name in names]
            base = [place + ".base" * has_lora for place in places]
            out, into = shapes[linear]
            split = len(names) > 1
            yield f"{block}.{linear}.weight", Move((out, into), tuple(f"{place}.weight" for place in base), split)
            if linear == "attn.c_attn":
                yield f"{block}.{linear}.bias", Move((out,), tuple(f"{place}.bias" for place in base), split)
            if has_lora:  # A is shared by q, k and v; B is split by rows
                a, b = (f"{block}.{linear}.lora_{part}.default.weight" for part in "AB")
                yield a, Move((rank, into), tuple(f"{place}.lora_a" for place in places))
                yield b, Move((out, rank), tuple(f"{place}.lora_b" for place in places), split)
        yield f"{block}.ln_2.weight", Move((size,), (f"{layer}.post_attention_layernorm.weight",))
    yield f"{old}.ln_f.weight", Move((size,), (f"{new}.norm.weight",))
    yield "qwen_model.lm_head.weight", Move((vocabulary, size), (f"{prefix}lm_head.weight",))
