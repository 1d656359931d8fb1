"""The memory that a run takes, compared with the free memory, and ways to make it fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

MB = 1e6
ROOM = 0.9
"""Fraction of the free memory that a run may take. The rest covers allocations that the estimate does not count."""
SPARE = 64 * 2**20
"""Bytes that a share of resident weights leaves free beside that."""
TILES = (128, 96, 64, 48, 32)
"""Sides of tiles in latent cells, the largest first: the larger, the less a picture differs from the whole's."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a run, see `memory_estimate`.

    weights: of the UNet and its nets, as they are run. prepared: kept over the run (texts, timesteps, hints, masks).
    preparing: the most that is alive while that is made. step: the most that an evaluation holds beside all of it.
    carried: what evaluations keep for later ones, to continue or to replay them.
    is_known: False if only the weights could be counted.
    """

    weights: int
    prepared: int
    preparing: int
    step: int
    carried: int = 0
    is_known: bool = True

    @property
    def peak(self) -> int:
        """Most bytes at once."""
        return self.weights + max(self.preparing, self.prepared + self.carried + self.step)


@dataclass(frozen=True)
class MemoryPlan:
    """A run and the memory it may take, in bytes.

    footprint: of the run with `chunk` images of its `batch` at a time. loaded: weights that are on the device already.
    free: free on the device, None if unknown. resident: weights that stay on the device while the rest is copied there
    when it is used; None for all. under_way: the most of the rest that is on its way. winograd: whether packed weights
    have Winograd filters, None if that was not asked for.
    """

    footprint: Footprint
    batch: int
    chunk: int
    loaded: int
    free: int | None
    resident: int | None = None
    under_way: int = 0
    winograd: bool | None = None

    @property
    def weights(self) -> int:
        """Bytes of weights on the device at once."""
        # Of streamed weights, only the resident share and those under way are on the device.
        whole = self.footprint.weights
        return whole if self.resident is None else min(whole, self.resident + self.under_way)

    @property
    def peak(self) -> int:
        """Most bytes on the device at once."""
        return self.footprint.peak - self.footprint.weights + self.weights

    @property
    def missing(self) -> int:
        """Bytes that are needed and not free; less than 0 where there is room to spare, or nothing is known."""
        return -1 if self.free is None else self.peak - min(self.loaded, self.weights) - int(ROOM * self.free)

    @property
    def fits(self) -> bool:
        """Whether there is room, as far as is known."""
        return self.missing <= 0

    def summary(self) -> str:
        """Describe the plan on one line, with advice where the run does not fit."""
        footprint = self.footprint
        parts = [
            f"memory: {self.peak / MB:,.0f} MB: weights {self.weights / MB:,.0f}, text, timesteps and hints "
            f"{footprint.prepared / MB:,.0f}, a step {footprint.step / MB:,.0f}"
        ]
        if footprint.carried:
            parts[0] += f", kept between steps {footprint.carried / MB:,.0f}"
        if self.weights < footprint.weights:
            parts.append(
                f"{(footprint.weights - self.weights) / MB:,.0f} MB of weights stay on the host and are streamed"
            )
        if self.winograd is False:
            parts.append("convolutions by definition, because the larger Winograd filters do not fit")
        if self.chunk < self.batch:
            parts.append(f"{self.chunk} of {self.batch} images at a time")
        if not footprint.is_known:
            parts.append("only weights are counted, since the step could not be tried without values")
        if self.free is not None:
            parts.append(f"{self.free / MB:,.0f} MB free")
        if not self.fits:
            advice = "--memory streamed, " if self.resident is None else ""
            parts.append(f"more than there is: use {advice}a smaller image, fewer ControlNets, or bf16 or fp16")
        return "; ".join(parts)

    def data(self) -> dict[str, Any]:
        """The plan as a dictionary for JSON; sizes in bytes."""
        return {"peak": self.peak, "fits": self.fits, **asdict(self)}


@dataclass(frozen=True)
class Streaming:
    """How weights may be streamed from the host.

    fixed: bytes of weights that stay on the device, however much memory is free; None to choose. now: bytes that stay
    there at present; None for all. may: whether weights may be streamed at all. under_way: see `MemoryPlan`.
    """

    fixed: int | None = None
    now: int | None = None
    may: bool = False
    under_way: int = 0

    def share(self, room: int) -> int:
        """How many bytes of weights to keep on the device, if there is room for `room` bytes.

        Another number means loading weights again. So the present one stays as long as it fits and is not much smaller
        than possible. A new one leaves some room, because what a run prepared is still in memory when the next run is
        planned.
        """
        if self.now is not None and self.now <= room <= self.now + self.now // 4 + 2 * SPARE:
            return self.now
        return max(0, room - SPARE)


RESIDENT = Streaming()


def plan_memory(
    footprint: Callable[[int], Footprint],
    batch: int,
    loaded: int,
    free: int | None,
    chunk: int = 0,
    streaming: Streaming = RESIDENT,
) -> MemoryPlan:
    """How many pictures of a batch are evaluated at once: `chunk` of them, or, if that is 0, as many as fit.

    footprint: of so many pictures. Halved until it fits: equal chunks cost the least. Weights are streamed last, and
    only in a run that needs it: the next run is planned by itself.
    """
    pictures = min(chunk, batch) or batch
    plan = MemoryPlan(footprint(pictures), batch, pictures, loaded, free, streaming.fixed, streaming.under_way)
    # Halved and rounded up: parts of equal size waste no evaluation on a small rest.
    while not chunk and not plan.fits and pictures > 1:
        pictures = -(-pictures // 2)
        plan = replace(plan, footprint=footprint(pictures), chunk=pictures)
    if plan.fits or streaming.fixed is not None or not streaming.may:
        return plan
    room = plan.footprint.weights - plan.missing - plan.under_way
    return replace(plan, resident=streaming.share(room))


def plan_decoding(
    needed: Callable[[int, tuple[int, int]], int], rows: int, size: tuple[int, int], free: int | None
) -> tuple[int, int | None]:
    """How an autoencoder decodes `rows` latents of a size (h, w): how many at a time, and in tiles of how many cells.

    needed: bytes for so many latents of a size. Fewer rows are exact and are tried first; None is no tiles.
    """
    room = float("inf") if free is None else ROOM * free
    for count in (rows, *(-(-rows // 2**k) for k in range(1, rows.bit_length() + 1))):
        if needed(count, size) <= room:
            return count, None
    return 1, next((tile for tile in TILES if needed(1, (tile, tile)) <= room), TILES[-1])


def free_bytes(device: torch.device) -> int | None:
    """Bytes that may be taken on a device: free ones, and on a GPU those that the allocator holds unused."""
    if device.type == "cuda":
        # torch keeps blocks that were freed. For other programs they are taken, for this run they are free.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    known = [room for room in (_available(), _allowed()) if room is not None]
    return min(known) if known and device.type == "cpu" else None


def total_bytes(device: torch.device) -> int | None:
    """Bytes of memory that a device has, or that a container may take of it; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    known = [room for room in (_available(entry="MemTotal:"), _limit()) if room is not None]
    return min(known) if known and device.type == "cpu" else None


def _limit(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The limit of a container (cgroup v2)."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        return None if limit == "max" else int(limit)
    except (OSError, ValueError):
        return None


def _available(table: Path = Path("/proc/meminfo"), entry: str = "MemAvailable:") -> int | None:
    """What Linux would give without swapping, or another entry of its table."""
    if not table.is_file():
        return None
    lines = (line.split() for line in table.read_text(encoding="ascii").splitlines())
    # MemAvailable includes caches that the system would drop; MemFree leaves them out.
    kilobytes = next((int(words[1]) for words in lines if words[:1] == [entry]), None)
    return None if kilobytes is None else 1024 * kilobytes


def _allowed(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves (cgroup v2), files that the system may drop not counted as taken."""
    try:
        limit, taken = ((group / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - int(taken) + int(stat.get("inactive_file", 0)))
