"""A unit of control as data: which net, which hint, how strong, when, where.

Nodes build units, workflows store them, the engine runs them, and reports print them.
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
from .keyframes import UnitKeyframe, check_order, mask_in_force, weights_in_force
from .modes import CONDITIONAL_ONLY, MODES, mode_weights
from .weights import BlockWeights, check_count

Curve: TypeAlias = Callable[[float], float]
"""Position on the timestep axis (0 is pure noise, 1 the finished picture) -> factor of the strength."""


# eq=False: records with tensors are equal only to themselves, and can be keys of a dictionary.
@dataclass(frozen=True, eq=False)
class Hint:
    """A picture for a net, and what it shows ("depth", "canny", ...), for nets that read several kinds."""

    picture: Tensor
    kind: str = ""


@dataclass(frozen=True, eq=False)
class ControlUnit:
    """One net with its hint and settings.

    net: the ControlNet, or another kind of control (see `models.control`).
    hint: (B, C, H, W) in [0, 1], as the net was trained to read it. The engine resizes it.
    strength: factor of every residual. 0 costs no time.
    start, end: the window in which the unit acts, as positions on the timestep axis (0 is pure noise, 1 the finished
        picture).
    mask: (B, H, W) in [0, 1], where the unit acts; None for everywhere.
    block_weights: a factor for each skip, first to last, and the middle (13 numbers in SD1.5), or a rule for them.
    mode: see `control.modes`.
    name: the name in reports.
    kind: what the hint shows, for nets that read several kinds.
    more_hints: further pictures, for nets that read several at once.
    curve: factor of the strength along the timestep axis.
    positive, negative: factor in the conditional and the unconditional half of the guidance. A half of factor 0
        costs no time.
    items: a factor for each picture of the batch, repeated to fill it.
    fit: how the hint is resized, see `control.hint`.
    pool: average the residuals over the picture, in the conditional half only. The shuffle net needs it, and its file
        does not say so.
    keyframes: masks and block weights that hold from a position on, by which those of the unit are multiplied.
    whole: the unit that this one is a part of, if a batch is evaluated in parts.

    Raises ShapeError or ValueRangeError for a field outside its range.
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
    keyframes: tuple[UnitKeyframe, ...] = ()
    whole: ControlUnit | None = None

    def __post_init__(self) -> None:
        for hint in self.hints:
            if hint.picture.ndim != 4:
                shape = tuple(hint.picture.shape)
                raise ShapeError(f"the hint has shape {shape}: give (B, channels, height, width)")
        self._check_numbers()
        if self.items is not None and not self.items:
            raise ValueRangeError("the list of factors per picture is empty: give one for each picture, or None")
        if self.mask is not None and self.mask.ndim != 3:
            raise ShapeError(f"the mask has shape {tuple(self.mask.shape)}: give (B, height, width)")
        if not 0.0 <= self.start <= 1.0 or not 0.0 <= self.end <= 1.0:
            raise ValueRangeError(f"the window is {self.start} to {self.end}: give two numbers from 0 to 1")
        if self.start > self.end:
            raise ValueRangeError(f"the window starts at {self.start} and ends before that, at {self.end}: swap them")
        check_order(self.keyframes)
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

    def half_factor(self, positive: bool) -> float:
        """Factor in one half of the guidance; 0 in the negative half if the mode or the net acts on the other only."""
        if positive:
            return self.positive
        # Guess mode of the authors' code: without a prompt, only the conditional half shall follow the hint.
        positive_only = self.mode in CONDITIONAL_ONLY or self.net.conditional_only or self.pool
        return 0.0 if positive_only else self.negative

    def image_factors(self, batch: int) -> tuple[float, ...]:
        """A factor for each picture of a batch. Raises ShapeError if their number does not divide the batch."""
        items = self.items or (1.0,)
        if batch % len(items):
            raise ShapeError(
                f"got {len(items)} factors per picture for a batch of {batch}: give {batch}, or a number that "
                "divides it"
            )
        # Repeated as a whole, like the images of a batch: 1, 2 becomes 1, 2, 1, 2.
        return items * (batch // len(items))

    def own_weights(self, config: UNetConfig) -> tuple[float, ...] | None:
        """The block weights for a net on this base; None if there are none."""
        weights = self.block_weights
        return weights if weights is None or isinstance(weights, tuple) else weights.resolve(config)

    def begun_count(self, sigma: float, schedule: NoiseSchedule) -> int:
        """How many keyframes have begun at this sigma. One begins where a window that starts there does."""
        return sum(schedule.in_window(sigma, frame.position, 1.0) for frame in self.keyframes)

    def masks(self, begun: int = 0) -> tuple[Tensor, ...]:
        """The masks that are multiplied while so many keyframes have begun: none, one or two, each (B, H, W)."""
        given = (self.mask, mask_in_force(self.keyframes[:begun]))
        return tuple(mask for mask in given if mask is not None)

    def weights(self, config: UNetConfig, latent_height: int, begun: int = 0) -> tuple[float, ...]:
        """Factor of each residual: strength x mode x block weight, while so many keyframes have begun.

        Raises ValueRangeError for a wrong number of block weights.
        """
        found = tuple(self.strength * m for m in mode_weights(self.mode, config, latent_height))
        timed = weights_in_force(self.keyframes[:begun])
        for own in (self.own_weights(config), None if timed is None else timed.resolve(config)):
            if own is not None:
                found = tuple(a * b for a, b in zip(found, check_count(own, len(found)), strict=True))
        return found

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
        """Factor of each residual at this sigma: `factor_at` x `weights`. Raises as `weights` does."""
        factor = self.factor_at(sigma, schedule)
        return tuple(factor * w for w in self.weights(config, latent_height, self.begun_count(sigma, schedule)))


ControlStack: TypeAlias = tuple[ControlUnit, ...]
"""Units whose residuals are summed (Zhang et al. 2023, section 3.4). Their order does not matter."""
