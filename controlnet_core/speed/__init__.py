"""Optional accelerations, one per file. No file outside this folder names one of its files.

To remove one, delete its file, its row in a table below with the functions that only this row uses, and its option
(`runtime/options.py`). There are two kinds:

- A **transform** turns a module into another module with the same result, before anything is bound to it. The first
  row that applies wins.
- A **wrapper** surrounds one seam of `denoise.Denoiser`: `unet.residuals` (what a net adds, before its weights),
  `unet.features` (encoder with all control), `unet.decode` (the decoder's output) or `step` (a whole evaluation).
  Rows are applied from top to bottom, so that a later one surrounds an earlier one.

`blocker` says why a wanted row has no effect in this run; the run's report prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from torch import nn

from ..models.float8 import has_float8
from ..run_options import EXACT, Shortcuts
from .clock import EvaluationClock
from .context import RunContext, WeightPolicy

__all__ = [
    "ACCELERATIONS",
    "EXACT",
    "TRANSFORMS",
    "EvaluationClock",
    "RunContext",
    "Shortcuts",
    "WeightPolicy",
]


def never(context: Any) -> str:
    """The blocker of rows that nothing excludes."""
    return ""


@dataclass(frozen=True)
class Acceleration:
    """A wrapper.

    module: a file of this folder with a function `wrap(denoiser, context)`. seam: what it surrounds. note: begins the
    report's line about a choice without effect. reason: says why it has none, if not only because of a blocker.
    replays: whether it runs each evaluation on buffers of its own, which the memory plan has to count.
    """

    module: str
    seam: str
    is_wanted: Callable[[RunContext], bool]
    blocker: Callable[[RunContext], str] = never
    note: str = ""
    reason: Callable[[RunContext], str] | None = None
    replays: bool = False

    def why_without_effect(self, context: RunContext) -> str:
        """Why a wanted acceleration has no effect in this run; empty if it has one, or is not wanted."""
        return (self.reason or self.blocker)(context) if self.note and self.is_wanted(context) else ""

    def wrap(self, denoiser: Any, context: RunContext) -> None:
        """Put the acceleration around its seam of the denoiser, if it is wanted and possible."""
        if self.is_wanted(context) and not self.blocker(context):
            load(self.module).wrap(denoiser, context)


@dataclass(frozen=True)
class Transform:
    """module: a file of this folder with a function `transform(module, policy) -> module`. copies_weights: whether the
    result has weights of its own, so that the original stays where it is."""

    module: str
    applies: Callable[[nn.Module, WeightPolicy], bool]
    copies_weights: bool = True

    def __call__(self, module: nn.Module, policy: WeightPolicy) -> nn.Module:
        """A module with the same result that is run in the place of this one."""
        return load(self.module).transform(module, policy)


def load(module: str) -> Any:
    """A file of this folder, imported when it is first needed."""
    return import_module(f".{module}", __name__)


def graph_blocker(context: RunContext) -> str:
    """Why evaluations cannot be replayed as CUDA graphs; empty if they can."""
    if context.offloaded:
        return "weights are streamed from the host"
    if context.runtime.device.type not in ("cuda", "meta"):
        return f"the device is {context.runtime.device.type}, graphs need CUDA"
    if context.checks_each_step:
        return "every step is checked for numbers that are not finite"
    if context.clock.skips_nets or context.clock.shortcuts.encoder_every > 1:
        return "shortcuts decide from step to step what to compute"
    return "the report measures every evaluation" if context.options.observes else ""


def parallel_note(context: RunContext) -> str:
    """Why nets do not run at the same time as the encoder; empty if they do."""
    if len(context.owners) == 1:
        return "there is no ControlNet"
    device = context.runtime.device.type
    return parallel_blocker(context) or (
        "" if device == "cuda" else f"the device is {device}, which runs one after the other"
    )


def parallel_blocker(context: RunContext) -> str:
    """Why nets cannot run beside the encoder; empty if they can."""
    if context.options.observes:
        return "the report measures each net"
    return "shortcuts skip nets in some evaluations" if context.clock.skips_nets else ""


def exchange_note(context: RunContext) -> str:
    """Why a ControlNet-XS is computed in every evaluation; empty if there is none."""
    exchanges = any(getattr(owner, "entry", "") == "exchange" for owner in context.owners)
    return "a ControlNet-XS runs beside the UNet's encoder and decoder, and needs both" if exchanges else ""


ACCELERATIONS: tuple[Acceleration, ...] = (
    Acceleration(
        "net_reuse",
        "residuals",
        lambda c: c.clock.skips_nets,
        note="a net not reused",
        reason=lambda c: exchange_note(c) if c.clock.shortcuts.reuses_nets else "",
    ),
    Acceleration(
        "parallel_nets",
        "features",
        lambda c: c.runtime.parallel_nets,
        parallel_blocker,
        "nets not in parallel",
        parallel_note,
    ),
    Acceleration(
        "encoder_reuse", "features", lambda c: c.clock.shortcuts.encoder_every > 1, exchange_note, "encoder not reused"
    ),
    Acceleration("unet_cache", "decode", lambda c: c.clock.shortcuts.deep_every > 1),
    Acceleration("cuda_graphs", "step", lambda c: c.runtime.graphs, graph_blocker, "no graphs", replays=True),
)
TRANSFORMS: tuple[Transform, ...] = (
    Transform("offload", lambda module, policy: policy.prefetcher is not None),
    Transform("packed_cpu", lambda module, policy: policy.packs),
    Transform("float8_layers", lambda module, policy: has_float8(module)),
    Transform("fused_qkv", lambda module, policy: policy.runtime.fused_qkv, copies_weights=False),
)


def side_streams(runtime: Any) -> Any:
    """Runs jobs at the same time as another one, kept over runs; None if that is not wanted."""
    return load("parallel_nets").Streams(runtime.device) if runtime.parallel_nets else None


EXPORTS: Mapping[str, str] = MappingProxyType(
    {
        "AHEAD": "offload",
        "ChunkedDenoiser": "chunks",
        "WeightPrefetcher": "offload",
        "KeptWeights": "packed_cpu.kept",
        "MetaBuffer": "packed_cpu.work_buffer",
        "ReusedResiduals": "net_reuse",
        "WorkBuffer": "packed_cpu.work_buffer",
        "bytes_to_come": "packed_cpu.pack",
        "can_pack": "packed_cpu.pack",
        "compile_blocks": "compiled",
        "further_bytes": "packed_cpu.pack",
        "kept_folder": "packed_cpu.kept_files",
        "list_kept_files": "packed_cpu.kept_files",
        "most_packed_bytes": "packed_cpu.pack",
        "pack": "packed_cpu.pack",
        "packed_bytes": "packed_cpu.pack",
        "prepare_chunks": "chunks",
        "remove_kept_files": "packed_cpu.kept_files",
    }
)
"""Names that other folders use, each with the file that defines it; imported when first asked for."""


def __getattr__(name: str) -> Any:
    if name in EXPORTS:
        return getattr(load(EXPORTS[name]), name)
    raise AttributeError(f"{__name__} has no attribute {name!r}")
