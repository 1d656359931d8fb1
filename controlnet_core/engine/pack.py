"""Weights in the layout the backend wants, reordered once instead of at every call.

`rebuild` makes a second tree of modules around the same parameters, with leaf modules replaced;
nothing of the original is changed. On the CPU in float32, convolutions and linear layers get
oneDNN's blocked layout; plain torch reorders the weights at each call, which for the deep layers
of a small picture takes longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..models.zero_conv import ZeroConv

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def rebuild(module: ModuleT, replace: Callable[[nn.Module], nn.Module | None]) -> ModuleT:
    """A tree of the same shape; `replace` returns a new leaf, or None to keep the module as it is."""
    new = replace(module)
    if new is not None:
        return new  # type: ignore[return-value]
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

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.plain = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.packed: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        weight = self.packed.get(x.shape)
        if weight is None:
            weight = self._pack(x.shape)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.geometry, "none", [], "")

    def _pack(self, size: torch.Size) -> Tensor:
        while len(self.packed) >= self.SIZES:
            self.packed.pop(next(iter(self.packed)))
        weight = torch.ops.mkldnn._reorder_convolution_weight(self.plain, *self.geometry, list(size))
        self.packed[size] = weight
        return weight


class PackedLinear(nn.Module):
    """A linear layer whose weight is in oneDNN's blocked layout. Inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack(module: ModuleT) -> ModuleT:
    """The module with packed layers where the backend has them; else the module itself.

    Zero convolutions keep their plain weights, for strengths are folded into them.
    """
    parameter = next(module.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return module
    return rebuild(module, _packed_leaf)


def _packed_leaf(module: nn.Module) -> nn.Module | None:
    if isinstance(module, ZeroConv):
        return module
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple):
        return PackedConv2d(module)
    if type(module) is nn.Linear:
        return PackedLinear(module)
    return None
