"""Layers that load their weight on every forward call: cast (`speed.float8_layers`) or copied (`speed.offload`)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn


class LazyWeight(nn.Module, ABC):
    """A linear layer or a convolution. A subclass provides the weight."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.bias = layer.bias  # cast and moved with all other parameters of the tree
        self.geometry = None
        if isinstance(layer, nn.Conv2d):
            self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The weight in the dtype and on the device to compute in."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C') for a linear layer, (B, C, H, W) -> (B, C', H', W') for a convolution."""
        if self.geometry is None:
            return F.linear(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, *self.geometry)  # type: ignore[arg-type]
