"""What a run is to take beside what is free, and how it is made to fit: a few pictures of a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .footprint import MB, Footprint

ROOM = 0.9
"""Share of the free memory that a run may take; the rest is for what is not counted."""


@dataclass(frozen=True)
class MemoryPlan:
    """footprint: of the run, `chunk` pictures of its batch at a time. loaded: bytes of its weights that are on the
    device already. free: bytes that are free there, None where that cannot be known."""

    footprint: Footprint
    batch: int
    chunk: int
    loaded: int
    free: int | None

    @property
    def fits(self) -> bool:
        """Whether there is room, as far as is known."""
        return self.free is None or self.footprint.peak - self.loaded <= ROOM * self.free

    def words(self) -> str:
        """On one line, with what to do when it will not fit."""
        parts = [f"memory: {self.footprint.words()}"]
        if self.chunk < self.batch:
            parts.append(f"{self.chunk} of {self.batch} pictures at a time")
        if self.free is not None:
            parts.append(f"{self.free / MB:,.0f} MB free")
        if not self.fits:
            parts.append("more than there is: use a smaller picture, fewer ControlNets, or dtype bf16 or fp16")
        return "; ".join(parts)

    def data(self) -> dict[str, Any]:
        """For JSON, in bytes."""
        told = self.footprint
        return {
            "peak": told.peak, "weights": told.weights, "prepared": told.prepared, "preparing": told.preparing,
            "step": told.step, "chunk": self.chunk, "batch": self.batch, "loaded": self.loaded, "free": self.free,
            "fits": self.fits,
        }  # fmt: skip


def plan_memory(
    footprint: Callable[[int], Footprint], batch: int, loaded: int, free: int | None, chunk: int = 0
) -> MemoryPlan:
    """How many pictures of a batch are evaluated at once: `chunk` of them, or, if that is 0, as many as fit.

    footprint: of so many pictures. Halved until it fits: equal chunks cost the least.
    """
    pictures = min(chunk, batch) or batch
    plan = MemoryPlan(footprint(pictures), batch, pictures, loaded, free)
    while not chunk and not plan.fits and pictures > 1:
        pictures = -(-pictures // 2)
        plan = MemoryPlan(footprint(pictures), batch, pictures, loaded, free)
    return plan


def free_bytes(device: torch.device) -> int | None:
    """Bytes that may be taken on a device: free ones, and on a GPU those that the allocator holds unused."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return _available() if device.type == "cpu" else None


def _available(table: Path = Path("/proc/meminfo")) -> int | None:
    """What Linux would give without swapping."""
    if not table.is_file():
        return None
    lines = (line.split() for line in table.read_text(encoding="ascii").splitlines())
    kilobytes = next((int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]), None)
    return None if kilobytes is None else 1024 * kilobytes
