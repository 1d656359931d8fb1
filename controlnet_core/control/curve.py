"""Strength schedules: keyframes on the timestep axis, with an easing from each to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from ..errors import ValueRangeError
from .easing import EASINGS, ease
from .keyframes import UnitKeyframe, check_order
from .points import PointCurve

EXAMPLE = "0: 1, 0.5: 0.4, 1: 0"


@dataclass(frozen=True)
class Keyframe:
    """A strength at one position of the timestep axis.

    position: 0 (pure noise) to 1 (finished picture). strength: factor of the unit's strength. easing: how the strength
    changes from here to the next keyframe. Raises ValueRangeError for a field outside its range.
    """

    position: float
    strength: float
    easing: str = "linear"

    def __post_init__(self) -> None:
        if not 0.0 <= self.position <= 1.0:
            raise ValueRangeError(
                f"a keyframe is at position {self.position:g}: give 0 (noise) to 1 (finished picture)"
            )
        if not math.isfinite(self.strength):
            raise ValueRangeError(f"the keyframe at {self.position:g} has strength {self.strength}: give a number")
        if self.easing not in EASINGS:
            raise ValueRangeError(f"easing {self.easing!r} is unknown: choose one of {', '.join(EASINGS)}")


@dataclass(frozen=True)
class StrengthCurve:
    """The factor of a unit's strength as a function of the position p on the timestep axis.

    Between two keyframes it is s_k + (s_k+1 - s_k) E((p - p_k) / (p_k+1 - p_k)), E the easing of keyframe k. Before the
    first and after the last keyframe it is constant. Raises ValueRangeError without keyframes, or if their positions
    do not rise. shape: another function of p in their place. unit_keyframes: what else of the unit changes.
    """

    # Positions are timesteps, so that a curve does not depend on sampler, scheduler or number of steps.

    keyframes: tuple[Keyframe, ...]
    shape: PointCurve | None = None
    unit_keyframes: tuple[UnitKeyframe, ...] = ()

    def __post_init__(self) -> None:
        if not self.keyframes:
            raise ValueRangeError(f"the strength schedule is empty: give at least one keyframe, such as {EXAMPLE}")
        for before, after in pairwise(self.keyframes):
            if after.position <= before.position:
                raise ValueRangeError(
                    f"the keyframe at {after.position:g} comes after the one at {before.position:g}: sort them from 0 "
                    "to 1, each position once"
                )
        check_order(self.unit_keyframes)

    def __call__(self, position: float) -> float:
        """The factor at a position of the timestep axis."""
        if self.shape is not None:
            return self.shape(position)
        first, last = self.keyframes[0], self.keyframes[-1]
        if position <= first.position:
            return first.strength
        if position >= last.position:
            return last.strength
        before, after = next((a, b) for a, b in pairwise(self.keyframes) if position < b.position)
        t = (position - before.position) / (after.position - before.position)
        return ease(before.easing, before.strength, after.strength, t)


def read_curve(text: str, easing: str = "linear") -> StrengthCurve:
    """Parse keyframes such as "0: 1, 0.5: 0.4 ease-in, 1: 0", separated by commas, semicolons or new lines.

    easing: for keyframes that name none. Raises ValueRangeError that quotes the part it cannot read.
    """
    parts = [part.strip() for part in text.replace("\n", ",").replace(";", ",").split(",")]
    return StrengthCurve(tuple(_keyframe(part, easing) for part in parts if part))


def _keyframe(part: str, easing: str) -> Keyframe:
    place, _, rest = part.partition(":")
    strength, *own = rest.split() or [""]
    try:
        position, value = float(place), float(strength)
    except ValueError as error:
        raise ValueRangeError(
            f"keyframe {part!r} is not `position: strength`, perhaps with an easing: write it as in {EXAMPLE}"
        ) from error
    return Keyframe(position, value, " ".join(own) or easing)
