"""Layers whose weights stay in float8 and are cast at each use.

A model in float8 takes a quarter of float32's memory, and no processor here computes in it. Each layer casts its
own weight when it is called and lets go of it afterwards, so one layer at a time is wide. The result is that of
a model that was cast when it was loaded. The packed forms of the same idea are in `pack`.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.narrow import NARROW
from .rebuild import cast_parameters, copy_leaf, rebuild

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class CastLinear(nn.Module):
    """A linear layer, its weight cast at each use."""

    def __init__(self, linear: nn.Linear, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.narrow = linear.weight.detach().to(device)
        self.bias = linear.bias  # cast with all other parameters of the tree

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with."""
        return self.narrow.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return F.linear(x, self.weight, self.bias)


class CastConv2d(nn.Module):
    """A convolution, its weight cast at each use."""

    def __init__(self, conv: nn.Conv2d, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.narrow = conv.weight.detach().to(device)
        self.bias = conv.bias

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with."""
        return self.narrow.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return F.conv2d(x, self.weight, self.bias, *self.geometry)  # type: ignore[arg-type]


def is_narrow(module: nn.Module) -> bool:
    """Whether a module holds weights in float8."""
    return any(parameter.dtype in NARROW for parameter in module.parameters())


def cast_at_use(module: ModuleT, device: torch.device, dtype: torch.dtype) -> ModuleT:
    """A twin that computes in `dtype`; layers in float8 cast their weights at each use, all else is cast now."""

    def replace(leaf: nn.Module) -> nn.Module | None:
        narrow = getattr(leaf, "weight", None) is not None and leaf.weight.dtype in NARROW
        if narrow and type(leaf) is nn.Linear:
            return CastLinear(leaf, device, dtype)
        if narrow and type(leaf) is nn.Conv2d:
            return CastConv2d(leaf, device, dtype)
        return copy_leaf(leaf)

    twin = rebuild(module, replace)
    cast_parameters(twin, device, dtype)
    return twin
