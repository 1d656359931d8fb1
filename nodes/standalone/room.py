"""Says before the work that a result does not fit into memory.

Linux promises more memory than there is, and ends the process, or another one, when it is used. A workflow of a few
bytes, such as a chain of nodes that each double a batch, must not do that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...controlnet_core.errors import OutOfMemory
from ...controlnet_core.runtime.memory import free_bytes

_SMALL = 2**28
"""Bytes that are not worth a question to the system."""
_FLOAT = 4


def require_room(shape: Sequence[int]) -> None:
    """Raise OutOfMemory when a float32 tensor of this shape is larger than the free memory."""
    needed = _FLOAT * math.prod(shape)
    if needed <= _SMALL:
        return
    free = free_bytes(torch.device("cpu"))
    if free is not None and needed > free:
        sides = " x ".join(map(str, shape))
        raise OutOfMemory(
            f"the result, {sides} numbers, takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free: use a "
            "smaller picture or batch"
        )
