"""A unit of control is data: which net, which hint, how strong, when, where.

Nodes build units, workflows store them, the engine runs them, the report prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ..config import UNetConfig
from ..diffusion.schedule import NoiseSchedule
from ..errors import ShapeError, ValueRangeError
from ..models.controlnet import ControlNet
from .modes import CONDITIONAL_ONLY, MODES, mode_weights


@dataclass(frozen=True, eq=False)
class ControlUnit:
    """One ControlNet with its condition.

    net: the ControlNet. hint: (B, C, H, W) in [0, 1], as the net was trained to read; brought to the
    latent's size by the engine. strength: factor of every residual; 0 costs nothing.
    start, end: the window in which the unit acts, as positions on the timestep axis (0 is pure
    noise, 1 the finished picture). mask: (B, H, W) in [0, 1], where it acts; None is everywhere.
    block_weights: a factor for each skip, first to last, and the middle (13 numbers in SD1.5).
    mode: see `control.modes`. name: what reports call it.

    Raises ShapeError or ValueRangeError when a field is out of its range.
    """

    net: ControlNet
    hint: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mask: Tensor | None = None
    block_weights: tuple[float, ...] | None = None
    mode: str = "balanced"
    name: str = ""

    def __post_init__(self) -> None:
        if self.hint.ndim != 4:
            raise ShapeError(f"the hint has shape {tuple(self.hint.shape)}, expected (B, channels, height, width)")
        if self.mask is not None and self.mask.ndim != 3:
            raise ShapeError(f"the mask has shape {tuple(self.mask.shape)}, expected (B, height, width)")
        if not 0.0 <= self.start <= 1.0 or not 0.0 <= self.end <= 1.0:
            raise ValueRangeError(f"the window is {self.start} to {self.end}: both ends must be between 0 and 1")
        if self.start > self.end:
            raise ValueRangeError(f"the window starts at {self.start} and ends before it, at {self.end}: swap them")
        if self.mode not in MODES:
            raise ValueRangeError(f"control mode {self.mode!r} is unknown: choose one of {', '.join(MODES)}")

    @property
    def conditional_only(self) -> bool:
        """Whether the unit leaves the negative half of the guidance alone."""
        return self.mode in CONDITIONAL_ONLY

    def weights(self, config: UNetConfig, latent_height: int) -> tuple[float, ...]:
        """Factor of each residual: strength x mode x block weight. Raises ValueRangeError on a wrong count."""
        by_mode = mode_weights(self.mode, config, latent_height)
        own = self.block_weights or (1.0,) * len(by_mode)
        if len(own) != len(by_mode):
            raise ValueRangeError(
                f"{len(own)} block weights came, this net has {len(by_mode)} blocks "
                f"({len(by_mode) - 1} skips and the middle): give that many"
            )
        return tuple(self.strength * m * w for m, w in zip(by_mode, own, strict=True))

    def is_active(self, sigma: float, schedule: NoiseSchedule) -> bool:
        """Whether the window includes this sigma."""
        return schedule.percent_to_sigma(self.end) <= sigma <= schedule.percent_to_sigma(self.start)


ControlStack: TypeAlias = tuple[ControlUnit, ...]
"""Units whose residuals are summed (section 3.4); order does not matter."""
