"""A buffer that is written anew in every use and kept in between.

The allocator returns fresh memory for blocks of megabytes, which the system has to clear first. For transforms that
pass over their data once, clearing takes longer than the transform.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

# A cache line: blocks that begin on one never share it.
ALIGNMENT = 64
Block: TypeAlias = tuple[Sequence[int], torch.dtype]
"""A shape and a dtype."""


class WorkBuffer(threading.local):
    """One buffer on the CPU, as large as its largest use. Its users take turns; each thread has its own."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def take(self, *blocks: Block) -> list[Tensor]:
        """Tensors of these shapes and dtypes, contents undefined, valid until the next call."""
        sizes = self.reserve(*blocks)
        parts = self.buffer[: sum(sizes)].split(sizes)
        return [
            part[: prod(shape) * dtype.itemsize].view(dtype).view(tuple(shape))
            for part, (shape, dtype) in zip(parts, blocks, strict=True)
        ]

    def reserve(self, *blocks: Block) -> list[int]:
        """Make the buffer large enough for these blocks; the bytes of each."""
        sizes = [_aligned_size(block) for block in blocks]
        if sum(sizes) > self.buffer.numel():
            with torch.inference_mode(False):  # it may be written to outside of inference mode, too
                self.buffer = torch.empty(sum(sizes), dtype=torch.uint8)
        return sizes

    @property
    def nbytes(self) -> int:
        """Bytes that the buffer takes."""
        return self.buffer.nbytes


class MetaBuffer(WorkBuffer):
    """A buffer without memory, for counting how large a run makes it."""

    def __init__(self) -> None:
        self.size = 0

    def reserve(self, *blocks: Block) -> list[int]:
        """Note how large the buffer would be; the bytes of each block."""
        sizes = [_aligned_size(block) for block in blocks]
        self.size = max(self.size, sum(sizes))
        return sizes

    @property
    def nbytes(self) -> int:
        """Bytes that the buffer would take."""
        return self.size


def _aligned_size(block: Block) -> int:
    shape, dtype = block
    return -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
