"""Prepare once: everything that does not depend on x.

`prepare` turns conditions and noise levels into a `Prepared`: texts laid out in rows, keys and values of the text for
every cross attention, timestep shifts, embedded hints, masks, and the weights of every net. `Prepared.inputs_at(sigma)`
then gives `denoise.Denoiser` what it reads at one noise level: tensors and plain numbers only.

Everything is keyed by sigma, not by step, because samplers of higher order evaluate between the steps. A sigma that was
not known before the run is prepared when it is first met.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from .conditioning.blend import Blend, make_blend
from .conditioning.concat_channels import check_channels
from .conditioning.condition import Area, Condition, crop_to_area, equal_length
from .conditioning.job import Job
from .config import ModelConfig
from .control.attention import with_attention_control
from .control.bound_unit import BoundUnit, NetBatch, NetInputs, net_batches, residual_scales
from .control.exchange import with_learned_embeddings
from .control.hint import check_hint_channels, fit_hint, repeat_to
from .control.unit import ControlUnit
from .diffusion.denoiser import add_noise, scale_input
from .errors import ShapeError
from .models.control import BindContext, check_base
from .models.projections import Projections
from .models.unet import UNet, UNetInputs, check_context
from .models.vae import scale_latent
from .runtime.device import Runtime, channels_last

IndexedConditions = tuple[tuple[int, Condition], ...]
"""Conditions that are evaluated as one batch, each with its index in the job."""


class BatchInputs(NamedTuple):
    """What one batch of conditions reads at one noise level besides x.

    area: the rectangle of the latent that the rows show; None for all of it. conditions: their indices in the job.
    nets: the runs of nets that act now. concat: (rows, C, h, w), further input channels of the UNet (inpainting).
    distinct_rows: only so many of the first rows differ; the others repeat them until the text is read. key: equal as
    long as the same batch and the same units act.
    """

    area: Area | None
    conditions: tuple[int, ...]
    blocks: UNetInputs
    nets: tuple[NetInputs, ...]
    concat: Tensor | None
    distinct_rows: int
    key: object


class StepInputs(NamedTuple):
    """What one evaluation reads besides x: the batches, and how their predictions become the guidance halves.

    negative: None without guidance.
    """

    batches: tuple[BatchInputs, ...]
    positive: Blend
    negative: Blend | None


@dataclass(frozen=True, eq=False)
class ConditionBatch:
    """Conditions on the same rectangle of the latent. Rows are ordered condition by condition, each with all images."""

    area: Area | None
    conditions: IndexedConditions
    projections: Projections
    units: tuple[BoundUnit, ...]
    concat: Tensor | None
    images: int
    known_nets: dict[tuple[BoundUnit, ...], tuple[NetBatch, ...]] = field(default_factory=dict)

    def inputs_at(self, sigma: float) -> BatchInputs:
        """Batch at one noise level. A unit outside its window, or of strength 0, costs nothing: its net is absent."""
        active = tuple(unit for unit in self.units if any(unit.weights(sigma)))
        if active not in self.known_nets:
            self.known_nets[active] = tuple(net_batches(active))
        nets = tuple(net.inputs_at(sigma) for net in self.known_nets[active])
        blocks, rows = self.projections.at(sigma), len(self.conditions) * self.images
        # Conditions share the latent, so that all rows are equal until the first text is read, unless something
        # that differs by row enters before: a label, further input channels, or control inside encoder or attention.
        shared = self.concat is None and blocks.encoder.one_timestep and all(n.net.entry == "skips" for n in nets)
        indices = tuple(index for index, _ in self.conditions)
        distinct = self.images if shared else rows
        blocks = with_learned_embeddings(blocks, nets, self.projections, rows)
        blocks = with_attention_control(blocks, [net for net in nets if net.net.entry == "attention"])
        return BatchInputs(self.area, indices, blocks, nets, self.concat, distinct, (self, active))


@dataclass(frozen=True, eq=False)
class ActiveConditions:
    """The batches while the same conditions are inside their windows, and how their predictions are blended."""

    batches: tuple[ConditionBatch, ...]
    positive: Blend
    negative: Blend | None

    def inputs_at(self, sigma: float) -> StepInputs:
        """What an evaluation at this noise level reads."""
        return StepInputs(tuple(batch.inputs_at(sigma) for batch in self.batches), self.positive, self.negative)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job, prepared for some images of its batch.

    images: how many. sigmas: the noise levels that are known before the run.
    """

    job: Job
    runtime: Runtime
    images: int
    sigmas: tuple[float, ...]
    known_conditions: dict[tuple[int, ...], ActiveConditions] = field(default_factory=dict)
    known_inputs: dict[float, StepInputs] = field(default_factory=dict)

    @property
    def unet(self) -> UNet:
        """The UNet that is run."""
        return self.job.unet

    @property
    def config(self) -> ModelConfig:
        """Shape and parametrization of the model."""
        return self.job.config

    def conditions_at(self, sigma: float) -> ActiveConditions:
        """What the conditions inside their windows at this noise level need, prepared when they first act together."""
        job = self.job
        acting = tuple(i for i, c in enumerate(job.conditions) if job.schedule.in_window(sigma, c.start, c.end))
        if acting not in self.known_conditions:
            self.known_conditions[acting] = self._prepare(acting)
        return self.known_conditions[acting]

    def inputs_at(self, sigma: float) -> StepInputs:
        """What an evaluation at this noise level reads besides x."""
        if sigma not in self.known_inputs:
            self.known_inputs[sigma] = self.conditions_at(sigma).inputs_at(sigma)
        return self.known_inputs[sigma]

    def _prepare(self, acting: tuple[int, ...]) -> ActiveConditions:
        active = [(index, self.job.conditions[index]) for index in acting]
        # Reuse a batch that was prepared for another set of active conditions.
        known = {batch.conditions: batch for other in self.known_conditions.values() for batch in other.batches}
        batches = []
        for area in dict.fromkeys(condition.area for _, condition in active):
            inside = tuple(each for each in active if each[1].area == area)
            batches.append(known.get(inside) or _prepare_batch(self, area, inside))
        first_negative = len(self.job.positive)
        halves = [[each for each in active if (each[0] < first_negative) is positive] for positive in (True, False)]
        height, width = self.job.shape[-2:]
        positive, negative = (make_blend(half, (self.images, height, width), self.runtime.device) for half in halves)
        return ActiveConditions(tuple(batches), positive, negative if self.job.negative else None)


