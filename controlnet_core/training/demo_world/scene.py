"""What a scene of the demo world consists of: a camera, light, ground, sky, solids and a mannequin.

World space is in metres: x to the right, y up, z towards the viewer. The ground is the plane y = 0. The camera stands
at (0, height, 0) and looks along -z, tilted down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .colours import GROUND_COLOURS, MANNEQUIN_RGB, OBJECT_COLOURS, SKIES
from .mannequin import Mannequin, Vec

SOLID_KINDS = ("sphere", "box", "cylinder", "cone")

# ADE20K classes (index from 0) whose colours in the usual palette are far apart:
# sky, earth, person, ball, box, pole, tower.
ADE_CLASS: Mapping[str, int] = {
    "sky": 2, "ground": 13, "person": 12, "sphere": 119, "box": 41, "cylinder": 93, "cone": 84
}  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at (0, height, 0) metres.

    pitch: tilt down in radians. fov: full vertical angle in radians.
    """

    height: float
    pitch: float
    fov: float

    @property
    def axes(self) -> tuple[Vec, Vec, Vec]:
        """Unit vectors right, up, forward in world space, (3,) each."""
        sin, cos = math.sin(self.pitch), math.cos(self.pitch)
        return np.array([1.0, 0.0, 0.0]), np.array([0.0, cos, -sin]), np.array([0.0, -sin, -cos])

    @property
    def position(self) -> Vec:
        """(3,) metres in world space."""
        return np.array([0.0, self.height, 0.0])

    def focal(self, size: int) -> float:
        """Focal length in pixels of a picture `size` pixels high."""
        return 0.5 * size / math.tan(0.5 * self.fov)

    def project(self, points: Vec, size: int) -> Vec:
        """(N, 3) world points -> (N, 3) of x, y in pixels and depth in metres.

        The pixel in column j and row i covers [j, j + 1) x [i, i + 1), so its centre is (j + 0.5, i + 0.5).
        """
        right, up, forward = self.axes
        q = np.asarray(points) - self.position
        depth = q @ forward
        scale = self.focal(size) / depth
        return np.stack([0.5 * size + scale * (q @ right), 0.5 * size - scale * (q @ up), depth], axis=1)


@dataclass(frozen=True)
class Solid:
    """One solid that stands on the ground at `x`, `z` (metres).

    radius: of a sphere, a cylinder, or a cone's base; a box's half width and half depth. height: full height; a
    sphere's is twice its radius. yaw: turn of a box about the vertical, in radians.
    """

    kind: str
    colour: str
    x: float
    z: float
    radius: float
    height: float
    yaw: float = 0.0

    @property
    def clearance(self) -> float:
        """Radius (metres) of a circle on the ground that holds the solid."""
        return self.radius * (math.sqrt(2.0) if self.kind == "box" else 1.0)


SceneObject = Solid | Mannequin


@dataclass(frozen=True)
class Scene:
    """Everything that a picture of the demo world shows. `light` is a unit vector towards the light."""

    seed: int
    camera: Camera
    light: tuple[float, float, float]
    ground: str
    sky: str
    objects: tuple[SceneObject, ...]
    caption: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Class name of each label: sky, ground, then the objects in their order."""
        return ("sky", "ground", *(o.kind for o in self.objects))

    @property
    def colours(self) -> tuple[str, ...]:
        """Colour name of each label."""
        return (self.sky, self.ground, *(o.colour for o in self.objects))

    def albedo(self) -> np.ndarray:
        """(L, 3) float32 sRGB in 0..1, one per label; the sky's is the middle of its gradient."""
        low, high = SKIES[self.sky]  # only the sky has a gradient; all other albedos are flat
        sky = tuple(0.5 * (a + b) for a, b in zip(low, high, strict=True))
        objects = (MANNEQUIN_RGB if o.kind == "person" else OBJECT_COLOURS[o.colour] for o in self.objects)
        return np.array([sky, GROUND_COLOURS[self.ground], *objects], dtype=np.float32)
