"""Layers whose weights stay in float8 and are cast at each use.

A model in float8 takes a quarter of float32's memory, and no processor here computes in it. Each layer casts its
own weight when it is called and lets go of it afterwards, so one layer at a time is wide. The result is that of
a model that was cast when it was loaded. The packed forms of the same idea are in `pack`.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from ..models.narrow import NARROW
from .at_use import AtUse
from .rebuild import cast_parameters, copy_leaf, placed, rebuild

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class CastAtUse(AtUse):
    """A layer whose weight is cast at each use."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layer)
        self.dtype = dtype
        self.narrow = placed(layer.weight.detach(), device, layer.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight as it is computed with."""
        return self.narrow.to(self.dtype)


def is_narrow(module: nn.Module) -> bool:
    """Whether a module holds weights in float8."""
    return any(parameter.dtype in NARROW for parameter in module.parameters())


def cast_at_use(module: ModuleT, device: torch.device, dtype: torch.dtype) -> ModuleT:
    """A twin that computes in `dtype`; layers in float8 cast their weights at each use, all else is cast now."""

    def replace(leaf: nn.Module) -> nn.Module | None:
        narrow = getattr(leaf, "weight", None) is not None and leaf.weight.dtype in NARROW
        if narrow and type(leaf) in (nn.Linear, nn.Conv2d):
            return CastAtUse(leaf, device, dtype)  # type: ignore[arg-type]
        return copy_leaf(leaf)

    twin = rebuild(module, replace)
    cast_parameters(twin, device, dtype)
    return twin
