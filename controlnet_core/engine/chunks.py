"""A batch in parts: a few pictures are evaluated at a time, so that their activations fit.

Each picture keeps its noise, hint, mask and factor; what all pictures share is prepared once for parts of equal
size. The result is that of the whole batch within rounding (products of other sizes are summed in another order).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .backend import Backend
from .cut import differs
from .evaluate import guided
from .footprint import Footprint, completed_bytes, models_of, predict
from .job import Job
from .memory import MemoryPlan, Streaming, free_bytes, plan_memory
from .prepare import Prepared, check_job, prepare, prepare_once
from .run import EXACT, Run, Shortcuts
from .stream import AHEAD
from .weights import largest_of


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of a batch, and what was prepared for them."""

    pictures: slice
    prepared: Prepared


def plan_run(job: Job, backend: Backend, shortcuts: Shortcuts = EXACT, graphs: bool = False) -> MemoryPlan:
    """Memory of a run, and how many pictures at a time the runtime asks for or fit. graphs: see `predict`.

    Large convolutions of packed weights go by tiles unless the runtime or the memory is against it. Raises as
    `check_job` does.
    """
    check_job(job)
    if not (backend.packs and backend.runtime.winograd):
        return _plan(job, backend, shortcuts, graphs)
    plan = replace(_plan(job, backend, shortcuts, graphs, tiles=True), tiles=True)
    return plan if plan.fits else replace(_plan(job, backend, shortcuts, graphs), tiles=False)


def _plan(job: Job, backend: Backend, shortcuts: Shortcuts, graphs: bool, tiles: bool = False) -> MemoryPlan:
    batch, runtime = job.shape[0], backend.runtime

    def footprint(pictures: int) -> Footprint:
        return predict(job, backend, shortcuts, graphs, tiles, pictures)

    models = models_of(job, backend)
    loaded = sum(backend.there(model) for model in models) + completed_bytes(job, backend)
    streaming = Streaming(
        None if backend.may_stream else backend.resident, backend.resident, backend.may_stream,
        AHEAD + largest_of(models, runtime.dtype),
    )  # fmt: skip
    return plan_memory(footprint, batch, loaded, free_bytes(runtime.device), runtime.chunk, streaming)


def fit_run(job: Job, backend: Backend, shortcuts: Shortcuts = EXACT, graphs: bool = False) -> MemoryPlan:
    """As `plan_run`, and the backend does as planned for this run: streams weights, or has them resident again.

    Before weights are streamed, what only other runs need leaves the device.
    """
    plan = plan_run(job, backend, shortcuts, graphs)
    if plan.resident is not None and backend.may_stream and backend.release(models_of(job, backend)):
        plan = plan_run(job, backend, shortcuts, graphs)
    backend.stream_beyond(plan.resident)
    backend.use_tiles(bool(plan.tiles))
    return plan


def prepare_parts(job: Job, backend: Backend, chunk: int) -> tuple[Part, ...]:
    """As `prepare_once`, for `chunk` pictures of the batch at a time."""
    batch = job.shape[0]
    if chunk >= batch:
        return (Part(slice(0, batch), prepare_once(job, backend)),)
    alike = not differs(job.conditions)

    def make() -> tuple[Part, ...]:
        known: dict[Hashable, Prepared] = {}
        parts = []
        for first in range(0, batch, chunk):
            pictures = range(first, min(first + chunk, batch))
            key = len(pictures) if alike else pictures
            if key not in known:
                known[key] = prepare(job, backend, pictures)
            parts.append(Part(slice(pictures.start, pictures.stop), known[key]))
        return tuple(parts)

    key, owners = job.key()
    return backend.once((chunk, *key), owners, make)


def evaluate_parts(parts: Sequence[Part], x: Tensor, sigma: Tensor, cfg: float, run: Run) -> Tensor:
    """As `evaluate`, part by part. x: (B, 4, h, w)."""
    if run.recorder is not None:
        run.recorder.evaluation()
    evaluate = guided if run.graphs is None else run.graphs.evaluate
    if len(parts) == 1:
        return evaluate(parts[0].prepared, x, sigma, cfg, run)
    rows = [evaluate(p.prepared, x[p.pictures], sigma, cfg, run.part(index)) for index, p in enumerate(parts)]
    return torch.cat(rows)
