"""Bytes of weights, as they are run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..models.narrow import NARROW


def weights_of(models: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Bytes of their weights in a dtype; those in float8 stay so."""
    parameters = (p for model in models for p in model.parameters())
    return sum(p.numel() * (p.element_size() if p.dtype in NARROW else dtype.itemsize) for p in parameters)


def largest_of(models: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Bytes of the largest of them in a dtype."""
    return max((p.numel() * dtype.itemsize for model in models for p in model.parameters()), default=0)
