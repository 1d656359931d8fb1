"""Bodies that rays can hit: capsules, box, cylinder and cone, in world space and in metres.

A ray is origin + t * direction. The directions have length 1 along the camera's axis, so t is the metric depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...errors import ValueRangeError
from .mannequin import Mannequin
from .scene import SceneObject

X, Y, Z = np.eye(3)


class Shape(Protocol):
    """A body in world space, convex or made of convex parts."""

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """(3,), (N, 3) -> (N,) smallest t of a hit, inf where the ray misses."""
        ...

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M, 3) points on the surface -> (M, 3) outward unit normals, (M,) number of the face."""
        ...

    def outlines(self) -> Sequence[np.ndarray]:
        """Point sets (K, 3), one for each convex part; their hulls hold the body and cast its shadow."""
        ...


def ring(centre: np.ndarray, radius: float, u: np.ndarray, v: np.ndarray, count: int = 20) -> np.ndarray:
    """(count, 3) points of a circle about the centre (3,) in the plane of the unit vectors u and v."""
    angle = np.arange(count) * (2.0 * np.pi / count)
    return centre + radius * (np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v)


def _ball_points(centre: np.ndarray, radius: float) -> np.ndarray:
    """Points (60, 3) on a ball: their hull, seen from any direction, nearly covers the ball."""
    rings = [ring(centre + radius * s * Y, radius * np.sqrt(1.0 - s * s), X, Z, 12) for s in (-0.75, 0.0, 0.75)]
    return np.concatenate([*rings, ring(centre, radius, X, Y, 12), ring(centre, radius, Z, Y, 12)])


