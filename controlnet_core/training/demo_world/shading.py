"""Shading: Lambert's law with one directional light, ambient light, soft shadows on the ground, and haze.

Shadows are projected outlines with a soft edge, so that the pictures stay smooth and easy to encode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .colours import GROUND_COLOURS, SKIES, linear_to_srgb, srgb_to_linear
from .ray_casting import GROUND, SKY, Hits, RayCaster
from .scene import Scene, SceneObject, Solid
from .shapes import Shape, X, Z, ring

AMBIENT, DIRECT = 0.40, 0.72
"""Share of the ambient and of the directional light."""
# The ground's maps cover x in [-6, 6] m and z in [-13, -1] m.
_MAP_SIZE, _MAP_SPAN, _MAP_LEFT, _MAP_BACK = 320, 12.0, -6.0, -13.0
_PENUMBRA, _CONTACT = 0.055, 0.13
"""Blur in metres of the cast shadow, and of the darkening where objects touch the ground."""


@dataclass(frozen=True)
class Shader:
    """A scene's shading. shadow, contact: maps of the ground, see `draw_ground_maps`."""

    scene: Scene
    caster: RayCaster
    shadow: np.ndarray
    contact: np.ndarray

    def colour(self, hits: Hits, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Hits of the rays through pixel coordinates (N,), (N,) -> (N, 3) float32 sRGB in 0..1."""
        scene, camera = self.scene, self.scene.camera
        low, high = (srgb_to_linear(np.array(c)) for c in SKIES[scene.sky])
        colour = np.empty((len(x), 3))

        sky = hits.label == SKY
        horizon = 0.5 * self.caster.size - camera.focal(self.caster.size) * np.tan(camera.pitch)
        rise = np.clip(1.0 - y[sky] / horizon, 0.0, 1.0)[:, None]
        colour[sky] = low + (high - low) * rise

        ground = np.flatnonzero(hits.label == GROUND)
        points = camera.position + hits.depth[ground, None] * self.caster.rays(x[ground], y[ground])
        lit = 1.0 - _read_map(self.shadow, points[:, 0], points[:, 2])
        open_sky = 1.0 - 0.55 * _read_map(self.contact, points[:, 0], points[:, 2])
        strength = AMBIENT * open_sky + DIRECT * scene.light[1] * lit
        # Haze: the ground takes the colour of the horizon with the distance, so that no hard line is left there.
        haze = 0.55 * (1.0 - np.exp(-((hits.depth[ground] / 26.0) ** 2)))[:, None]
        albedo = srgb_to_linear(np.array(GROUND_COLOURS[scene.ground]))
        colour[ground] = albedo * strength[:, None] * (1.0 - haze) + low * haze

        things = np.flatnonzero(hits.label > GROUND)
        palette = srgb_to_linear(scene.albedo().astype(np.float64))
        normal = hits.normal[things]
        height = camera.height + hits.depth[things] * self.caster.rays(x[things], y[things])[:, 1]
        ambient = AMBIENT * (0.85 + 0.15 * normal[:, 1]) * (0.72 + 0.28 * np.clip(height / 0.5, 0.0, 1.0))
        strength = ambient + DIRECT * np.maximum(normal @ np.array(scene.light), 0.0)
        colour[things] = palette[hits.label[things]] * strength[:, None]
        return linear_to_srgb(colour).astype(np.float32)


def draw_ground_maps(scene: Scene, shapes: Sequence[Shape]) -> tuple[np.ndarray, np.ndarray]:
    """Maps of the cast shadow, and of the darkening where objects touch the ground; (M, M) float32 in 0..1."""
    light = np.array(scene.light)
    cast = (part[:, [0, 2]] - part[:, 1:2] / light[1] * light[[0, 2]] for shape in shapes for part in shape.outlines())
    feet = (
        part[:, [0, 2]]
        for thing, shape in zip(scene.objects, shapes, strict=True)
        for part in _contact_outlines(thing, shape)
    )
    return _draw_map(cast, _PENUMBRA), _draw_map(feet, _CONTACT)


def _draw_map(hulls: Iterator[np.ndarray], softness: float) -> np.ndarray:
    """Convex outlines (K, 2) of x, z in metres -> (M, M) float32 coverage, blurred by `softness` metres."""
    import cv2

    texel = _MAP_SIZE / _MAP_SPAN
    coverage = np.zeros((_MAP_SIZE, _MAP_SIZE), dtype=np.uint8)
    for points in hulls:
        corners = (points - np.array([_MAP_LEFT, _MAP_BACK])) * texel - 0.5
        hull = cv2.convexHull(corners.astype(np.float32))
        # OpenCV takes fixed-point corners with 4 binary digits behind the point.
        cv2.fillConvexPoly(coverage, np.rint(hull * 16.0).astype(np.int32), 255, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(coverage.astype(np.float32) / 255.0, (0, 0), softness * texel)


def _contact_outlines(thing: SceneObject, shape: Shape) -> Sequence[np.ndarray]:
    if isinstance(thing, Solid):
        if thing.kind == "sphere":
            return [ring(np.array([thing.x, 0.0, thing.z]), 0.6 * thing.radius, X, Z)]
        return shape.outlines()
    return [part for part in shape.outlines() if part[:, 1].min() < 0.02]


def _read_map(ground_map: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
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
