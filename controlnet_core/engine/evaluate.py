"""Step fast: what depends on x. `evaluate` is the whole of it, read from top to bottom."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from ..diffusion.denoiser import denoised, scale_input
from ..diffusion.guidance import guide, rescale
from ..errors import NonFiniteError
from ..models.layers import repeat_rows
from ..models.unet import Stack, UNet
from .condition import crop
from .prepare import Group, Moment, Prepared
from .run import DIRECT, Run
from .unit import Actor


def evaluate(prepared: Prepared, x: Tensor, sigma: Tensor, cfg: float, run: Run | None = None) -> Tensor:
    """The guided prediction of x0 from a noisy latent.

    x: (B, 4, h, w) float32 at noise level `sigma` (0-d). cfg: the scale of `diffusion.guidance`. run: what is
    carried between evaluations, and how guidance is tamed; None for one that stands for itself. Raises
    NonFiniteError, naming the net it came from, when a prediction is not finite, unless `run` looks at that at
    its end.
    """
    run = run or Run()
    if run.recorder is not None:
        run.recorder.evaluation()
    return guided(prepared, x, sigma, cfg, run)


def guided(prepared: Prepared, x: Tensor, sigma: Tensor, cfg: float, run: Run) -> Tensor:
    """`evaluate` for one part of a batch (see `engine.chunks`); the recorder does not count it."""
    level = float(sigma)
    run.begin(level)
    return blended(prepared, prepared.at(level), x, sigma, cfg, run)


def blended(
    prepared: Prepared, moment: Moment, x: Tensor, sigma: Tensor, cfg: float | Tensor, run: Run,
    level: float | None = None,
) -> Tensor:  # fmt: skip
    """The guided prediction of a moment. level: as in `predict`."""
    predictions: dict[int, Tensor] = {}
    for group in moment.groups:
        for (index, _), prediction in zip(group.members, predict(prepared, group, x, sigma, run, level), strict=True):
            predictions[index] = prediction
    positive = moment.positive(predictions, x)
    if moment.negative is None:
        return positive
    made = guide(positive, moment.negative(predictions, x), cfg)
    return rescale(made, positive, x, sigma, run.rescale) if run.rescale > 0.0 else made


def predict(
    prepared: Prepared, group: Group, x: Tensor, sigma: Tensor, run: Run, level: float | None = None
) -> list[Tensor]:
    """The prediction of x0 for each condition of a group, each (B, 4, h, w) of the group's area.

    level: sigma as a number, where to look at the tensor would be to wait for the GPU.
    """
    part = crop(x, group.area)
    conditions = len(group.members)
    level = float(sigma) if level is None else level
    spread = prepared.schedule.sigma_data
    rows = scale_input(part, sigma, spread).repeat(conditions, 1, 1, 1)
    rows = prepared.backend.layout(rows.to(prepared.backend.runtime.dtype))
    read = rows if group.beside is None else prepared.backend.layout(torch.cat([rows, group.beside], dim=1))
    stack = group.projections.at(level)
    predicted = prepared.unet.head(_decoded(prepared.unet, group, rows, read, level, stack, run))
    output = predicted.float()
    if run.recorder is not None:
        run.recorder.cast("latent to the net", x.dtype, rows.dtype)
        run.recorder.cast("prediction of the net", predicted.dtype, output.dtype)
    if run.check_every_step:
        _check_finite(prepared, group, output, rows, level)
    else:
        run.note_finite(output)
    parametrization = prepared.config.parametrization
    return [denoised(parametrization, out, part, sigma, spread) for out in output.chunk(conditions)]


def _decoded(
    unet: UNet, group: Group, rows: Tensor, read: Tensor, sigma: float, stack: Stack, run: Run
) -> Tensor:
    """The decoder's output. The UNet reads `read`, the nets `rows` of it."""
    assert stack.decoder is not None
    key = (group, group.active(sigma))
    deep = run.deep(key)
    if deep is not None and not deep.is_due(run.evaluations, run.limit):
        skips = _controlled(unet, group, rows, read, sigma, stack, run, count=unet.decoder.top_blocks)
        return unet.decoder.top(next(deep.next(run.evaluations, None)), skips, stack.decoder)
    *skips, middle = run.controlled(key, lambda: _controlled(unet, group, rows, read, sigma, stack, run))
    h = unet.decoder.lower(middle, skips, stack.decoder)
    if deep is not None:
        deep.next(run.evaluations, lambda: [h])
    return unet.decoder.top(h, skips, stack.decoder)