@dataclass(frozen=True)
class Capsules:
    """Spheres swept along segments from `a` to `b` (K, 3), with `radius` (K,). A segment of length 0 is a sphere."""

    a: np.ndarray
    b: np.ndarray
    radius: np.ndarray

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        return self._depths(origin, rays).min(axis=0)

    def _depths(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """(K, N): depth of a hit with each capsule."""
        axis, oa, ob = self.b - self.a, origin - self.a, origin - self.b
        length2 = (axis * axis).sum(1)[:, None]
        r2 = (self.radius**2)[:, None]
        d2 = (rays * rays).sum(1)
        ad, od = axis @ rays.T, oa @ rays.T
        ao, oo = (axis * oa).sum(1)[:, None], (oa * oa).sum(1)[:, None]
        # First the infinite cylinder about the segment: qa t^2 + 2 qb t + qc = 0.
        qa = length2 * d2 - ad * ad
        qb = length2 * od - ao * ad
        h = qb * qb - qa * (length2 * oo - ao * ao - r2 * length2)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (-qb - np.sqrt(h)) / qa
            along = ao + t * ad
        on_side = (along > 0.0) & (along < length2) & (length2 > 0.0)
        # Where the ray leaves the segment: the ball at the nearer end.
        at_b = (along >= length2) & (length2 > 0.0)
        cd = np.where(at_b, ob @ rays.T, od)
        hc = cd * cd - d2 * (np.where(at_b, (ob * ob).sum(1)[:, None], oo) - r2)
        with np.errstate(invalid="ignore"):
            t = np.where(on_side, t, (-cd - np.sqrt(hc)) / d2)
        return np.where(np.isfinite(t) & (t > 0.0), t, np.inf)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        axis = self.b - self.a
        length2 = np.maximum((axis * axis).sum(1), 1e-12)[:, None]
        along = np.clip((axis @ points.T - (axis * self.a).sum(1)[:, None]) / length2, 0.0, 1.0)
        offset = points - (self.a[:, None] + along[..., None] * axis[:, None])
        distance = np.sqrt((offset * offset).sum(2))
        part = np.abs(distance - self.radius[:, None]).argmin(axis=0)
        chosen = np.arange(len(points))
        return offset[part, chosen] / distance[part, chosen, None], part

    def outlines(self) -> Sequence[np.ndarray]:
        return [
            np.concatenate([_ball_points(a, r), _ball_points(b, r)])
            for a, b, r in zip(self.a, self.b, self.radius, strict=True)
        ]


@dataclass(frozen=True)
class Box:
    """An upright box: centre (3,), half sizes (3,) along its own axes, turned about y by `yaw` radians."""

    centre: np.ndarray
    half: np.ndarray
    yaw: float

    @property
    def frame(self) -> np.ndarray:
        """(3, 3), the rows are the box's axes in world space."""
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        return np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        # Slab test: a ray hits where its last entry comes before its first exit.
        o, d = self.frame @ (origin - self.centre), rays @ self.frame.T
        # A ray parallel to a face divides by 0: its infinite bounds then drop out of the comparison below.
        with np.errstate(divide="ignore"):
            inverse = 1.0 / d
        middle, reach = -o * inverse, np.abs(self.half * inverse)
        enter, leave = (middle - reach).max(axis=1), (middle + reach).min(axis=1)
        return np.where((enter < leave) & (enter > 0.0), enter, np.inf)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = (points - self.centre) @ self.frame.T / self.half
        face = np.abs(local).argmax(axis=1)
        sign = np.sign(local[np.arange(len(local)), face])
        return self.frame[face] * sign[:, None], face * 2 + (sign > 0)

    def outlines(self) -> Sequence[np.ndarray]:
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
        return [self.centre + (corners * self.half) @ self.frame]


@dataclass(frozen=True)
class Upright:
    """A solid of revolution about a vertical axis that stands on `base` (3,)."""

    base: np.ndarray
    radius: float
    height: float


class Cylinder(Upright):
    """An upright cylinder."""

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        o = origin - self.base
        a = rays[:, 0] ** 2 + rays[:, 2] ** 2
        b = o[0] * rays[:, 0] + o[2] * rays[:, 2]
        h = b * b - a * (o[0] ** 2 + o[2] ** 2 - self.radius**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            side = (-b - np.sqrt(h)) / a
            y = o[1] + side * rays[:, 1]
            side = np.where((y >= 0.0) & (y <= self.height) & (side > 0.0), side, np.inf)
            top = (self.height - o[1]) / rays[:, 1]
            reach = (o[0] + top * rays[:, 0]) ** 2 + (o[2] + top * rays[:, 2]) ** 2
        # The camera is above the ground, so only rays that go down can hit the top.
        on_top = (reach <= self.radius**2) & (top > 0.0) & (rays[:, 1] < 0.0)
        return np.minimum(side, np.where(on_top, top, np.inf))

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = points - self.base
        rho = np.hypot(local[:, 0], local[:, 2])
        top = self.height - local[:, 1] < np.abs(self.radius - rho)
        side = local / np.maximum(rho, 1e-9)[:, None] * np.array([1.0, 0.0, 1.0])
        return np.where(top[:, None], Y, side), top.astype(int)

    def outlines(self) -> Sequence[np.ndarray]:
        base = ring(self.base, self.radius, X, Z, 24)
        return [np.concatenate([base, base + self.height * Y])]


class Cone(Upright):
    """An upright cone. Its base lies on the ground, where no ray can hit it."""

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        # x^2 + z^2 = k^2 (height - y)^2 with k = radius / height, of which only the half below the apex is the cone.
        o, k2 = origin - self.base, (self.radius / self.height) ** 2
        drop = self.height - o[1]
        a = rays[:, 0] ** 2 + rays[:, 2] ** 2 - k2 * rays[:, 1] ** 2
        b = o[0] * rays[:, 0] + o[2] * rays[:, 2] + k2 * drop * rays[:, 1]
        h = b * b - a * (o[0] ** 2 + o[2] ** 2 - k2 * drop * drop)
        with np.errstate(invalid="ignore", divide="ignore"):
            roots = (-b + np.array([[-1.0], [1.0]]) * np.sqrt(h)) / a
            y = o[1] + roots * rays[:, 1]
        return np.where((y >= 0.0) & (y <= self.height) & (roots > 0.0), roots, np.inf).min(axis=0)

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = points - self.base
        rho = np.maximum(np.hypot(local[:, 0], local[:, 2]), 1e-9)
        slant = np.hypot(self.radius, self.height)
        cos, sin = self.height / slant, self.radius / slant
        normal = local * (cos / rho)[:, None]
        normal[:, 1] = sin
        return normal, np.zeros(len(local), dtype=int)

    def outlines(self) -> Sequence[np.ndarray]:
        return [np.concatenate([ring(self.base, self.radius, X, Z, 24), (self.base + self.height * Y)[None]])]


def build_shape(thing: SceneObject) -> Shape:
    """The body of a solid or of a mannequin. Raises ValueRangeError for an unknown kind of solid."""
    if isinstance(thing, Mannequin):
        a, b, radius = zip(*thing.capsules(), strict=True)
        return Capsules(np.stack(a), np.stack(b), np.array(radius))
    base = np.array([thing.x, 0.0, thing.z])
    centre = base + 0.5 * thing.height * Y
    if thing.kind == "sphere":
        return Capsules(centre[None], centre[None], np.array([thing.radius]))
    if thing.kind == "box":
        return Box(centre, np.array([thing.radius, 0.5 * thing.height, thing.radius]), thing.yaw)
    if thing.kind in ("cylinder", "cone"):
        return (Cylinder if thing.kind == "cylinder" else Cone)(base, thing.radius, thing.height)
    raise ValueRangeError(f"a solid of kind {thing.kind!r} is unknown: use sphere, box, cylinder or cone")
