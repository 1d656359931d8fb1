"""Memory that is written anew at every use, and kept meanwhile.

What an allocator hands out anew for each layer is, for sizes of megabytes, memory that the system has to clear
first: for transforms that only pass over their data once, that takes longer than the transform.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

ALIGNMENT = 64
Wanted: TypeAlias = tuple[Sequence[int], torch.dtype]
"""A shape and a dtype."""


class Scratch(threading.local):
    """One buffer on the CPU, grown to the largest use. Its users take turns; each thread has its own."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def take(self, *wanted: Wanted) -> list[Tensor]:
        """Tensors of these shapes and dtypes, contents undefined, until the next call."""
        sizes = [_padded(each) for each in wanted]
        if sum(sizes) > self.buffer.numel():
            with torch.inference_mode(False):  # it may be written to outside of that too
                self.buffer = torch.empty(sum(sizes), dtype=torch.uint8)
        parts = self.buffer[: sum(sizes)].split(sizes)
        return [
            part[: prod(shape) * dtype.itemsize].view(dtype).view(tuple(shape))
            for part, (shape, dtype) in zip(parts, wanted, strict=True)
        ]

    @staticmethod
    def size(*wanted: Wanted) -> int:
        """Bytes that these take."""
        return sum(_padded(each) for each in wanted)


def _padded(wanted: Wanted) -> int:
    shape, dtype = wanted
    return -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
