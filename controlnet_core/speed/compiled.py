"""Transformer blocks through `torch.compile`: what lies between their products becomes a few kernels.

Only these blocks: they have four shapes in SD1.5 and three in SDXL, each compiled once (about a minute in all, in the
first step). Residual blocks have a different shape almost everywhere, and a library computes their convolutions anyway.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ..models.layers import TransformerBlock
from .fused_qkv import FusedGpuTransformerBlock

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MODE = "max-autotune-no-cudagraphs"
"""No graph for each block: another acceleration captures a whole evaluation."""


def compile_blocks(twin: ModuleT, backend: str = "inductor") -> ModuleT:
    """Compile the transformer blocks of a second tree in place, when they are first called; returns the tree.

    Each shape is compiled once, up to torch's limit of 8; further shapes run uncompiled. backend: of torch.compile.
    """
    options = {"mode": MODE} if backend == "inductor" else {}
    for module in twin.modules():
        if isinstance(module, TransformerBlock | FusedGpuTransformerBlock):
            module.compile(backend=backend, dynamic=False, **options)
    return twin
