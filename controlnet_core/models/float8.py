"""float8: dtypes that weights are stored in and that no processor here computes in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
"""A quarter of float32. Every value of both is exact in float16, bfloat16 and float32."""


def computable(dtype: torch.dtype) -> torch.dtype:
    """The dtype itself, or float16 for one that is for storage only."""
    return torch.float16 if dtype in FLOAT8 else dtype


def storage_dtype(weight: Tensor, compute: torch.dtype) -> torch.dtype:
    """The dtype to hold a weight in: float8 for a matrix or kernel in float8, `compute` for everything else."""
    # Biases and norms are too small to be worth a cast on every forward call.
    return weight.dtype if weight.dtype in FLOAT8 and weight.ndim > 1 else compute


def has_float8(module: nn.Module) -> bool:
    """Whether a module holds weights in float8."""
    return any(parameter.dtype in FLOAT8 for parameter in module.parameters())
