"""Weights in the layout the backend wants, reordered once instead of at every call.

`rebuild` makes a second tree of modules, with leaf modules replaced; nothing of the original is
changed. On the CPU in float32 and bfloat16, convolutions and linear layers get oneDNN's blocked
layout; plain torch reorders the weights at each call, which for the deep layers of a small picture
takes longer than the arithmetic.

The originals stay as their file has them, in its dtype, and mapped from it: their pages are read
while a layer is packed and are the system's to take back afterwards, so that a model is held once.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..models.layers import FeedForward, ResBlock, TransformerBlock
from .fuse import FusedFeedForward, FusedResBlock, FusedTransformerBlock

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def rebuild(module: ModuleT, replace: Callable[[nn.Module], nn.Module | None]) -> ModuleT:
    """A tree of the same shape; `replace` returns a new leaf, or None to keep the module as it is."""
    new = replace(module)
    return _rebuild_inside(module, replace) if new is None else new  # type: ignore[return-value]


def shell(module: ModuleT) -> ModuleT:
    """A tree of the same shape around the same weights: it stays when the module goes, and follows what becomes of it.

    Weights that are moved, cast or loaded anew in the module are so in the shell too.
    """
    return rebuild(module, _copy_leaf)


def _rebuild_inside(module: ModuleT, replace: Callable[[nn.Module], nn.Module | None]) -> ModuleT:
    twin = copy(module)
    children = module._modules.items()
    twin._modules = {name: child if child is None else rebuild(child, replace) for name, child in children}
    return twin


class PackedConv2d(nn.Module):
    """A convolution whose weight is in oneDNN's blocked layout. Inference only.

    The best layout depends on the size of the input, so the weight is packed when a size is first
    met; a weight in another size's layout would be reordered at every call, which is what packing is
    there to avoid. Few sizes are remembered, for a run has one per layer, two with areas.
    """

    SIZES = 2

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.dtype = dtype
        self.plain = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.packed: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return torch.ops.mkldnn._convolution_pointwise(x, self._weight(x), self.bias, *self.geometry, "none", [], "")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + conv(x), the sum taken inside the product; residual (B, C', H', W')."""
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, self._weight(x), self.bias, *self.geometry, "add", 1.0, None, [], None
        )

    def _weight(self, x: Tensor) -> Tensor:
        weight = self.packed.get(x.shape)
        return self._pack(x.shape) if weight is None else weight

    def _pack(self, size: torch.Size) -> Tensor:
        while len(self.packed) >= self.SIZES:
            self.packed.pop(next(iter(self.packed)))
        weight = torch.ops.mkldnn._reorder_convolution_weight(self.plain.to(self.dtype), *self.geometry, list(size))
        self.packed[size] = weight
        return weight


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's blocked layout. Inference only."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype))
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the product."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + the product, (..., C')."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """factor * the product, (..., C')."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.weight, self.bias, "mul")


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this processor computes in `dtype` with packed weights."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(module: ModuleT, dtype: torch.dtype) -> ModuleT:
    """A twin with packed layers that computes in `dtype`; see `can_pack`."""

    def replace(leaf: nn.Module) -> nn.Module | None:
        if type(leaf) is nn.Conv2d and leaf.padding_mode == "zeros" and isinstance(leaf.padding, tuple):
            return PackedConv2d(leaf, dtype)
        if type(leaf) is nn.Linear:
            return PackedLinear(leaf.weight, leaf.bias, dtype)
        if type(leaf) is FeedForward:
            return _pack_feed_forward(leaf, dtype)
        if type(leaf) is ResBlock:
            return FusedResBlock(_rebuild_inside(leaf, replace))
        if type(leaf) is TransformerBlock:
            return FusedTransformerBlock(_rebuild_inside(leaf, replace))
        return _copy_leaf(leaf)

    twin = rebuild(module, replace)
    for part in twin.modules():  # copies, all of them: the original's parameters are left alone
        part._parameters = {name: None if p is None else _cast(p, dtype) for name, p in part._parameters.items()}
    return twin


def _pack_feed_forward(ff: FeedForward, dtype: torch.dtype) -> FusedFeedForward:
    value, gate = ff.proj.weight.chunk(2)
    value_bias, gate_bias = ff.proj.bias.chunk(2)
    out = PackedLinear(ff.out.weight, ff.out.bias, dtype)
    return FusedFeedForward(PackedLinear(value, value_bias, dtype), PackedLinear(gate, gate_bias, dtype), out)


def _copy_leaf(module: nn.Module) -> nn.Module | None:
    return None if module._modules else copy(module)


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
