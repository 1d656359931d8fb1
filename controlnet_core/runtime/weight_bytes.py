"""Bytes of weights in the dtype in which they are run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..models.float8 import FLOAT8


def weight_bytes(models: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Bytes of all weights in a dtype; those in float8 stay so."""
    parameters = (p for model in models for p in model.parameters())
    return sum(p.numel() * (p.element_size() if p.dtype in FLOAT8 else dtype.itemsize) for p in parameters)


def largest_weight(models: Iterable[nn.Module], dtype: torch.dtype) -> int:
    """Bytes of the largest weight in a dtype."""
    return max((p.numel() * dtype.itemsize for model in models for p in model.parameters()), default=0)
