"""What of a unit changes during sampling besides its strength: mask and block weights, from one position to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..errors import ShapeError, ValueRangeError
from .weights import BlockWeights


@dataclass(frozen=True, eq=False)
class UnitKeyframe:
    """From its position on, the unit's mask and block weights are multiplied by these.

    position: 0 (pure noise) to 1 (finished picture) on the timestep axis. mask: (B, H, W) in [0, 1]. block_weights: as
    those of a unit. Each stays until a later keyframe has another one; None leaves it as it is. Raises ValueRangeError
    or ShapeError for a field outside its range.
    """

    position: float
    mask: Tensor | None = None
    block_weights: BlockWeights | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.position <= 1.0:
            raise ValueRangeError(
                f"a keyframe is at position {self.position:g}: give 0 (noise) to 1 (finished picture)"
            )
        if self.mask is not None and self.mask.ndim != 3:
            raise ShapeError(f"the mask of a keyframe has shape {tuple(self.mask.shape)}: give (B, height, width)")


def check_order(keyframes: Sequence[UnitKeyframe]) -> None:
    """Raise ValueRangeError unless the positions rise."""
    for before, after in pairwise(keyframes):
        if after.position <= before.position:
            raise ValueRangeError(
                f"a keyframe at {after.position:g} follows one at {before.position:g}: give each position once, from 0 "
                "to 1"
            )


def mask_in_force(keyframes: Sequence[UnitKeyframe]) -> Tensor | None:
    """The last mask of keyframes that have begun."""
    return next((frame.mask for frame in reversed(keyframes) if frame.mask is not None), None)


def weights_in_force(keyframes: Sequence[UnitKeyframe]) -> BlockWeights | None:
    """The last block weights of keyframes that have begun."""
    return next((frame.block_weights for frame in reversed(keyframes) if frame.block_weights is not None), None)
