"""Prepare once: all that does not depend on x.

`prepare` turns conditions and sigmas into a `Prepared`: texts laid out in rows, keys and values of
the text in every cross attention, the timestep's projection for every sigma, embedded hints, and the
plan of which net acts at which sigma with which weight per block. `engine.evaluate` does the rest.

Everything is keyed by sigma and not by step: samplers of higher order evaluate between the steps.
A sigma that was not announced is prepared when it is met.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..config import ModelConfig
from ..control.hint import check_hint_channels, fit_hint, mask_at, repeat_to
from ..control.modes import block_heights
from ..control.unit import ControlUnit
from ..diffusion.schedule import NoiseSchedule
from ..errors import ShapeError, UnfitError
from ..models.controlnet import ControlNet
from ..models.unet import Projected, Shifts, UNet, check_context
from .backend import Backend
from .condition import Area, Condition, equal_length


@dataclass(frozen=True, eq=False)
class Stack:
    """Encoder, middle and decoder of one net at one sigma; a ControlNet has no decoder."""

    encoder: Projected
    middle: Projected
    decoder: Projected | None = None


@dataclass(eq=False)
class Projections:
    """A net's timestep projections by sigma, and its keys and values of the text."""

    net: UNet | ControlNet
    schedule: NoiseSchedule
    context: Tensor
    label: Tensor | None
    shifts: dict[float, tuple[Shifts, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = [p for p in ("encoder", "middle", "decoder") if hasattr(self.net, p)]
        self.kv = [getattr(self.net, part).text_kv(self.context) for part in self.parts]

    def announce(self, sigmas: Iterable[float]) -> None:
        """Project the timesteps of these sigmas, all at once."""
        new = [s for s in dict.fromkeys(sigmas) if s not in self.shifts]
        if not new:
            return
        t = self.schedule.timestep(torch.tensor(new)).to(self.context.device)
        if self.label is not None:
            for sigma, step in zip(new, t, strict=True):
                emb = self.net.embed(step.expand(self.label.shape[0]), self.label)
                self.shifts[sigma] = tuple(getattr(self.net, part).time_shifts(emb) for part in self.parts)
            return
        emb = self.net.embed(t)
        projected = [getattr(self.net, part).time_shifts(emb) for part in self.parts]
        for row, sigma in enumerate(new):
            self.shifts[sigma] = tuple(
                tuple(None if s is None else s[row : row + 1] for s in part) for part in projected
            )

    def at(self, sigma: float) -> Stack:
        """What the net needs besides x at this sigma."""
        self.announce([sigma])
        parts = (Projected(s, kv) for s, kv in zip(self.shifts[sigma], self.kv, strict=True))
        return Stack(*parts)


@dataclass(frozen=True, eq=False)
class PreparedUnit:
    """A ControlUnit bound to rows of a group.

    hint: embedded, (1 or rows, widths[0], h, w). weights: factor of each residual, the middle last.
    masks: for each residual (1 or rows, 1, h_i, w_i), where the unit has a mask.
    """

    unit: ControlUnit
    net: ControlNet
    rows: slice
    hint: Tensor
    weights: tuple[float, ...]
    masks: tuple[Tensor, ...] | None
    projections: Projections

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.unit.name or "a ControlNet"


@dataclass(frozen=True, eq=False)
class Group:
    """Conditions that are evaluated in one batch: the same rectangle of the picture.

    Rows are ordered condition by condition, each with the whole batch of pictures.
    """

    area: Area | None
    members: tuple[tuple[int, Condition], ...]
    projections: Projections
    units: tuple[PreparedUnit, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that `evaluate` needs besides x and sigma.

    `positives` is the number of conditions of the positive half, which come first.
    """

    unet: UNet
    config: ModelConfig
    schedule: NoiseSchedule
    conditions: tuple[Condition, ...]
    positives: int
    batch: int
    groups: tuple[Group, ...]
    backend: Backend

    def active(self, group: Group, sigma: float) -> list[PreparedUnit]:
        """Units of a group that cost anything at this sigma: in their window, and of some strength."""
        return [
            u for u in group.units if any(u.weights) and u.unit.is_active(sigma, self.schedule)
        ]


def prepare(
    unet: UNet,
    config: ModelConfig,
    schedule: NoiseSchedule,
    positive: Sequence[Condition],
    negative: Sequence[Condition],
    latent_shape: tuple[int, ...],
    sigmas: Iterable[float],
    backend: Backend,
) -> Prepared:
    """Everything constant of a run on latents of shape (B, 4, h, w).

    An empty `negative` means no guidance (cfg 1). Raises ShapeError for texts, hints or masks that do
    not fit and UnfitError for a ControlNet of another base, before anything is computed.
    """
    conditions = (*positive, *negative)
    if config.unet.in_channels != latent_shape[1]:
        raise UnfitError(
            f"the model {config.name} reads {config.unet.in_channels} channels, the latent has {latent_shape[1]}: "
            "inpainting and editing models are not supported yet"
        )
    for condition in conditions:
        check_context(condition.text, config.unet)
        for unit in condition.units:
            check_base(unit, config)
    fast = backend.optimise(unet)
    batch = latent_shape[0]
    announced = [float(s) for s in sigmas if float(s) > 0.0]
    groups = []
    for area in dict.fromkeys(c.area for c in conditions):
        members = tuple((i, c) for i, c in enumerate(conditions) if c.area == area)
        size = latent_shape[-2:] if area is None else (area.height, area.width)
        group = _prepare_group(fast, config, schedule, members, area, len(positive), batch, size, latent_shape, backend)
        for projections in (group.projections, *(u.projections for u in group.units)):
            projections.announce(announced)
        groups.append(group)
    return Prepared(fast, config, schedule, conditions, len(positive), batch, tuple(groups), backend)


def check_base(unit: ControlUnit, config: ModelConfig) -> None:
    """Raise UnfitError when a unit's net was made for another base model than `config`."""
    theirs, ours = unit.net.config.unet, config.unet
    if theirs == replace(ours, in_channels=theirs.in_channels, out_channels=theirs.out_channels):
        return
    raise UnfitError(
        f"{unit.name or 'the ControlNet'} was made for a base of widths {theirs.widths} with {theirs.context_dim} wide "
        f"text; the model {config.name} has widths {ours.widths} and {ours.context_dim}: load a ControlNet made for "
        f"{config.name}, or the base that this one was made for (`controlnet inspect FILE` tells what a file is)"
    )


def _prepare_group(
    unet: UNet,
    config: ModelConfig,
    schedule: NoiseSchedule,
    members: tuple[tuple[int, Condition], ...],
    area: Area | None,
    positives: int,
    batch: int,
    size: tuple[int, int],
    latent_shape: tuple[int, ...],
    backend: Backend,
) -> Group:
    texts = equal_length([c.text for _, c in members])
    context = torch.cat([t.expand(batch, -1, -1) for t in texts]).to(backend.runtime.device, backend.runtime.dtype)
    label = None
    if config.unet.label_dim is not None:
        if any(c.pooled is None for _, c in members):
            raise ShapeError(f"the model {config.name} reads a label vector, and a condition has none: encode its text")
        label = torch.cat([c.pooled.expand(batch, -1) for _, c in members if c.pooled is not None]).to(context)
    projections = Projections(unet, schedule, context, label)
    units: list[PreparedUnit] = []
    # A unit's rows are the runs of neighbouring conditions that carry it, so that they stay a view.
    for unit, first, last in _unit_runs(members, positives):
        rows = slice(first * batch, last * batch)
        net = backend.optimise(unit.net)
        own = Projections(net, schedule, context[rows], None if label is None else label[rows])
        units.append(_prepare_unit(unit, net, rows, own, config, batch, size, latent_shape, area, backend))
    return Group(area, members, projections, tuple(units))


def _unit_runs(
    members: tuple[tuple[int, Condition], ...], positives: int
) -> Iterable[tuple[ControlUnit, int, int]]:
    """Each distinct unit with the runs [first, last) of group members it acts on."""
    for unit in dict.fromkeys(u for _, c in members for u in c.units):
        acts = [unit in c.units and not (unit.conditional_only and i >= positives) for i, c in members]
        position = 0
        while position < len(acts):
            last = position
            while last < len(acts) and acts[last]:
                last += 1
            if last > position:
                yield unit, position, last
            position = last + 1


def _prepare_unit(
    unit: ControlUnit,
    net: ControlNet,
    rows: slice,
    projections: Projections,
    config: ModelConfig,
    batch: int,
    size: tuple[int, int],
    latent_shape: tuple[int, ...],
    area: Area | None,
    backend: Backend,
) -> PreparedUnit:
    height, width = latent_shape[-2:]
    factor = config.vae.factor
    hint = fit_hint(check_hint_channels(unit.hint, net.config.hint_channels), height * factor, width * factor)
    mask = unit.mask
    if area is not None:
        hint = _crop(hint, area, factor)
        mask = None if mask is None else _crop(mask_at(mask, (height, width)), area, 1)[:, 0]
    count = rows.stop - rows.start
    hint = repeat_to(hint.to(backend.runtime.device, backend.runtime.dtype), batch, "hint")
    embedded = repeat_to(net.embed_hint(backend.layout(hint), size), count, "hint")
    weights = unit.weights(config.unet, size[0])
    masks = None
    if mask is not None:
        sizes = _feature_sizes(net, size)
        mask = repeat_to(mask.to(embedded.device), batch, "mask")
        masks = tuple(repeat_to(mask_at(mask, s), count, "mask").to(embedded) for s in sizes)
    return PreparedUnit(unit, net, rows, embedded, weights, masks, projections)


def _feature_sizes(net: ControlNet, size: tuple[int, int]) -> list[tuple[int, int]]:
    heights, widths = (block_heights(net.config.unet, side) for side in size)
    return list(zip(heights, widths, strict=True))


def _crop(x: Tensor, area: Area, factor: int) -> Tensor:
    top, left = area.top * factor, area.left * factor
    return x[..., top : top + area.height * factor, left : left + area.width * factor]
