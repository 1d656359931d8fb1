"""Strength schedules: keyframes on the timestep axis, with an easing from each to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from ..errors import ValueRangeError
from .easing import EASINGS, ease

EXAMPLE = "0: 1, 0.5: 0.4, 1: 0"


@dataclass(frozen=True)
class Keyframe:
    """position: on the timestep axis, 0 is pure noise, 1 the finished picture. strength: a factor there.

    easing: of the way from here to the next keyframe.
    """

    position: float
    strength: float
    easing: str = "linear"

    def __post_init__(self) -> None:
        if not 0.0 <= self.position <= 1.0:
            raise ValueRangeError(f"a keyframe is at {self.position:g}: positions are between 0 and 1")
        if not math.isfinite(self.strength):
            raise ValueRangeError(f"the keyframe at {self.position:g} has strength {self.strength}: give a number")
        if self.easing not in EASINGS:
            raise ValueRangeError(f"easing {self.easing!r} is unknown: choose one of {', '.join(EASINGS)}")


@dataclass(frozen=True)
class StrengthCurve:
    """The factor of a unit's strength at each position: s(p) = s_k + (s_k+1 - s_k) E((p - p_k) / (p_k+1 - p_k)).

    Before the first keyframe its strength holds, behind the last one that one's. The position is that of
    the timestep, so the curve does not depend on sampler, scheduler or number of steps. Raises
    ValueRangeError when there is no keyframe, or when they do not rise.
    """

    keyframes: tuple[Keyframe, ...]

    def __post_init__(self) -> None:
        if not self.keyframes:
            raise ValueRangeError(f"the strength schedule is empty: give at least one keyframe, such as {EXAMPLE}")
        for before, after in pairwise(self.keyframes):
            if after.position <= before.position:
                raise ValueRangeError(
                    f"the keyframe at {after.position:g} stands behind the one at {before.position:g}: "
                    "keyframes go from 0 to 1, each position once"
                )

    def __call__(self, position: float) -> float:
        """The factor at a position of the timestep axis."""
        first, last = self.keyframes[0], self.keyframes[-1]
        if position <= first.position:
            return first.strength
        if position >= last.position:
            return last.strength
        before, after = next((a, b) for a, b in pairwise(self.keyframes) if position < b.position)
        t = (position - before.position) / (after.position - before.position)
        return ease(before.easing, before.strength, after.strength, t)


def read_curve(text: str, easing: str = "linear") -> StrengthCurve:
    """ "0: 1, 0.5: 0.4 ease-in, 1: 0" -> its curve; keyframes by commas or lines, each `position: strength`.

    easing: of keyframes that name none. Raises ValueRangeError naming the part that it cannot read.
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
            f"keyframe {part!r}: expected `position: strength` and perhaps an easing, such as {EXAMPLE}"
        ) from error
    return Keyframe(position, value, " ".join(own) or easing)
