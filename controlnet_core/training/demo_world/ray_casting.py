"""Ray casting: which surface each ray hits first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import Camera
from .shapes import Shape, Y

SKY, GROUND = 0, 1
"""Labels; the objects of a scene have 2 and more, in their order."""
Window = tuple[float, float, float, float]
"""Left, right, top, bottom in pixels."""


@dataclass(frozen=True)
class Hits:
    """First hits of N rays: depth (N,) in metres, label (N,), face (N,) unique per surface, world normal (N, 3)."""

    depth: np.ndarray
    label: np.ndarray
    face: np.ndarray
    normal: np.ndarray


@dataclass(frozen=True)
class RayCaster:
    """Shapes seen by a camera in a picture of `size` pixels."""

    camera: Camera
    size: int
    shapes: tuple[Shape, ...]
    windows: tuple[Window, ...]

    @classmethod
    def prepare(cls, camera: Camera, shapes: tuple[Shape, ...], size: int) -> RayCaster:
        """Find the window of each shape: only rays through it are tested against the shape."""
        windows = []
        for shape in shapes:
            points = np.concatenate(list(shape.outlines()))
            (x0, y0, z0), (x1, y1, z1) = points.min(axis=0), points.max(axis=0)
            p = camera.project(np.array([[x, y, z] for x in (x0, x1) for y in (y0, y1) for z in (z0, z1)]), size)
            # One pixel more on each side, because the outlines of round shapes are polygons.
            windows.append((p[:, 0].min() - 1, p[:, 0].max() + 1, p[:, 1].min() - 1, p[:, 1].max() + 1))
        return cls(camera, size, shapes, tuple(windows))

    def rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Pixel coordinates (N,), (N,) -> (N, 3) world directions whose length along the camera's axis is 1."""
        right, up, forward = self.camera.axes
        focal = self.camera.focal(self.size)
        across, above = (x - 0.5 * self.size) / focal, (0.5 * self.size - y) / focal
        return forward + across[:, None] * right + above[:, None] * up

    def cast(self, x: np.ndarray, y: np.ndarray) -> Hits:
        """First hits of the rays through pixel coordinates (N,), (N,)."""
        origin, rays = self.camera.position, self.rays(x, y)
        with np.errstate(divide="ignore"):
            depth = np.where(rays[:, 1] < 0.0, -origin[1] / rays[:, 1], np.inf)
        # The ground first: every shape that is nearer replaces it.
        label = np.isfinite(depth).astype(np.int32)
        face = label.copy()
        normal = label[:, None] * Y
        for i, (shape, (left, right, top, bottom)) in enumerate(zip(self.shapes, self.windows, strict=True)):
            near = np.flatnonzero((x >= left) & (x <= right) & (y >= top) & (y <= bottom))
            t = shape.depth(origin, rays[near])
            won = t < depth[near]
            near, t = near[won], t[won]
            depth[near], label[near] = t, i + 2
            normal[near], part = shape.surface(origin + t[:, None] * rays[near])
            face[near] = 100 * (i + 2) + part  # no shape has as many as 100 faces
        return Hits(depth, label, face, normal)