def prepare(job: Job, runtime: Runtime) -> Prepared:
    """Prepare a job whose UNet and nets are on the runtime's device, in the form in which they are run.

    Raises UnfitError for a ControlNet of another base, and ShapeError for texts, hints or masks that do not fit.
    """
    check_job(job)
    sigmas = tuple(dict.fromkeys(float(s) for s in job.sigmas if float(s) > 0.0))
    prepared = Prepared(job, runtime, job.shape[0], sigmas)
    for sigma in sigmas:
        prepared.conditions_at(sigma)
    return prepared


def check_job(job: Job) -> None:
    """Raise UnfitError for a ControlNet of another base, and ShapeError for texts and images that do not fit."""
    config = job.config
    for condition in job.conditions:
        check_channels(config.name, config.unet.in_channels, job.shape[1], condition.concat)
        check_context(condition.text, config.unet)
    for unit in job.units:
        check_base(unit.net, unit.name or "the ControlNet", config.unet, f"the model {config.name}")


def _prepare_batch(prepared: Prepared, area: Area | None, conditions: IndexedConditions) -> ConditionBatch:
    job, images = prepared.job, prepared.images
    text, label = _stack_texts(conditions, job.config, images, prepared.runtime)
    projections = Projections(job.unet, job.schedule, text, label)
    windows = {(condition.start, condition.end) for _, condition in conditions}
    sigmas = tuple(s for s in prepared.sigmas if all(job.schedule.in_window(s, *window) for window in windows))
    projections.prepare(sigmas)
    first_negative = len(job.positive)
    units = []
    for unit, first, last in unit_runs(conditions, first_negative):
        rows = slice(first * images, last * images)
        own_label = None if label is None else label[rows]
        context = _bind_context(prepared, unit, area, text[rows], own_label, sigmas)
        halves = [unit.half_factor(index < first_negative) for index, _ in conditions[first:last]]
        units.append(_bind_unit(prepared, unit, rows, context, halves))
    concat = [crop_to_area(c.concat, area) for _, c in conditions if c.concat is not None]
    device, dtype = prepared.runtime.device, prepared.runtime.dtype
    stacked = torch.cat(concat).to(device, dtype) if concat else None
    return ConditionBatch(area, conditions, projections, tuple(units), stacked, images)


