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
from .footprint import Footprint, models_of, predict, weights_of
from .job import Job
from .memory import MemoryPlan, free_bytes, plan_memory
from .prepare import Prepared, prepare, prepare_once
from .run import Run


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of a batch, and what was prepared for them."""

    pictures: slice
    prepared: Prepared


def plan_run(job: Job, backend: Backend) -> MemoryPlan:
    """Memory of a run, and how many pictures at a time the runtime asks for or fit."""
    batch, runtime = job.shape[0], backend.runtime

    def footprint(pictures: int) -> Footprint:
        def predicted(count: int) -> Footprint:
            return predict(replace(job, shape=(count, *job.shape[1:])), backend)

        told = predicted(pictures)
        return replace(told, prepared=predicted(batch).prepared) if differs(job.conditions) else told

    loaded = [model for model in models_of(job, backend) if backend.holds(model)]
    there = weights_of(loaded, runtime.dtype)
    may_stream = runtime.memory == "auto" and runtime.device.type == "cuda"
    free = free_bytes(runtime.device)
    return plan_memory(footprint, batch, there, free, runtime.chunk, backend.resident, may_stream)


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
