"""Layers whose weights stay in float8 and are cast on every forward call.

A model in float8 takes a quarter of the memory of float32, and no processor here computes in it. Each layer casts its
own weight and drops it afterwards, so that one layer at a time is held in full. The result is bit-equal to a model that
was cast when it was loaded. `speed.packed_cpu` has packed forms of the same idea.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from ..models.float8 import FLOAT8
from ..models.module_tree import cast_parameters, copy_leaf, place_weight, rebuild
from .context import WeightPolicy
from .lazy_weight import LazyWeight

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Float8Layer(LazyWeight):
    """A layer whose weight is stored in float8."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layer)
        self.dtype = dtype
        self.stored = place_weight(layer.weight.detach(), device, layer.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight, cast."""
        return self.stored.to(self.dtype)


def transform(module: ModuleT, policy: WeightPolicy) -> ModuleT:
    """A second tree that computes in the policy's dtype; everything that is not float8 is cast now."""
    device, dtype = policy.runtime.device, policy.runtime.dtype

    def replace(leaf: nn.Module) -> nn.Module | None:
        if type(leaf) in (nn.Linear, nn.Conv2d) and leaf.weight.dtype in FLOAT8:
            return Float8Layer(leaf, device, dtype)  # type: ignore[arg-type]
        return copy_leaf(leaf)

    twin = rebuild(module, replace)
    cast_parameters(twin, device, dtype)
    return twin