def _bind_context(
    prepared: Prepared,
    unit: ControlUnit,
    area: Area | None,
    text: Tensor,
    label: Tensor | None,
    sigmas: tuple[float, ...],
) -> BindContext:
    job, images, runtime = prepared.job, prepared.images, prepared.runtime
    # Hint and mask are brought to the size of the area, as ComfyUI does.
    height, width = job.shape[-2:] if area is None else (area.height, area.width)
    factor = job.config.vae.factor
    hints = []
    for hint in unit.hints:
        fitted = check_hint_channels(hint.picture, unit.net.hint_channels)
        if unit.net.reads_latent:  # at its own size
            fitted = scale_latent(fitted.float(), job.config.vae)
        else:
            fitted = fit_hint(fitted, height * factor, width * factor, unit.fit)
        hints.append(channels_last(repeat_to(fitted.to(runtime.device, runtime.dtype), images, "hint")))
    return BindContext(
        hints=tuple(hints),
        kinds=tuple(hint.kind for hint in unit.hints),
        text=text,
        label=label,
        timesteps=job.schedule,
        sigmas=sigmas,
        image_of_row=tuple(row % images for row in range(len(text))),
        distinct_rows=images,
        size=(height, width),
        pool=unit.pool,
        base=job.config.unet,
        name=unit.name,
        noisy=partial(_noisy, sigma_data=job.schedule.sigma_data),
    )


def _noisy(clean: Tensor, noise: Tensor, sigma: float, sigma_data: float) -> Tensor:
    level = torch.tensor(sigma)
    return scale_input(add_noise(clean, noise, level), level, sigma_data)


def _bind_unit(
    prepared: Prepared, unit: ControlUnit, rows: slice, context: BindContext, halves: list[float]
) -> BoundUnit:
    """Bind one unit to its rows. halves: the guidance factor of each condition."""
    height = context.size[0]
    factors = [half * image for half in halves for image in unit.image_factors(prepared.images)]
    scales = []
    for begun in range(1 + len(unit.keyframes)):
        unit.weights(context.base, height, begun)  # raises for a wrong number of block weights before the first step
        masks = (repeat_to(mask.to(context.text.device), prepared.images, "mask") for mask in unit.masks(begun))
        scales.append(residual_scales(context, factors, tuple(masks), context.base))
    bound = unit.net.bind(context)
    return BoundUnit(unit, unit.net, bound, rows, tuple(scales), prepared.job.schedule, context.base, height)


def _stack_texts(
    conditions: IndexedConditions, config: ModelConfig, images: int, runtime: Runtime
) -> tuple[Tensor, Tensor | None]:
    """Text (rows, tokens, context_dim) and, if the model has one, the label vector (rows, label_dim)."""
    texts = equal_length([c.text for _, c in conditions])
    text = torch.cat([t.expand(images, -1, -1) for t in texts]).to(runtime.device, runtime.dtype)
    if config.unet.label_dim is None:
        return text, None
    if any(c.label is None for _, c in conditions):
        raise ShapeError(
            f"the model {config.name} reads a label vector (pooled text and sizes), and a condition has none: encode "
            "its text with this model's text encoder"
        )
    return text, torch.cat([c.label.expand(images, -1) for _, c in conditions if c.label is not None]).to(text)


def unit_runs(conditions: IndexedConditions, first_negative: int) -> Iterable[tuple[ControlUnit, int, int]]:
    """Each unit with the runs [first, last) of neighbouring conditions that it acts on.

    Neighbours, so that a unit's rows are a slice of the batch: a view, not a copy.
    """
    for unit in dict.fromkeys(u for _, c in conditions for u in c.units):
        acts = [unit in c.units and unit.half_factor(index < first_negative) != 0.0 for index, c in conditions]
        for acting, run in groupby(range(len(acts)), acts.__getitem__):
            positions = list(run)
            if acting:
                yield unit, positions[0], positions[-1] + 1
