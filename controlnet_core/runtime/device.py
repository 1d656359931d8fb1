"""Where and how a run happens: device, dtype and memory policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import Interrupted, ValueRangeError
from .options import RuntimeOptions

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEVICES = ("cpu", "cuda", "mps")
BF16_SINCE = (8, 0)
"""Compute capability from which a GPU computes in bfloat16 itself; torch calls older ones able, which emulate it."""
Cancelled: TypeAlias = Callable[[], bool]


@dataclass(frozen=True)
class Runtime(RuntimeOptions):
    """Policy of a run. A choice that has no effect in a run is reported.

    dtype: of the UNet and its nets. vae_dtype: of the autoencoder. pack_weights: on the CPU, keep a copy of the weights
    in the layout that the processor's library prefers.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    vae_dtype: torch.dtype = torch.float32
    pack_weights: bool = True

    @classmethod
    def choose(cls, device: str = "auto", dtype: str = "auto") -> Runtime:
        """From words, as a command line gives them. Raises ValueRangeError for unknown ones.

        device: as `choose_device`. dtype auto: fp16 on CUDA, else fp32. The autoencoder runs in bf16 or
        fp32, since SD1.5's overflows in fp16.
        """
        where = choose_device(device)
        if dtype == "auto":
            # Half of the memory, and faster on a GPU; most CPUs compute fp16 by converting each value.
            dtype = "fp16" if where.type == "cuda" else "fp32"
        if dtype not in DTYPES:
            raise ValueRangeError(f"dtype {dtype!r} is unknown: choose one of auto, {', '.join(DTYPES)}")
        has_bf16 = where.type == "cuda" and torch.cuda.get_device_capability(where) >= BF16_SINCE
        return cls(where, DTYPES[dtype], torch.bfloat16 if has_bf16 else torch.float32)


def choose_device(name: str) -> torch.device:
    """cpu, cuda, cuda:1 or mps by name; auto is CUDA where there is one, else mps, else the CPU.

    CUDA devices come with their number, as tensors on them say it.

    Raises ValueRangeError for an unknown name, and for a device that this machine does not have.
    """
    if name == "auto":
        found = next((kind for kind in ("cuda", "mps") if _count(kind)), "cpu")
        return _numbered(torch.device(found))
    try:
        device = torch.device(name)
    except RuntimeError:  # torch's message lists some thirty backends
        device = None
    if device is None or device.type not in DEVICES:
        raise ValueRangeError(f"device {name!r} is unknown: use auto, cpu, cuda, cuda:1 or mps")
    count = _count(device.type)
    if (device.index or 0) < count:
        return _numbered(device)
    words = {"cuda": "CUDA", "mps": "Apple GPU"}.get(device.type, device.type)
    if count:
        raise ValueRangeError(f"device {name} is not there: {device.type}:{count - 1} is the last of this machine")
    raise ValueRangeError(
        f"device {name} is not there: torch {torch.__version__} sees no {words} device; use --device cpu, or "
        "install a torch that is built for it"
    )


def _numbered(device: torch.device) -> torch.device:
    # A device without a number is not equal to that of a tensor on it.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _count(kind: str) -> int:
    """How many devices of a kind there are."""
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    return counts[kind]


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) in the memory layout in which convolutions are fastest on every device."""
    return x.contiguous(memory_format=torch.channels_last)


def results_are_free(device: torch.device) -> bool:
    """Whether reading a result costs nothing. On a GPU it stalls the queue of work."""
    return device.type == "cpu"


def check_cancelled(cancelled: Cancelled | None) -> None:
    """Raise Interrupted if the user asked to stop."""
    if cancelled is not None and cancelled():
        raise Interrupted("stopped by the user; the image in progress was not saved")
