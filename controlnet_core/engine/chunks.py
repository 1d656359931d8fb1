"""A batch in parts: a few pictures are evaluated at a time, so that their activations fit.

Each picture keeps its noise, hint, mask and factor; what all pictures share is prepared once for parts of equal
size. The result is that of the whole batch within rounding (products of other sizes are summed in another order).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import ModelConfig
from ..diffusion.schedule import NoiseSchedule
from ..models.unet import UNet
from .backend import Backend
from .condition import Condition
from .cut import differs
from .evaluate import guided
from .footprint import Footprint, models_of, predict, weights_of
from .memory import MemoryPlan, free_bytes, plan_memory
from .prepare import Prepared, prepare, prepare_once, run_key
from .run import Run


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures of a batch, and what was prepared for them."""

    pictures: slice
    prepared: Prepared


def plan_run(
    unet: UNet,
    config: ModelConfig,
    schedule: NoiseSchedule,
    positive: Sequence[Condition],
    negative: Sequence[Condition],
    latent_shape: tuple[int, ...],
    sigmas: Sequence[float],
    backend: Backend,
) -> MemoryPlan:
    """Memory of a run on latents (B, 4, h, w), and how many pictures at a time the runtime asks for or fit."""
    batch, runtime, conditions = latent_shape[0], backend.runtime, (*positive, *negative)

    def footprint(pictures: int) -> Footprint:
        def predicted(count: int) -> Footprint:
            shape = (count, *latent_shape[1:])
            return predict(unet, config, schedule, positive, negative, shape, sigmas, backend)

        told = predicted(pictures)
        return replace(told, prepared=predicted(batch).prepared) if differs(conditions) else told

    loaded = [model for model in models_of(conditions, unet, backend) if backend.holds(model)]
    there = weights_of(loaded, runtime.dtype)
    may_stream = runtime.memory == "auto" and runtime.device.type == "cuda"
    free = free_bytes(runtime.device)
    return plan_memory(footprint, batch, there, free, runtime.chunk, backend.resident, may_stream)


def prepare_parts(
    unet: UNet,
    config: ModelConfig,
    schedule: NoiseSchedule,
    positive: Sequence[Condition],
    negative: Sequence[Condition],
    latent_shape: tuple[int, ...],
    sigmas: Iterable[float],
    backend: Backend,
    chunk: int,
) -> tuple[Part, ...]:
    """As `prepare_once`, for `chunk` pictures of the batch at a time."""
    batch = latent_shape[0]
    if chunk >= batch:
        whole = prepare_once(unet, config, schedule, positive, negative, latent_shape, sigmas, backend)
        return (Part(slice(0, batch), whole),)
    announced, alike = list(sigmas), not differs((*positive, *negative))

    def make() -> tuple[Part, ...]:
        known: dict[Hashable, Prepared] = {}
        parts = []
        for first in range(0, batch, chunk):
            pictures = range(first, min(first + chunk, batch))
            key = len(pictures) if alike else pictures
            if key not in known:
                args = (unet, config, schedule, positive, negative, latent_shape, announced, backend)
                known[key] = prepare(*args, pictures=pictures)
            parts.append(Part(slice(pictures.start, pictures.stop), known[key]))
        return tuple(parts)

    key, owners = run_key(unet, config, schedule, positive, negative, latent_shape)
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
