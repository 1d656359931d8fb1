"""Facts about a run and about the weights of a model that accelerations read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..run_options import DEFAULTS, RunOptions
from ..runtime.device import Runtime
from .clock import EvaluationClock


@dataclass(frozen=True, eq=False)
class RunContext:
    """One run. streams: runs independent work at the same time. programs: what is captured for
    later runs; owners: the models that it belongs to. offloaded: whether weights are copied to the device layer by
    layer. checks_each_step: whether each prediction is checked for numbers that are not finite."""

    runtime: Runtime
    clock: EvaluationClock
    streams: Any = None
    programs: Any = None
    owners: tuple[object, ...] = ()
    offloaded: bool = False
    checks_each_step: bool = True
    options: RunOptions = DEFAULTS


@dataclass(frozen=True, eq=False)
class WeightPolicy:
    """How the weights of a model are held.

    packs: keep packed copies. work_buffer: memory of packed convolutions, see `speed.packed_cpu`; None computes them by
    definition. prefetcher: copies weights to the device, see `speed.offload`. kept: packed copies on the disk.
    """

    runtime: Runtime
    packs: bool = False
    work_buffer: Any = None
    prefetcher: Any = None
    kept: Any = None
