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
from ..models.control import Bound
from .condition import crop
from .seat import Seat


@dataclass(frozen=True, eq=False)
class PreparedUnit:
    """A ControlUnit bound to rows of a group.

    scales: for each residual a factor that broadcasts to it, (1 or rows, 1, h_i or 1, w_i or 1), where
    the unit has a mask or treats pictures or halves apart. base: the UNet that is controlled.
    """

    unit: ControlUnit
    bound: Bound
    rows: slice
    scales: tuple[Tensor, ...] | None
    schedule: NoiseSchedule
    base: UNetConfig
    latent_height: int
    known_weights: dict[float, tuple[float, ...]] = field(default_factory=dict)

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

    def through(self, x: Tensor, sigma: float, targets: Iterable[Tensor]) -> Iterator[Tensor]:
        """The targets, one by one, with the unit's residual added into its rows, in place.

        x: (all rows, C, h, w). Each feature map of the net meets its outlet as soon as it is there, so
        that no more than one is held: several nets cost the memory of one block's activations. Targets
        may come from an encoder that is running: what is added is read by its next block.
        """
        features = self.bound.features(x[self.rows], sigma)
        weights = self.weights(sigma)
        scales = self.scales or (None,) * len(weights)
        for target, feature, outlet, weight, scale in zip(
            targets, features, self.bound.outlets, weights, scales, strict=True
        ):
            if feature is not None and weight != 0.0:
                view = target[self.rows]
                if scale is None:
                    outlet.accumulate(view, feature, weight)
                else:
                    view.addcmul_(outlet(feature), scale, value=weight)
            yield target

    def residuals(self, x: Tensor, sigma: float) -> Iterator[Tensor | None]:
        """What `through` adds to each target, by definition: (rows, C, h, w), or None for nothing."""
        features = self.bound.features(x[self.rows], sigma)
        weights = self.weights(sigma)
        scales = self.scales or (None,) * len(weights)
        for feature, outlet, weight, scale in zip(features, self.bound.outlets, weights, scales, strict=True):
            if feature is None or weight == 0.0:
                yield None
            else:
                residual = outlet(feature) * weight
                yield residual if scale is None else residual * scale


def seat_unit(seat: Seat, bound: Bound, rows: slice, halves: Iterable[float], base: UNetConfig) -> PreparedUnit:
    """A net in its seat with what its unit says about strength.

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
    return PreparedUnit(unit, bound, rows, scales, seat.schedule, base, height)


def _row_factors(seat: Seat, halves: list[float]) -> Tensor | None:
    """(rows, 1, 1, 1): factor of the half x factor of the picture; None where all are 1."""
    batch = seat.latent[0]
    items = seat.unit.items or (1.0,)
    if batch % len(items):
        raise ShapeError(
            f"{len(items)} factors per picture came for a batch of {batch}: give {batch}, or a number that divides it"
        )
    factors = [half * item for half in halves for item in items * (batch // len(items))]
    if set(factors) == {1.0}:
        return None
    return torch.tensor(factors).to(seat.context)[:, None, None, None]


def _masks(seat: Seat, mask: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """(1 or rows, 1, *size) for each size."""
    batch, height, width = seat.latent
    if seat.area is not None:
        mask = crop(mask_at(mask, (height, width)), seat.area, 1)[:, 0]
    mask = repeat_to(mask.to(seat.context.device), batch, "mask")
    return [seat.spread(mask_at(mask, size)).to(seat.context) for size in sizes]
