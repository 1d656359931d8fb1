"""Curves through points, as the curve editor of ComfyUI draws them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from ..errors import ValueRangeError

Point: TypeAlias = tuple[float, float]
INTERPOLATIONS = ("monotone_cubic", "linear")
MAX_POINTS = 10_000


@dataclass(frozen=True)
class PointCurve:
    """A function through points (x, y), constant before the first and after the last.

    points: with rising x. interpolation: "linear", or "monotone_cubic": cubic between two points, and never outside
    their values (Fritsch and Carlson, "Monotone piecewise cubic interpolation", 1980). Raises ValueRangeError without
    points, for numbers that are not finite, and for an unknown interpolation.
    """

    points: tuple[Point, ...]
    interpolation: str = "monotone_cubic"

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueRangeError("the curve has no points: set at least one in the curve editor")
        if not all(math.isfinite(number) for point in self.points for number in point):
            raise ValueRangeError("a point of the curve is not a finite number: set it anew in the curve editor")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueRangeError(
                f"interpolation {self.interpolation!r} is unknown: choose one of {', '.join(INTERPOLATIONS)}"
            )
        object.__setattr__(self, "points", tuple(sorted(self.points, key=lambda point: point[0])))
        object.__setattr__(self, "_slopes", _slopes(self.points))

    def __call__(self, x: float) -> float:
        """The value at x."""
        if x <= self.points[0][0]:
            return self.points[0][1]
        if x >= self.points[-1][0]:
            return self.points[-1][1]
        behind = bisect_right(self.points, x, key=lambda point: point[0])
        (x0, y0), (x1, y1) = self.points[behind - 1 : behind + 1]
        width = x1 - x0
        t = (x - x0) / width
        if self.interpolation == "linear":
            return y0 + t * (y1 - y0)
        # A Hermite polynomial: the line, and what the slopes at both ends add to it.
        m0, m1 = self._slopes[behind - 1] * width, self._slopes[behind] * width  # type: ignore[attr-defined]
        rise = y1 - y0
        return y0 + t * t * (3.0 - 2.0 * t) * rise + t * (1.0 - t) * ((1.0 - t) * m0 - t * m1)

    def interp(self, x: float) -> float:
        """The value at x, by the name by which ComfyUI's nodes ask a CURVE for it."""
        return self(x)


def _slopes(points: Sequence[Point]) -> tuple[float, ...]:
    """The slope in each point: the mean of those of the lines beside it, limited so that no cubic overshoots."""
    lines = [(y1 - y0) / (x1 - x0) if x1 > x0 else 0.0 for (x0, y0), (x1, y1) in pairwise(points)]
    if not lines:
        return (0.0,)
    inner = [0.0 if a * b <= 0.0 else (a + b) / 2.0 for a, b in pairwise(lines)]
    slopes = [lines[0], *inner, lines[-1]]
    for i, line in enumerate(lines):
        if line == 0.0:
            slopes[i] = slopes[i + 1] = 0.0
            continue
        # Monotone where (alpha, beta) lies inside a circle of radius 3.
        length = math.hypot(slopes[i] / line, slopes[i + 1] / line)
        if length > 3.0:
            slopes[i], slopes[i + 1] = slopes[i] * 3.0 / length, slopes[i + 1] * 3.0 / length
    return tuple(slopes)


def read_points(value: Any) -> PointCurve:
    """The curve of a CURVE: a PointCurve, an object of ComfyUI, {"points": ..., "interpolation": ...}, or pairs.

    Raises ValueRangeError for anything else.
    """
    if isinstance(value, PointCurve):
        return value
    interpolation: Any = "monotone_cubic"
    if isinstance(value, Mapping):
        interpolation = value.get("interpolation", interpolation)
        value = value.get("points")
    elif hasattr(value, "points"):
        # ComfyUI has one class for each interpolation. We recognise it by its name, to avoid importing ComfyUI here.
        interpolation = "linear" if "linear" in type(value).__name__.lower() else interpolation
        value = value.points
    try:
        points = tuple((float(x), float(y)) for x, y in value)
    except (TypeError, ValueError, OverflowError):
        points = None
    if points is None or len(points) > MAX_POINTS:
        raise ValueRangeError(
            "the curve is no list of points (x, y): link Curve Editor, or write for instance [[0, 1], [1, 0]]"
        )
    return PointCurve(points, interpolation if isinstance(interpolation, str) else str(interpolation)[:40])
