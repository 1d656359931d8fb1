"""Copies to a GPU that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device_async(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device. A copy from the host to a GPU is queued behind the GPU's work."""
    x = x.to(dtype=dtype or x.dtype)
    if (x.device.type, device.type) != ("cpu", "cuda"):
        return x.to(device)
    # A copy from pageable memory would make the host wait until the GPU has finished all earlier work.
    return x.pin_memory().to(device, non_blocking=True)
