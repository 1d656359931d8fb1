"""Types that weights are stored in and no processor here computes in."""

from __future__ import annotations

import torch
from torch import Tensor

NARROW = (torch.float8_e4m3fn, torch.float8_e5m2)
"""A quarter of float32. Every value of both is exact in float16, bfloat16 and float32."""


def computable(dtype: torch.dtype) -> torch.dtype:
    """The type itself, or float16 for one to store in only."""
    return torch.float16 if dtype in NARROW else dtype


def held(weight: Tensor, wide: torch.dtype) -> torch.dtype:
    """The type to hold a weight in: float8 for a matrix or kernel in float8, `wide` for all else.

    What is no matrix (biases, norms) is too small to be worth casting at each use.
    """
    return weight.dtype if weight.dtype in NARROW and weight.ndim > 1 else wide
