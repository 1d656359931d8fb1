"""Where and how a run happens: device, dtype, and the callbacks of whoever started it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

from ..errors import Interrupted, ValueRangeError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DEVICES = ("cpu", "cuda", "mps")
BF16_SINCE = (8, 0)
"""Compute capability from which a GPU computes in bfloat16 itself; torch calls older ones able, which emulate it."""
Cancelled: TypeAlias = Callable[[], bool]
Memory = Literal["auto", "resident", "streamed"]


@dataclass(frozen=True)
class Runtime:
    """Policy of a run. `pack_weights` reorders weights once for the backend (a copy of them).

    winograd: of packed weights, large 3x3 convolutions are computed with fewer products (see `engine.winograd`), where
    the memory is there for their larger filters.
    chunk: pictures of a batch that are evaluated at a time; 0 for as many as fit. graphs: replay evaluations from
    CUDA graphs, where the run allows it. memory: whether weights are resident on the device, or brought to it from
    the host layer by layer; auto: resident while they fit, on a GPU. wide: blocks in fewer, larger kernels, where
    weights are neither packed nor streamed. side_by_side: nets run beside the encoder (see `engine.streams`). compile:
    transformer blocks go through torch.compile, where weights are neither packed nor streamed.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    vae_dtype: torch.dtype = torch.float32
    pack_weights: bool = True
    winograd: bool = True
    chunk: int = 0
    graphs: bool = False
    memory: Memory = "auto"
    wide: bool = False
    side_by_side: bool = False
    compile: bool = False

    @classmethod
    def choose(cls, device: str = "auto", dtype: str = "auto") -> Runtime:
        """From words, as a command line gives them. Raises ValueRangeError for unknown ones.

        device: as `choose_device`. dtype auto: fp16 on CUDA, else fp32. The autoencoder runs in bf16 or
        fp32, since SD1.5's overflows in fp16.
        """
        where = choose_device(device)
        if dtype == "auto":
            dtype = "fp16" if where.type == "cuda" else "fp32"
        if dtype not in DTYPES:
            raise ValueRangeError(f"dtype {dtype!r} is unknown: choose one of auto, {', '.join(DTYPES)}")
        half = where.type == "cuda" and torch.cuda.get_device_capability(where) >= BF16_SINCE
        return cls(where, DTYPES[dtype], torch.bfloat16 if half else torch.float32)


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
    except RuntimeError:
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
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _count(kind: str) -> int:
    """How many devices of a kind there are."""
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    return counts[kind]


def waits_for_results(device: torch.device) -> bool:
    """Whether looking at a result costs nothing since it is there anyway; on a GPU it would stall the queue."""
    return device.type == "cpu"


def check_cancelled(cancelled: Cancelled | None) -> None:
    """Raise Interrupted if the user asked to stop."""
    if cancelled is not None and cancelled():
        raise Interrupted("stopped by the user; nothing was written for the picture in progress")
