"""A control unit bound to the rows of a batch, and the batches in which nets run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import UNetConfig
from ..diffusion.schedule import NoiseSchedule
from ..models.control import BindContext, BoundNet, ControlModel
from .hint import mask_at
from .modes import block_heights
from .residuals import Weight, add_residual
from .unit import ControlUnit

Scales = tuple[Tensor, ...]
"""For each target a factor that broadcasts to it, see `residual_scales`."""


@dataclass(frozen=True, eq=False)
class BoundUnit:
    """A unit, its net's bound form, and the rows it acts on.

    scales: while 0, 1, 2, ... keyframes have begun; None where masks and factors are all 1. base: shape of the
    controlled UNet. latent_height: in cells.
    """

    unit: ControlUnit
    net: ControlModel
    bound: BoundNet
    rows: slice
    scales: tuple[Scales | None, ...]
    schedule: NoiseSchedule
    base: UNetConfig
    latent_height: int
    known_weights: dict[float, tuple[float, ...]] = field(default_factory=dict)

    @property
    def whole_unit(self) -> ControlUnit:
        """The unit for all images, if this is one for a part of the batch."""
        return self.unit.whole or self.unit

    @property
    def name(self) -> str:
        """What messages call the unit."""
        return self.unit.name or "a ControlNet"

    def weights(self, sigma: float) -> tuple[float, ...]:
        """Weight of each residual at this noise level; all 0 outside the unit's window."""
        if sigma not in self.known_weights:
            self.known_weights[sigma] = self.unit.weights_at(sigma, self.schedule, self.base, self.latent_height)
        return self.known_weights[sigma]

    def scales_at(self, sigma: float) -> Scales | None:
        """What each residual is multiplied with besides its weight at this noise level."""
        return self.scales[self.unit.begun_count(sigma, self.schedule)]


class UnitInputs(NamedTuple):
    """How one unit's share of a net's residuals is weighed at one noise level. rows: of the batch."""

    rows: slice
    weights: tuple[Weight, ...]
    scales: Scales | None

    def acts_on(self, index: int) -> bool:
        """Whether anything is added to this target."""
        weight = self.weights[index]
        return isinstance(weight, Tensor) or weight != 0.0


class NetInputs(NamedTuple):
    """One run of a net at one noise level, for one unit or for several with hints of their own.

    inputs: see `BoundNet.inputs_at`. owners: the bound units, equal as long as the same units share the run.
    """

    net: ControlModel
    inputs: Any
    units: tuple[UnitInputs, ...]
    owners: tuple[BoundUnit, ...] = ()

    def acts_on(self, index: int) -> bool:
        """Whether any unit adds something to this target."""
        return any(unit.acts_on(index) for unit in self.units)

    def add(self, target: Tensor, residual: Tensor | None, index: int) -> None:
        """Add a residual (rows of all units, C, h, w) to a target, each unit's rows with its own weight."""
        if residual is None:
            return
        for unit, part in zip(self.units, self.split(residual), strict=True):
            if unit.acts_on(index):
                scale = None if unit.scales is None else unit.scales[index]
                # A slice is a view: the sum goes into the target itself.
                add_residual(target[unit.rows], part, unit.weights[index], scale)

    def split(self, residual: Tensor) -> Sequence[Tensor]:
        """Split a residual into the rows of each unit. A single unit may have one row for all (T2I-Adapter)."""
        if len(self.units) == 1:
            return [residual]
        return residual.split([unit.rows.stop - unit.rows.start for unit in self.units])

    def rows_of(self, x: Tensor) -> Tensor:
        """The rows of x that the net reads."""
        parts = [x[unit.rows] for unit in self.units]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, eq=False)
class NetBatch:
    """A net and the units that share one run of it."""

    net: ControlModel
    bound: BoundNet
    units: tuple[BoundUnit, ...]

    def inputs_at(self, sigma: float) -> NetInputs:
        """All that the run needs besides x."""
        units = tuple(UnitInputs(unit.rows, unit.weights(sigma), unit.scales_at(sigma)) for unit in self.units)
        return NetInputs(self.net, self.bound.inputs_at(sigma), units, self.units)


def net_batches(units: Iterable[BoundUnit]) -> Iterator[NetBatch]:
    """The runs that these units need: units of one net share a run if the net can join them."""
    by_net: dict[ControlModel, list[BoundUnit]] = {}
    for unit in units:
        by_net.setdefault(unit.net, []).append(unit)
    for net, own in by_net.items():
        # One run over more rows reads the weights of the net once.
        joined = net.join([unit.bound for unit in own]) if len(own) > 1 else None
        if joined is None:
            yield from (NetBatch(net, unit.bound, (unit,)) for unit in own)
        else:
            yield NetBatch(net, joined, tuple(own))


def residual_scales(
    context: BindContext, factors: Sequence[float], masks: Sequence[Tensor], base: UNetConfig
) -> Scales | None:
    """For each target the product of masks and row factor, (1 or rows, 1, 1 or h_i, 1 or w_i); None if all are 1.

    factors: one number per row (image factor x guidance half). masks: each (b, H, W) in [0, 1].
    """
    height, width = context.size
    sizes = list(zip(block_heights(base, height), block_heights(base, width), strict=True))
    by_row = None
    if set(factors) != {1.0}:
        by_row = torch.tensor(factors).to(context.text)[:, None, None, None]
    if not masks:
        return None if by_row is None else (by_row,) * len(sizes)

    def product(size: tuple[int, int]) -> Tensor:
        # From the full masks each time: resizing a resized one would blur it further.
        first, *more = (context.spread(mask_at(mask, size)).to(context.text) for mask in masks)
        return math.prod(more, start=first if by_row is None else by_row * first)  # type: ignore[return-value]

    return tuple(product(size) for size in sizes)
