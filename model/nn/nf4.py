"""4-bit linear layers: NF4 with double quantization (QLoRA, arXiv 2305.14314), by bitsandbytes.

Blocks of 64 weights share a scale, and the scales are 8-bit numbers themselves: 4.127 bits per weight. The language
model's linear layers are quantized; its output layer, embeddings, norms and LoRA are not, nor are the adapter and the
emotion head. In the mode "nf4-all" the encoder's linear layers have 4 bits too.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from model.errors import WeightsMissing

MODES = ("nf4", "nf4-all")
BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share a second-level scale."""

_IDENTIFYING = ["load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage"]
_IDENTIFYING += ["llm_int8_skip_modules"]

# On CPUs with bfloat16, importing it reports a missing kernel; `prepare_layers` makes sure that it is never used.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def settings(mode: str, compute: torch.dtype) -> BitsAndBytesConfig:
    """The quantization config for transformers, as also saved in config.json.

    The output layer keeps 16 bits, the default of bitsandbytes, because it decides every token. With this choice the
    original's size is 7.36 GB, and 6.42 GB with the encoder.

    Args:
        mode: "nf4" or "nf4-all".
        compute: the type in which the layers multiply.

    Returns:
        The config.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=_kept(mode),
    )


def _kept(mode: str) -> list[str]:
    return ["adapter", "emotion_head", "lm_head", *(["encoder"] if mode == "nf4" else [])]


def stored_mode(config: dict[str, Any]) -> str | None:
    """The 4-bit mode in which a checkpoint's weights are stored.

    Args:
        config: its config.json, cleaned.

    Returns:
        "nf4" or "nf4-all"; None if they are not quantized.

    Raises:
        WeightsMissing: they are quantized in another way.
    """
    stored = config.get("quantization_config")
    if stored is None:
        return None
    for mode in MODES:
        ours = settings(mode, torch.float32).to_dict()
        if isinstance(stored, dict) and all(stored.get(key) == ours[key] for key in _IDENTIFYING):
            return mode
    raise WeightsMissing("Its weights are quantized in an unsupported way: convert the original again.")


def quantize_nf4(model: PreTrainedModel, mode: str, compute: torch.dtype) -> None:
    """Quantize the linear layers of a speech language model in place, on their device.

    Args:
        model: the speech language model.
        mode: "nf4", or "nf4-all" for the encoder's too.
        compute: the type in which the layers multiply.
    """
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    kept = _kept(mode)
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or name.split(".")[0] in kept or name.split(".")[-1] in kept:
            continue
        layer = Linear4bit(
            module.in_features, module.out_features, module.bias is not None, compute, quant_type="nf4", device="meta"
        )
        weight: Any = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", module=layer)
        layer.weight, layer.bias = weight.to(weight.device), module.bias
        model.set_submodule(name, layer.train(module.training))
    model.config.quantization_config = settings(mode, compute)
    prepare_layers(model, compute)


def prepare_layers(model: nn.Module, compute: torch.dtype) -> None:
    """Check loaded 4-bit layers and make them compute in `compute`, the same on every CPU.

    On CPUs with bfloat16, bitsandbytes would rearrange the weights at their first use. That needs a multiple of 32
    outputs, rounds activations and scales to bfloat16, and cannot be undone when saving.

    Args:
        model: with layers of bitsandbytes.
        compute: the type in which they multiply.

    Raises:
        WeightsMissing: the stored shapes do not fit the layer and would be read past their end.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for name, layer in model.named_modules():
        if not isinstance(layer, Linear4bit):
            continue
        if not _is_valid(layer):
            raise WeightsMissing(f"The 4-bit weights of {name} are damaged: get the checkpoint again.")
        layer.compute_dtype, layer.compute_type_is_set = compute, True
        layer.support_avx512bf16_for_cpu = False
        if layer.weight.device.type == "cpu" and layer.in_features % BLOCK:
            layer.__class__ = _ragged()


@functools.cache
def _ragged() -> Any:
    """A 4-bit layer for CPUs whose blocks cross row ends; bitsandbytes 0.50 uses the wrong scales there."""
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.nn.modules import Linear4bit

    class RaggedLinear4bit(Linear4bit):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """[..., in] -> [..., out], the weights expanded as one long row."""
            quantized: Any = self.weight
            packed, state = quantized.data, quantized.quant_state
            scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
            flat = torch.ops.bitsandbytes.dequantize_4bit.default(
                packed, scales, BLOCK, "nf4", (1, 2 * packed.numel()), self.compute_dtype
            )
            weight = flat[0, : self.out_features * self.in_features].view(self.out_features, self.in_features)
            bias = None if self.bias is None else self.bias.to(self.compute_dtype)
            return nn.functional.linear(x.to(self.compute_dtype), weight, bias).to(x.dtype)

    return RaggedLinear4bit


def _is_valid(layer: Any) -> bool:
    state = getattr(layer.weight, "quant_state", None)
    if state is None or state.state2 is None or state.quant_type != "nf4":
        return False
    size = layer.out_features * layer.in_features
    scales = -(-size // BLOCK)
    return bool(
        tuple(state.shape) == (layer.out_features, layer.in_features)
        and (state.blocksize, state.state2.blocksize) == (BLOCK, NESTED_BLOCK)
        and (layer.weight.dtype, layer.weight.numel()) == (torch.uint8, (size + 1) // 2)
        and (state.absmax.dtype, state.absmax.numel()) == (torch.uint8, scales)
        and (state.state2.absmax.dtype, state.state2.absmax.numel()) == (torch.float32, -(-scales // NESTED_BLOCK))
        and (state.code.numel(), state.state2.code.numel()) == (16, 256)
        and (state.code.dtype, state.state2.code.dtype) == (torch.float32, torch.float32)
        and state.state2.absmax.isfinite().all()
        and state.offset.isfinite()
        and state.state2.code.isfinite().all()
    )


def nf4_bytes(weights: int) -> int:
    """Size of a linear layer's weights in NF4 with double quantization.

    Args:
        weights: number of weights.

    Returns:
        Bytes.
    """
    scales = -(-weights // BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // NESTED_BLOCK)
