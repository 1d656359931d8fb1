"""Where and how a run happens: device, dtype, and the callbacks of whoever started it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from ..errors import Interrupted, ValueRangeError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Cancelled: TypeAlias = Callable[[], bool]


@dataclass(frozen=True)
class Runtime:
    """Policy of a run. `pack_weights` reorders weights once for the backend (a copy of them)."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    vae_dtype: torch.dtype = torch.float32
    pack_weights: bool = True

    @classmethod
    def choose(cls, device: str = "auto", dtype: str = "auto") -> Runtime:
        """From words, as a command line gives them. Raises ValueRangeError for unknown ones.

        auto: a CUDA device where there is one, else the CPU; fp16 on CUDA, fp32 on the CPU. The
        autoencoder runs in bf16 or fp32, since SD1.5's overflows in fp16.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            where = torch.device(device)
        except RuntimeError as error:
            raise ValueRangeError(f"device {device!r} is unknown: use cpu, cuda, cuda:1, mps or auto") from error
        if where.type == "cuda" and not torch.cuda.is_available():
            raise ValueRangeError("device cuda was asked for, but this torch sees no CUDA device: use --device cpu")
        if dtype == "auto":
            dtype = "fp16" if where.type == "cuda" else "fp32"
        if dtype not in DTYPES:
            raise ValueRangeError(f"dtype {dtype!r} is unknown: choose one of auto, {', '.join(DTYPES)}")
        half = where.type == "cuda" and torch.cuda.is_bf16_supported()
        return cls(where, DTYPES[dtype], torch.bfloat16 if half else torch.float32)


def waits_for_results(device: torch.device) -> bool:
    """Whether looking at a result costs nothing since it is there anyway; on a GPU it would stall the queue."""
    return device.type == "cpu"


def check_cancelled(cancelled: Cancelled | None) -> None:
    """Raise Interrupted if the user asked to stop."""
    if cancelled is not None and cancelled():
        raise Interrupted("stopped by the user; nothing was written for the picture in progress")
