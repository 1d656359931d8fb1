"""A unit of control is data: which net, which hint, how strong, when, where.

Nodes build units, workflows store them, the engine runs them, the report prints them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

from torch import Tensor

from ..config import UNetConfig
from ..diffusion.schedule import NoiseSchedule
from ..errors import ShapeError, ValueRangeError
from ..models.control import ControlModel
from .hint import FITS
from .modes import CONDITIONAL_ONLY, MODES, mode_weights
from .weights import BlockWeights, check_count

Curve: TypeAlias = Callable[[float], float]
"""Factor of the strength at a position of the timestep axis (0 is pure noise, 1 the finished picture)."""


@dataclass(frozen=True, eq=False)
class Hint:
    """A picture for a net, and what it shows ("depth", "canny", ...) where the net reads several kinds."""

    picture: Tensor
    kind: str = ""


@dataclass(frozen=True, eq=False)
class ControlUnit:
    """One net with its condition.

    net: the ControlNet, or another kind of control (see `models.control`). hint: (B, C, H, W) in
    [0, 1], as the net was trained to read; brought to the latent's size by the engine. strength: factor
    of every residual; 0 costs nothing. start, end: the window in which the unit acts, as positions on
    the timestep axis (0 is pure noise, 1 the finished picture). mask: (B, H, W) in [0, 1], where it
    acts; None is everywhere. block_weights: a factor for each skip, first to last, and the middle (13
    numbers in SD1.5), or a rule for them. mode: see `control.modes`. name: what reports call it.

    kind: what the hint shows, for nets that read several kinds. more_hints: further pictures for the
    same net, for nets that read several at once. curve: factor of the strength along the timestep axis.
    positive, negative: factor in the conditional and the unconditional half of the guidance; a half of
    factor 0 costs nothing. items: a factor for each picture of the batch, repeated to fill it. fit: how
    the hint comes to the picture's size, see `control.hint`. pool: residuals are averaged over the
    picture, in the conditional half only (the shuffle net, whose file does not say so). whole: the unit that
    this is a part of, where a batch is evaluated in parts.

    Raises ShapeError or ValueRangeError when a field is out of its range.
    """

    net: ControlModel
    hint: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: Tensor | None = None
    block_weights: BlockWeights | tuple[float, ...] | None = None
    mode: str = "balanced"
    name: str = ""
    kind: str = ""
    more_hints: tuple[Hint, ...] = ()
    curve: Curve | None = None
    positive: float = 1.0
    negative: float = 1.0
    items: tuple[float, ...] | None = None
    fit: str = "crop"
    pool: bool = False
    whole: ControlUnit | None = None

    def __post_init__(self) -> None:
        for hint in self.hints:
            if hint.picture.ndim != 4:
                shape = tuple(hint.picture.shape)
                raise ShapeError(f"the hint has shape {shape}, expected (B, channels, height, width)")
        self._check_numbers()
        if self.items is not None and not self.items:
            raise ValueRangeError("the factors per picture are empty: give one for each picture, or none at all")
        if self.mask is not None and self.mask.ndim != 3:
            raise ShapeError(f"the mask has shape {tuple(self.mask.shape)}, expected (B, height, width)")
        if not 0.0 <= self.start <= 1.0 or not 0.0 <= self.end <= 1.0:
            raise ValueRangeError(f"the window is {self.start} to {self.end}: both ends must be between 0 and 1")
        if self.start > self.end:
            raise ValueRangeError(f"the window starts at {self.start} and ends before it, at {self.end}: swap them")
        if self.mode not in MODES:
            raise ValueRangeError(f"control mode {self.mode!r} is unknown: choose one of {', '.join(MODES)}")
        if self.fit not in FITS:
            raise ValueRangeError(f"hint fit {self.fit!r} is unknown: choose one of {', '.join(FITS)}")

    def _check_numbers(self) -> None:
        own = self.block_weights if isinstance(self.block_weights, tuple) else ()
        given = {
            "strength": (self.strength,),
            "factor of the positive half": (self.positive,),
            "factor of the negative half": (self.negative,),
            "factor of a picture": self.items or (),
            "block weight": own,
        }
        for what, numbers in given.items():
            for number in numbers:
                if not isfinite(number):
                    raise ValueRangeError(f"the {what} is {number}: give a finite number")

    @property
    def hints(self) -> tuple[Hint, ...]:
        """All pictures of the unit."""
        return (Hint(self.hint, self.kind), *self.more_hints)

    @property
    def conditional_only(self) -> bool:
        """Whether the unit leaves the negative half of the guidance alone."""
        return self.half(positive=False) == 0.0

    def half(self, positive: bool) -> float:
        """Factor of one half of the guidance; 0 for the negative where mode or net leave it alone."""
        if positive:
            return self.positive
        alone = self.mode in CONDITIONAL_ONLY or self.net.conditional_only or self.pool
        return 0.0 if alone else self.negative

    def factors(self, batch: int) -> tuple[float, ...]:
        """A factor for each picture of a batch. Raises ShapeError when their number does not divide it."""
        items = self.items or (1.0,)
        if batch % len(items):
            raise ShapeError(
                f"{len(items)} factors per picture came for a batch of {batch}: give {batch}, or a number that "
                "divides it"
            )
        return items * (batch // len(items))

    def own_weights(self, config: UNetConfig) -> tuple[float, ...] | None:
        """The block weights for a net on this base."""
        weights = self.block_weights
        return weights if weights is None or isinstance(weights, tuple) else weights.resolve(config)

    def weights(self, config: UNetConfig, latent_height: int) -> tuple[float, ...]:
        """Factor of each residual: strength x mode x block weight. Raises ValueRangeError on a wrong count."""
        by_mode = mode_weights(self.mode, config, latent_height)
        own = check_count(self.own_weights(config) or (1.0,) * len(by_mode), len(by_mode))
        return tuple(self.strength * m * w for m, w in zip(by_mode, own, strict=True))

    def is_active(self, sigma: float, schedule: NoiseSchedule) -> bool:
        """Whether the window includes this sigma."""
        return schedule.in_window(sigma, self.start, self.end)

    def factor_at(self, sigma: float, schedule: NoiseSchedule) -> float:
        """Factor of the strength at this sigma: 0 outside the window, the curve inside."""
        if not self.is_active(sigma, schedule):
            return 0.0
        return 1.0 if self.curve is None else float(self.curve(schedule.sigma_to_percent(sigma)))

    def weights_at(
        self, sigma: float, schedule: NoiseSchedule, config: UNetConfig, latent_height: int
    ) -> tuple[float, ...]:
        """Factor of each residual at this sigma: `weights` inside the window, on the curve. Errors as there."""
        factor = self.factor_at(sigma, schedule)
        return tuple(factor * w for w in self.weights(config, latent_height))


ControlStack: TypeAlias = tuple[ControlUnit, ...]
"""Units whose residuals are summed (section 3.4); order does not matter."""
