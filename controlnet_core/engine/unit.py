"""A unit of control in its place: what is the same for every kind of net (see `models.control`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import UNetConfig
from ..control.hint import mask_at, repeat_to
from ..control.modes import block_heights
from ..control.unit import ControlUnit
from ..diffusion.schedule import NoiseSchedule
from ..errors import ShapeError
from ..models.control import Bound, ControlModel, Outlet
from .seat import Seat


@dataclass(frozen=True, eq=False)
class PreparedUnit:
    """A ControlUnit bound to rows of a group.

    scales: for each residual a factor that broadcasts to it, (1 or rows, 1, h_i or 1, w_i or 1), where
    the unit has a mask or treats pictures or halves apart. base: the UNet that is controlled.
    """

    unit: ControlUnit
    net: ControlModel
    bound: Bound
    rows: slice
    scales: tuple[Tensor, ...] | None
    schedule: NoiseSchedule
    base: UNetConfig
    latent_height: int
    known_weights: dict[float, tuple[float, ...]] = field(default_factory=dict)

    @property
    def key(self) -> ControlUnit:
        """The unit for all pictures, where this is one for a part of the batch."""
        return self.unit.whole or self.unit

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.unit.name or "a ControlNet"

    def weights(self, sigma: float) -> tuple[float, ...]:
        """Factor of each residual at this sigma."""
        if sigma not in self.known_weights:
            self.known_weights[sigma] = self.unit.weights_at(sigma, self.schedule, self.base, self.latent_height)
        return self.known_weights[sigma]

    def is_active(self, sigma: float) -> bool:
        """Whether the unit does anything at this sigma; if not, it costs nothing."""
        return any(self.weights(sigma))

    def add(self, target: Tensor, feature: Tensor, outlet: Outlet, index: int, sigma: float) -> None:
        """Add the residual of one feature map (its rows, C, h, w) into the unit's rows of a target, in place."""
        weight = self.weights(sigma)[index]
        if weight == 0.0:
            return
        view = target[self.rows]
        if self.scales is None:
            outlet.accumulate(view, feature, weight)
        else:
            view.addcmul_(outlet(feature), self.scales[index], value=weight)

    def residuals(self, x: Tensor, sigma: float) -> Iterator[Tensor | None]:
        """What is added to each target, by definition: (rows, C, h, w), or None for nothing."""
        features = self.bound.features(x[self.rows], sigma)
        weights = self.weights(sigma)
        scales = self.scales or (None,) * len(weights)
        for feature, outlet, weight, scale in zip(features, self.bound.outlets, weights, scales, strict=True):
            if feature is None or weight == 0.0:
                yield None
            else:
                residual = outlet(feature) * weight
                yield residual if scale is None else residual * scale


@dataclass(frozen=True, eq=False)
class Actor:
    """A net that runs, and the units that it runs for: one, or several with hints of their own as one batch."""

    bound: Bound
    units: tuple[PreparedUnit, ...]

    def through(self, x: Tensor, sigma: float, targets: Iterable[Tensor]) -> Iterator[Tensor]:
        """The targets, one by one, with the units' residuals added into their rows, in place.

        x: (all rows, C, h, w). Each feature map of the net meets its outlet as soon as it is there, so
        that no more than one is held: several nets cost the memory of one block's activations. Targets
        may come from an encoder that is running: what is added is read by its next block.
        """
        steps = zip(targets, self.features(x, sigma), self.bound.outlets, strict=True)
        for index, (target, feature, outlet) in enumerate(steps):
            self.add(target, feature, outlet, index, sigma)
            yield target

    def features(self, x: Tensor, sigma: float) -> Iterator[Tensor | None]:
        """What the net says about each target: the rows of all units, one behind the other."""
        parts = [x[unit.rows] for unit in self.units]
        return self.bound.features(parts[0] if len(parts) == 1 else torch.cat(parts), sigma)

    def residuals(self, x: Tensor, sigma: float) -> list[Tensor | None]:
        """The rows of all units, before their weights."""
        return [None if f is None else o(f) for f, o in zip(self.features(x, sigma), self.bound.outlets, strict=True)]

    def add(self, target: Tensor, feature: Tensor | None, outlet: Outlet, index: int, sigma: float) -> None:
        """Add the residuals of one feature map into the units' rows of a target, in place."""
        if feature is None:
            return
        for unit, own in self.parts(feature):
            unit.add(target, own, outlet, index, sigma)

    def parts(self, feature: Tensor) -> Iterator[tuple[PreparedUnit, Tensor]]:
        """Each unit with its rows of a feature map; a single unit's may be one row for all, as a T2I-Adapter's is."""
        if len(self.units) == 1:
            yield self.units[0], feature
            return
        counts = [unit.rows.stop - unit.rows.start for unit in self.units]
        yield from zip(self.units, feature.split(counts), strict=True)


def make_actors(units: Iterable[PreparedUnit]) -> tuple[Actor, ...]:
    """Units of one net share a batch where the net can do so."""
    actors = []
    by_net: dict[ControlModel, list[PreparedUnit]] = {}
    for unit in units:
        by_net.setdefault(unit.net, []).append(unit)
    for net, own in by_net.items():
        joined = net.join([unit.bound for unit in own]) if len(own) > 1 else None
        if joined is None:
            actors += [Actor(unit.bound, (unit,)) for unit in own]
        else:
            actors.append(Actor(joined, tuple(own)))
    return tuple(actors)


def seat_unit(seat: Seat, net: ControlModel, rows: slice, halves: Iterable[float], base: UNetConfig) -> PreparedUnit:
    """The net bound to its seat, with what its unit says about strength.

    halves: the factor of each condition among the rows. Raises ShapeError for masks and factors per
    picture that do not fit the batch, ValueRangeError for a wrong number of block weights.
    """
    height, width = seat.size
    unit = seat.unit
    unit.weights(base, height)  # complains before the first step
    sizes = list(zip(block_heights(base, height), block_heights(base, width), strict=True))
    factors = _row_factors(seat, list(halves))
    masks = None if unit.mask is None else _masks(seat, unit.mask, sizes)
    scales = None
    if factors is not None:
        scales = tuple(factors if masks is None else factors * masks[i] for i in range(len(sizes)))
    elif masks is not None:
        scales = tuple(masks)
    return PreparedUnit(unit, net, net.bind(seat), rows, scales, seat.schedule, base, height)


def _row_factors(seat: Seat, halves: list[float]) -> Tensor | None:
    """(rows, 1, 1, 1): factor of the half x factor of the picture; None where all are 1."""
    items = seat.unit.factors(seat.latent[0])
    factors = [half * item for half in halves for item in items]
    if set(factors) == {1.0}:
        return None
    return torch.tensor(factors).to(seat.context)[:, None, None, None]


def check_items(items: tuple[float, ...] | None, batch: int) -> tuple[float, ...]:
    """Factors per picture, (1,) for none. Raises ShapeError when they do not fill the batch."""
    items = items or (1.0,)
    if batch % len(items):
        raise ShapeError(
            f"{len(items)} factors per picture came for a batch of {batch}: give {batch}, or a number that divides it"
        )
    return items


def _masks(seat: Seat, mask: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """(1 or rows, 1, *size) for each size."""
    mask = repeat_to(mask.to(seat.context.device), seat.latent[0], "mask")
    return [seat.spread(mask_at(mask, size)).to(seat.context) for size in sizes]
