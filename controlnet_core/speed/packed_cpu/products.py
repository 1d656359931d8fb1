"""Products with packed weights, by oneDNN's operators. Meta tensors (see `memory_estimate`) give only shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Geometry = tuple[list[int], list[int], list[int], int]
"""Padding, stride and dilation of a convolution, and its groups."""


def pack_linear(weight: Tensor) -> Tensor:
    """A weight (O, C) in oneDNN's blocked layout."""
    return weight.clone() if weight.is_meta else torch.ops.mkldnn._reorder_linear_weight(weight)


def pack_conv(weight: Tensor, geometry: Geometry, size: torch.Size) -> Tensor:
    """A kernel (O, C, h, w) in the blocked layout that is best for inputs of this size (B, C, H, W)."""
    if weight.is_meta:
        return weight.clone()
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(size))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """x W^T + b, (..., C) -> (..., O), optionally followed by GELU while the result is still in the cache."""
    if x.is_meta:
        return x.new_empty(*x.shape[:-1], weight.shape[0])
    name, algorithm = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)


def linear_with(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, operation: str) -> Tensor:
    """x W^T + b combined with another tensor (..., O) inside the product. operation: "add" or "mul"."""
    if x.is_meta:
        return x.new_empty(*x.shape[:-1], weight.shape[0])
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, operation)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, residual: Tensor | None) -> Tensor:
    """conv(x), plus a residual of the output's size inside the product."""
    if x.is_meta:
        padding, stride, dilation, groups = geometry
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "none", [], "")
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, residual, weight, bias, *geometry, "add", 1.0, None, [], None
    )
