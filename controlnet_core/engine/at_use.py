"""Layers whose weight is not at hand but come by at each use: cast (`engine.narrow`) or brought (`engine.stream`)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn


class AtUse(nn.Module, ABC):
    """A linear layer or a convolution of some weight. A subclass says which."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.bias = layer.bias  # cast and moved with all other parameters of the tree
        self.geometry = None
        if isinstance(layer, nn.Conv2d):
            self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The weight as it is computed with."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C') of a linear layer, (B, C, H, W) -> (B, C', H', W') of a convolution."""
        if self.geometry is None:
            return F.linear(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, *self.geometry)  # type: ignore[arg-type]
