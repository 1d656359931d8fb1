"""Transformer blocks through `torch.compile`, by choice: what is between their products becomes a few kernels.

Only these blocks: they have four shapes in SD1.5 and three in SDXL, each compiled once (a minute in all, at the first
step), where residual blocks have a shape for almost every place, and their convolutions are libraries' anyway.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ..models.layers import TransformerBlock
from .fuse_gpu import WideTransformerBlock

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MODE = "max-autotune-no-cudagraphs"
"""The graphs are ours (see `engine.graphs`), and hold more than one block."""


def compile_blocks(twin: ModuleT, backend: str = "inductor") -> ModuleT:
    """The twin, its transformer blocks compiled when they are first called. Its original is not touched.

    Once for each shape, up to torch's limit (8, as of two picture sizes); further shapes run as they are.

    backend: of torch.compile.
    """
    options = {"mode": MODE} if backend == "inductor" else {}
    for module in twin.modules():
        if isinstance(module, TransformerBlock | WideTransformerBlock):
            module.compile(backend=backend, dynamic=False, **options)
    return twin
