"""Packed weights on the CPU: layouts that oneDNN prefers, fused blocks, and Winograd convolutions."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ..context import WeightPolicy
from .pack import pack

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def transform(module: ModuleT, policy: WeightPolicy) -> ModuleT:
    """A second tree with packed layers; the module is left as it is."""
    return pack(module, policy.runtime.dtype, policy.work_buffer, policy.kept)
