"""Layers under the names that the weights files give them, for networks without a forward pass of their own."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class Residual(nn.Sequential):
    """Layers that run one after the other; their input is added to the result."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def named(**layers: nn.Module) -> nn.Sequential:
    """A sequence of layers, each under its keyword.

    A keyword is a part of the key in the weights file. Layers without weights may have any name.
    """
    return nn.Sequential(OrderedDict(layers))


def named_residual(**layers: nn.Module) -> Residual:
    """A `Residual` of layers, each under its keyword."""
    return Residual(OrderedDict(layers))
