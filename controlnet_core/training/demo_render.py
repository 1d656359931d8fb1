"""The demo world's renderer: analytic ray casting with exact depth, normals, labels and keypoints.

A ray is o + t d with d's component along the camera's axis equal to 1, so that t is the metric depth.
The geometry is sampled once per pixel, at its centre; the picture takes 2x2 further rays where two
surfaces meet. Shading is Lambert's law with one directional light and an ambient term; the shadows on
the ground are projected outlines with a soft edge, so that the pictures stay smooth and easy to encode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import ValueRangeError
from .demo_scene import (
    FACE_KEYPOINTS,
    GROUND_COLOURS,
    SKIES,
    Camera,
    Mannequin,
    Scene,
    SceneObject,
    Solid,
    sample_scene,
)

SKY, GROUND = 0, 1
AMBIENT, DIRECT = 0.40, 0.72
_OFFSETS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))


@dataclass(frozen=True)
class Rendered:
    """A picture of a scene and what is known of it; H = W = size.

    image      (H,W,3) float32 sRGB in 0..1, anti-aliased
    depth      (H,W) float32 metres along the camera's axis, inf in the sky
    normal     (H,W,3) float32 unit vectors in camera space (x right, y up, z to the viewer), 0 in the sky
    labels     (H,W) int32: 0 sky, 1 ground, 2.. the objects in the order of `scene.objects`
    classes    class name per label; colours: colour name per label
    albedo     (L,3) float32 sRGB per label
    keypoints  (P,18,3) float32: x, y in pixels (centre of the first pixel is 0.5), 1 if visible else 0
    caption    one sentence
    """

    image: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    albedo: np.ndarray
    keypoints: np.ndarray
    caption: str


class Shape(Protocol):
    """A convex or compound body in world space."""

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """(3,), (N,3) -> (N,) smallest t of a hit, inf where the ray misses."""
        ...

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M,3) points on it -> (M,3) outward unit normals, (M,) number of the face."""
        ...

    def outlines(self) -> Sequence[np.ndarray]:
        """Point sets (K,3) of convex parts; their hulls hold the body and cast its shadow."""
        ...


def _ring(centre: np.ndarray, radius: float, u: np.ndarray, v: np.ndarray, count: int = 20) -> np.ndarray:
    angle = np.arange(count) * (2.0 * np.pi / count)
    return centre + radius * (np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v)


_X, _Y, _Z = np.eye(3)


def _ball_points(centre: np.ndarray, radius: float) -> np.ndarray:
    """Points whose projection along any direction nearly fills the ball's."""
    rings = [_ring(centre + radius * s * _Y, radius * np.sqrt(1.0 - s * s), _X, _Z, 12) for s in (-0.75, 0.0, 0.75)]
    return np.concatenate([*rings, _ring(centre, radius, _X, _Y, 12), _ring(centre, radius, _Z, _Y, 12)])


