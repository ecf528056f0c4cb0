"""Linear layers in 8-bit integers for CPUs.

Weights have one scale per output row, activations one scale per position, both symmetric; products accumulate exactly
in 32-bit integers. Because every position has its own scale, a row's result does not depend on its batch: a prefill of
many positions and a step of one agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize symmetrically to int8 with one scale per row: values ~ q * scale.

    Args:
        values: float [M, K].

    Returns:
        q int8 [M, K] and scale float32 [M, 1]; an all-zero row has scale 0.
    """
    scale = values.abs().amax(dim=-1, keepdim=True) / 127
    return (values / scale.clamp(min=1e-20)).round_().to(torch.int8), scale


class Int8Linear(nn.Module):
    """y = x W^T + b with W and x in int8; needs at least two inputs (torch._int_mm misreads a single column)."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """Quantize a linear layer."""
        weight, scale = quantize_rows(linear.weight.detach().float())
        bias = None if linear.bias is None else linear.bias.detach().float()
        return cls(weight, scale[:, 0], bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out], float32."""
        rows, scale = quantize_rows(hidden.reshape(-1, self.in_features).float())
        output = torch._int_mm(rows, self.weight.t()).float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            output = output.add_(self.bias)
        return output.view(*hidden.shape[:-1], self.out_features)


def join(layers: Sequence[nn.Linear | Int8Linear]) -> nn.Module:
    """One layer that computes the concatenated outputs of several layers over the same input.

    The layers keep working and become views of the joined weights, so nothing is stored twice.

    Args:
        layers: linear or int8 layers; others, such as 4-bit ones, run one after the other.

    Returns:
        [..., in] to [..., sum of outputs].
    """
    if any(type(layer) not in (nn.Linear, Int8Linear) for layer in layers):
        return _SideBySide(layers)
    weight = torch.cat([layer.weight.data for layer in layers])
    biases = [layer.bias.data for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    scales = [layer.scale for layer in layers if isinstance(layer, Int8Linear)]
    joined: nn.Linear | Int8Linear
    if scales:
        joined = Int8Linear(weight, torch.cat(scales), bias)
    else:
        joined = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        joined.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            joined.bias = nn.Parameter(bias, requires_grad=False)
    start = 0
    for layer in layers:
        layer.weight.data = weight[start : start + layer.out_features]
        start += layer.out_features
    return joined


class _SideBySide(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., sum of out]."""
        return torch.cat([layer(hidden) for layer in self.layers], dim=-1)


def quantize_int8(module: nn.Module) -> None:
    """Replace every linear layer below `module` by its int8 form, in place.

    Args:
        module: any module; only layers of exactly the type `nn.Linear` are replaced.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:  # a subclass may store its weights in another way
                setattr(parent, name, Int8Linear.of(child))
