"""Easings: interpolation from one value to another, used by strength schedules and block weights.

===========  ===============================================
easing       share of the change at a share t of the distance
===========  ===============================================
linear       t
ease-in      t^2: slow at first
ease-out     1 - (1 - t)^2: slow at the end
ease-in-out  3 t^2 - 2 t^3: slow at both ends
hold         0, and 1 at the end: keeps the value, then jumps
===========  ===============================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..errors import ValueRangeError

EASINGS: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda t: t,
        "ease-in": lambda t: t * t,
        "ease-out": lambda t: 1.0 - (1.0 - t) ** 2,
        "ease-in-out": lambda t: t * t * (3.0 - 2.0 * t),
        "hold": lambda t: float(t >= 1.0),
    }
)


def ease(name: str, start: float, end: float, t: float) -> float:
    """Interpolate from start (t = 0) to end (t = 1). Raises ValueRangeError for an unknown name."""
    if name not in EASINGS:
        raise ValueRangeError(f"easing {name!r} is unknown: choose one of {', '.join(EASINGS)}")
    return start + (end - start) * EASINGS[name](t)