@dataclass(frozen=True)
class Capsules:
    """Spheres swept along segments; `a`, `b` (K,3), `radius` (K,). A sphere is a segment of no length."""

    a: np.ndarray
    b: np.ndarray
    radius: np.ndarray

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        return self._depths(origin, rays).min(axis=0)

    def _depths(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """(K,N): first the infinite cylinder about the segment, then the ball at the nearer end."""
        axis, oa, ob = self.b - self.a, origin - self.a, origin - self.b
        length2 = (axis * axis).sum(1)[:, None]
        r2 = (self.radius**2)[:, None]
        d2 = (rays * rays).sum(1)
        ad, od = axis @ rays.T, oa @ rays.T
        ao, oo = (axis * oa).sum(1)[:, None], (oa * oa).sum(1)[:, None]
        qa = length2 * d2 - ad * ad
        qb = length2 * od - ao * ad
        h = qb * qb - qa * (length2 * oo - ao * ao - r2 * length2)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (-qb - np.sqrt(h)) / qa
            along = ao + t * ad
        on_side = (along > 0.0) & (along < length2) & (length2 > 0.0)
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
    """An upright box: centre (3,), half sizes (3,) along its own axes, turned by `yaw` about y."""

    centre: np.ndarray
    half: np.ndarray
    yaw: float

    @property
    def frame(self) -> np.ndarray:
        """(3,3), rows are the box's axes in world space."""
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        return np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Slab test: the last entry comes before the first exit."""
        o, d = self.frame @ (origin - self.centre), rays @ self.frame.T
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
class Cylinder:
    """An upright cylinder that stands on `base` (3,)."""

    base: np.ndarray
    radius: float
    height: float

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
        on_top = (reach <= self.radius**2) & (top > 0.0) & (rays[:, 1] < 0.0)
        return np.minimum(side, np.where(on_top, top, np.inf))

    def surface(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = points - self.base
        rho = np.hypot(local[:, 0], local[:, 2])
        top = self.height - local[:, 1] < np.abs(self.radius - rho)
        side = local / np.maximum(rho, 1e-9)[:, None] * np.array([1.0, 0.0, 1.0])
        return np.where(top[:, None], _Y, side), top.astype(int)

    def outlines(self) -> Sequence[np.ndarray]:
        ring = _ring(self.base, self.radius, _X, _Z, 24)
        return [np.concatenate([ring, ring + self.height * _Y])]


@dataclass(frozen=True)
class Cone:
    """An upright cone with its base's centre at `base` (3,) on the ground (the base is never seen)."""

    base: np.ndarray
    radius: float
    height: float

    def depth(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """x^2 + z^2 = k^2 (height - y)^2 with k = radius / height, the nappe below the apex."""
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
        return [np.concatenate([_ring(self.base, self.radius, _X, _Z, 24), (self.base + self.height * _Y)[None]])]


def shape_of(thing: SceneObject) -> Shape:
    """The body of a solid or of a mannequin. Raises ValueRangeError for an unknown kind of solid."""
    if isinstance(thing, Mannequin):
        a, b, radius = zip(*thing.limbs(), strict=True)
        return Capsules(np.stack(a), np.stack(b), np.array(radius))
    base = np.array([thing.x, 0.0, thing.z])
    centre = base + 0.5 * thing.height * _Y
    if thing.kind == "sphere":
        return Capsules(centre[None], centre[None], np.array([thing.radius]))
    if thing.kind == "box":
        return Box(centre, np.array([thing.radius, 0.5 * thing.height, thing.radius]), thing.yaw)
    if thing.kind == "cylinder":
        return Cylinder(base, thing.radius, thing.height)
    if thing.kind == "cone":
        return Cone(base, thing.radius, thing.height)
    raise ValueRangeError(f"solid kind is {thing.kind!r}, it must be sphere, box, cylinder or cone")


@dataclass(frozen=True)
class Hits:
    """First hits of N rays: depth (N,), label (N,), face (N,) unique per surface, world normal (N,3)."""

    depth: np.ndarray
    label: np.ndarray
    face: np.ndarray
    normal: np.ndarray


@dataclass(frozen=True)
class Stage:
    """A scene ready to be traced: its shapes, their windows in pixels, and the ground's shadows."""

    scene: Scene
    size: int
    shapes: tuple[Shape, ...]
    windows: tuple[tuple[float, float, float, float], ...]
    shadow: np.ndarray
    contact: np.ndarray


def rays_through(camera: Camera, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Pixel coordinates (N,), (N,) -> (N,3) world directions of unit depth."""
    right, up, forward = camera.axes
    focal = camera.focal(size)
    across, above = (x - 0.5 * size) / focal, (0.5 * size - y) / focal
    return forward + across[:, None] * right + above[:, None] * up


def trace(stage: Stage, x: np.ndarray, y: np.ndarray) -> Hits:
    """First hits of the rays through pixel coordinates (N,), (N,)."""
    camera = stage.scene.camera
    origin, rays = camera.position, rays_through(camera, x, y, stage.size)
    with np.errstate(divide="ignore"):
        depth = np.where(rays[:, 1] < 0.0, -origin[1] / rays[:, 1], np.inf)
    label = np.isfinite(depth).astype(np.int32)
    face = label.copy()
    normal = label[:, None] * _Y
    for i, (shape, (left, right, top, bottom)) in enumerate(zip(stage.shapes, stage.windows, strict=True)):
        near = np.flatnonzero((x >= left) & (x <= right) & (y >= top) & (y <= bottom))
        t = shape.depth(origin, rays[near])
        won = t < depth[near]
        near, t = near[won], t[won]
        depth[near], label[near] = t, i + 2
        normal[near], part = shape.surface(origin + t[:, None] * rays[near])
        face[near] = 100 * (i + 2) + part
    return Hits(depth, label, face, normal)


# The ground's shadow map: x in [-6, 6] m, z in [-13, -1] m.
_MAP_SIZE, _MAP_SPAN, _MAP_LEFT, _MAP_BACK = 320, 12.0, -6.0, -13.0
_PENUMBRA, _CONTACT = 0.055, 0.13


def _ground_map(hulls: Iterator[np.ndarray], softness: float) -> np.ndarray:
    """Convex outlines (K,2) of x, z in metres -> (M,M) float32 coverage, blurred by `softness` metres."""
    import cv2

    texel = _MAP_SIZE / _MAP_SPAN
    coverage = np.zeros((_MAP_SIZE, _MAP_SIZE), dtype=np.uint8)
    for points in hulls:
        corners = (points - np.array([_MAP_LEFT, _MAP_BACK])) * texel - 0.5
        hull = cv2.convexHull(corners.astype(np.float32))
        cv2.fillConvexPoly(coverage, np.rint(hull * 16.0).astype(np.int32), 255, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(coverage.astype(np.float32) / 255.0, (0, 0), softness * texel)


def _shadows(scene: Scene, shapes: Sequence[Shape]) -> tuple[np.ndarray, np.ndarray]:
    """Maps of the cast shadow and of the darkening where things touch the ground."""
    light = np.array(scene.light)
    cast = (part[:, [0, 2]] - part[:, 1:2] / light[1] * light[[0, 2]] for shape in shapes for part in shape.outlines())
    feet = (
        part[:, [0, 2]]
        for thing, shape in zip(scene.objects, shapes, strict=True)
        for part in _contact_outlines(thing, shape)
    )
    return _ground_map(cast, _PENUMBRA), _ground_map(feet, _CONTACT)


def _contact_outlines(thing: SceneObject, shape: Shape) -> Sequence[np.ndarray]:
    if isinstance(thing, Solid):
        if thing.kind == "sphere":
            return [_ring(np.array([thing.x, 0.0, thing.z]), 0.6 * thing.radius, _X, _Z)]
        return shape.outlines()
    return [part for part in shape.outlines() if part[:, 1].min() < 0.02]


def _sample_map(ground_map: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Bilinear look-up at ground points in metres; 0 outside the map."""
    texel = _MAP_SIZE / _MAP_SPAN
    u, v = (x - _MAP_LEFT) * texel - 0.5, (z - _MAP_BACK) * texel - 0.5
    inside = (u >= 0) & (v >= 0) & (u < _MAP_SIZE - 1) & (v < _MAP_SIZE - 1)
    u, v = np.where(inside, u, 0.0), np.where(inside, v, 0.0)
    i, j = v.astype(np.intp), u.astype(np.intp)
    fu, fv = u - j, v - i
    flat, k = ground_map.ravel(), i * _MAP_SIZE + j
    above = flat[k] * (1 - fu) + flat[k + 1] * fu
    below = flat[k + _MAP_SIZE] * (1 - fu) + flat[k + _MAP_SIZE + 1] * fu
    return np.where(inside, above * (1 - fv) + below * fv, 0.0)


def _to_linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    linear = np.clip(linear, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)


def shade(stage: Stage, hits: Hits, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Hits of the rays through pixel coordinates (N,), (N,) -> (N,3) float32 sRGB in 0..1."""
    scene, camera = stage.scene, stage.scene.camera
    low, high = (_to_linear(np.array(c)) for c in SKIES[scene.sky])
    colour = np.empty((len(x), 3))

    sky = hits.label == SKY
    horizon = 0.5 * stage.size - camera.focal(stage.size) * np.tan(camera.pitch)
    rise = np.clip(1.0 - y[sky] / horizon, 0.0, 1.0)[:, None]
    colour[sky] = low + (high - low) * rise

    ground = np.flatnonzero(hits.label == GROUND)
    rays = rays_through(camera, x[ground], y[ground], stage.size)
    points = camera.position + hits.depth[ground, None] * rays
    lit = 1.0 - _sample_map(stage.shadow, points[:, 0], points[:, 2])
    open_sky = 1.0 - 0.55 * _sample_map(stage.contact, points[:, 0], points[:, 2])
    strength = AMBIENT * open_sky + DIRECT * scene.light[1] * lit
    haze = 0.55 * (1.0 - np.exp(-((hits.depth[ground] / 26.0) ** 2)))[:, None]
    albedo = _to_linear(np.array(GROUND_COLOURS[scene.ground]))
    colour[ground] = albedo * strength[:, None] * (1.0 - haze) + low * haze

    things = np.flatnonzero(hits.label > GROUND)
    palette = _to_linear(scene.albedo().astype(np.float64))
    normal = hits.normal[things]
    height = camera.height + hits.depth[things] * rays_through(camera, x[things], y[things], stage.size)[:, 1]
    ambient = AMBIENT * (0.85 + 0.15 * normal[:, 1]) * (0.72 + 0.28 * np.clip(height / 0.5, 0.0, 1.0))
    strength = ambient + DIRECT * np.maximum(normal @ np.array(scene.light), 0.0)
    colour[things] = palette[hits.label[things]] * strength[:, None]
    return _to_srgb(colour).astype(np.float32)


def _edges(face: np.ndarray) -> np.ndarray:
    """(H,W) surface numbers -> (H,W) bool, where a 4-neighbour differs."""
    edge = np.zeros(face.shape, dtype=bool)
    across, down = face[:, 1:] != face[:, :-1], face[1:] != face[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _stage(scene: Scene, size: int) -> Stage:
    shapes = tuple(shape_of(thing) for thing in scene.objects)
    windows = []
    for shape in shapes:
        points = np.concatenate(list(shape.outlines()))
        low, high = points.min(axis=0), points.max(axis=0)
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        p = scene.camera.project(corners, size)
        windows.append((p[:, 0].min() - 1, p[:, 0].max() + 1, p[:, 1].min() - 1, p[:, 1].max() + 1))
    return Stage(scene, size, shapes, tuple(windows), *_shadows(scene, shapes))


def render(scene: Scene, size: int = 128) -> Rendered:
    """Draw a scene as a square picture of `size` pixels (8 or more), with its ground truth.

    Raises ValueRangeError for a smaller size.
    """
    if size < 8:
        raise ValueRangeError(f"picture size is {size}, it must be 8 or more pixels")
    stage = _stage(scene, size)
    row, column = (a.ravel() for a in np.mgrid[0:size, 0:size])
    x, y = column + 0.5, row + 0.5
    hits = trace(stage, x, y)
    image = shade(stage, hits, x, y)

    edge = np.flatnonzero(_edges(hits.face.reshape(size, size)))
    xs = np.concatenate([column[edge] + dx for dx, _ in _OFFSETS])
    ys = np.concatenate([row[edge] + dy for _, dy in _OFFSETS])
    image[edge] = shade(stage, trace(stage, xs, ys), xs, ys).reshape(len(_OFFSETS), -1, 3).mean(axis=0)

    right, up, forward = scene.camera.axes
    normal = (hits.normal @ np.stack([right, up, -forward], axis=1)).astype(np.float32)
    labels = hits.label.reshape(size, size)
    return Rendered(
        image.reshape(size, size, 3),
        hits.depth.astype(np.float32).reshape(size, size),
        normal.reshape(size, size, 3),
        labels,
        scene.classes,
        scene.colours,
        scene.albedo(),
        _keypoints(scene, labels),
        scene.caption,
    )


def _keypoints(scene: Scene, labels: np.ndarray) -> np.ndarray:
    """(P,18,3). A joint is visible where its pixel shows the figure; one of the face (nose, eyes, ears)
    also has to lie on the side of the head that is turned to the camera."""
    size = len(labels)
    people = [(i + 2, thing) for i, thing in enumerate(scene.objects) if isinstance(thing, Mannequin)]
    keypoints = np.zeros((len(people), 18, 3), dtype=np.float32)
    for row, (label, thing) in zip(keypoints, people, strict=True):
        joints = thing.joints()
        row[:, :2] = scene.camera.project(joints, size)[:, :2]
        j, i = np.floor(row[:, 0]).astype(int), np.floor(row[:, 1]).astype(int)
        inside = (j >= 0) & (j < size) & (i >= 0) & (i < size)
        seen = inside & (labels[np.clip(i, 0, size - 1), np.clip(j, 0, size - 1)] == label)
        head = thing.skeleton()["head"]
        view = scene.camera.position - head
        face = list(FACE_KEYPOINTS)
        outward = (joints[face] - head) @ (view / np.linalg.norm(view))
        seen[face] &= outward > -0.35 * np.linalg.norm(joints[face] - head, axis=1)
        row[:, 2] = seen
    return keypoints


def render_seed(seed: int, size: int = 128) -> Rendered:
    """`render(sample_scene(seed), size)`, picklable for worker processes."""
    return render(sample_scene(seed), size)


def render_many(seeds: Sequence[int], size: int = 128, workers: int = 2) -> Iterator[Rendered]:
    """Yield the pictures of the seeds in their order, drawn by `workers` processes (0 or 1: in this one)."""
    if workers <= 1:
        yield from (render_seed(seed, size) for seed in seeds)
        return
    import multiprocessing
    from functools import partial

    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(partial(render_seed, size=size), seeds, chunksize=16)