def _controlled(
    unet: UNet, group: Group, rows: Tensor, read: Tensor, sigma: float, stack: Stack, run: Run,
    count: int | None = None,
) -> list[Tensor]:  # fmt: skip
    """The skips and the middle's output, with all control added. count: the first of them alone, and no net runs."""
    actors = group.actors(sigma)
    early = [actor for actor in actors if actor.bound.entry == "encoder"]
    walk = _targets(unet, read, stack, read.shape[0] if early else _distinct(group, read, stack))
    for actor in early:
        walk = run.through(actor, rows, sigma, walk, may_run=count is None)
    behind = [actor for actor in actors if actor.bound.entry == "skips"]
    if run.at_once and count is None:
        return _beside(walk, behind, rows, sigma, run)
    targets = list(islice(walk, count))
    for actor in behind:
        deque(run.through(actor, rows, sigma, targets, may_run=count is None), maxlen=0)
    return targets


def _beside(walk: Iterator[Tensor], actors: list[Actor], rows: Tensor, sigma: float, run: Run) -> list[Tensor]:
    """As `_controlled`, the nets beside the encoder; residuals are added when all are there."""
    heard = [run.heard(actor) for actor in actors]
    residuals = [partial(actor.residuals, rows, sigma) for actor in heard]
    assert run.side_by_side is not None
    targets, added = run.side_by_side(lambda: list(walk), residuals)
    for actor, own in zip(heard, added, strict=True):
        for index, (target, residual) in enumerate(zip(targets, own, strict=True)):
            actor.add(target, residual, DIRECT, index, sigma)
    return targets


def _distinct(group: Group, read: Tensor, stack: Stack) -> int:
    """How many of the rows differ before they read their text: conditions have the latents in common."""
    in_common = group.beside is None and stack.encoder.one_timestep
    return read.shape[0] // len(group.members) if in_common else read.shape[0]


def _targets(unet: UNet, rows: Tensor, stack: Stack, distinct: int) -> Iterator[Tensor]:
    """Where control enters: the output of each block of the encoder as it is made, then the middle's.

    distinct: rows that the encoder has to compute until the text is read; what it gives is for all. Where it is fewer
    than all, what is added to an output does not reach the next block.
    """
    h = rows
    for h in unet.encoder.walk(rows[:distinct], stack.encoder):
        yield repeat_rows(h, rows.shape[0])
    yield repeat_rows(unet.middle(h, stack.middle), rows.shape[0])


def _check_finite(prepared: Prepared, group: Group, output: Tensor, rows: Tensor, sigma: float) -> None:
    """Raise NonFiniteError at the first prediction that is not finite, after finding out whose fault it is."""
    if bool(torch.isfinite(output).all()):
        return
    culprit = f"the model {prepared.config.name}"
    if not bool(torch.isfinite(rows).all()):
        culprit = "the latent that came in"
    else:
        for unit in group.active(sigma):
            if not all(bool(torch.isfinite(r).all()) for r in unit.residuals(rows, sigma) if r is not None):
                culprit = unit.name
                break
    raise NonFiniteError(
        f"the prediction at sigma {sigma:.4g} is not finite, and it comes from {culprit}: the file may be damaged "
        "(try another copy), or its numbers are too large for fp16 (try dtype bf16 or fp32)"
    )
