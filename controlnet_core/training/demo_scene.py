"""The demo world's scenes: what stands where, in which colour and pose, and what a caption says of it.

World space is metric: x to the right, y up, z towards the viewer. The ground is the plane y = 0, the
camera stands at (0, height, 0) and looks along -z, tilted down. Everything is drawn from one seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ..errors import ValueRangeError

Rgb = tuple[float, float, float]
Vec = np.ndarray

SOLID_KINDS = ("sphere", "box", "cylinder", "cone")

# sRGB albedos, far apart in Lab so that a picture can be read back by the nearest one.
OBJECT_COLOURS: Mapping[str, Rgb] = MappingProxyType(
    {
        "red": (0.84, 0.12, 0.12),
        "orange": (0.97, 0.53, 0.08),
        "yellow": (0.98, 0.86, 0.14),
        "green": (0.14, 0.60, 0.22),
        "cyan": (0.14, 0.78, 0.82),
        "blue": (0.13, 0.30, 0.86),
        "purple": (0.47, 0.18, 0.70),
        "brown": (0.43, 0.25, 0.13),
        "grey": (0.42, 0.42, 0.44),
        "white": (0.95, 0.95, 0.94),
    }
)
MANNEQUIN_COLOUR = "magenta"
MANNEQUIN_RGB: Rgb = (0.95, 0.20, 0.62)
GROUND_COLOURS: Mapping[str, Rgb] = MappingProxyType(
    {
        "grey": (0.62, 0.62, 0.63),
        "white": (0.89, 0.89, 0.88),
        "green": (0.50, 0.67, 0.42),
        "brown": (0.61, 0.47, 0.36),
        "yellow": (0.89, 0.80, 0.55),
        "blue": (0.48, 0.59, 0.75),
        "pink": (0.89, 0.70, 0.72),
    }
)
# (at the horizon, at the upper edge of the picture)
SKIES: Mapping[str, tuple[Rgb, Rgb]] = MappingProxyType(
    {
        "pale": ((0.90, 0.93, 0.95), (0.74, 0.84, 0.92)),
        "blue": ((0.74, 0.86, 0.96), (0.33, 0.58, 0.88)),
        "dark": ((0.34, 0.36, 0.48), (0.11, 0.12, 0.22)),
        "pink": ((0.99, 0.84, 0.74), (0.80, 0.58, 0.70)),
    }
)

# Each class is painted as the ADE20K class (index from 0) of that number, chosen so that the usual
# palette's colours are far apart: sky, earth, person, ball, box, pole, tower.
ADE_CLASS: Mapping[str, int] = MappingProxyType(
    {
        "sky": 2,
        "ground": 13,
        "person": 12,
        "sphere": 119,
        "box": 41,
        "cylinder": 93,
        "cone": 84,
    }
)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at (0, height, 0) m. `pitch` tilts it down and `fov` is the full vertical angle,
    both in radians."""

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
        """(N,3) world points -> (N,3) of x, y in pixels and depth in metres.

        Pixel (column j, row i) covers [j, j + 1) x [i, i + 1): its centre is (j + 0.5, i + 0.5).
        """
        right, up, forward = self.axes
        q = np.asarray(points) - self.position
        depth = q @ forward
        scale = self.focal(size) / depth
        return np.stack([0.5 * size + scale * (q @ right), 0.5 * size - scale * (q @ up), depth], axis=1)


@dataclass(frozen=True)
class Solid:
    """One solid that stands on the ground at `x`, `z` (m).

    `radius` is the sphere's, the cylinder's or the cone's at its base; a box's half width and half depth.
    `height` is its full height (a sphere's is twice its radius). `yaw` turns a box about the vertical.
    """

    kind: str
    colour: str
    x: float
    z: float
    radius: float
    height: float
    yaw: float = 0.0

    @property
    def footprint(self) -> float:
        """Radius (m) of a circle on the ground that holds the solid."""
        return self.radius * (math.sqrt(2.0) if self.kind == "box" else 1.0)


@dataclass(frozen=True)
class Pose:
    """Directions of the limbs, each (spread, swing) in degrees: spread 0 hangs down, 90 points sideways,
    180 points up; swing leans the limb forward. Order: right and left upper arm, right and left
    forearm, right and left thigh, right and left shin."""

    words: str
    upper_arms: tuple[tuple[float, float], tuple[float, float]]
    forearms: tuple[tuple[float, float], tuple[float, float]]
    thighs: tuple[tuple[float, float], tuple[float, float]] = ((5, 0), (5, 0))
    shins: tuple[tuple[float, float], tuple[float, float]] = ((3, 0), (3, 0))


_WIDE = ((27.0, 0.0), (27.0, 0.0))
_WIDE_SHINS = ((22.0, 0.0), (22.0, 0.0))
_STRIDE = ((3.0, 30.0), (3.0, -24.0))
_STRIDE_SHINS = ((3.0, 12.0), (3.0, -42.0))
POSES: Mapping[str, Pose] = MappingProxyType(
    {
        "standing": Pose("standing", ((14, 0), (14, 0)), ((8, 8), (8, 8))),
        "arms up": Pose("with raised arms", ((152, 0), (152, 0)), ((168, 0), (168, 0))),
        "arms out": Pose("with arms out", ((88, 0), (88, 0)), ((90, 0), (90, 0))),
        "right arm up": Pose("with one raised arm", ((158, 0), (15, 0)), ((170, 0), (8, 8))),
        "left arm up": Pose("with one raised arm", ((15, 0), (158, 0)), ((8, 8), (170, 0))),
        "waving right": Pose("waving", ((92, 0), (15, 0)), ((172, 0), (8, 8))),
        "waving left": Pose("waving", ((15, 0), (92, 0)), ((8, 8), (172, 0))),
        "flexing": Pose("with bent arms", ((88, 0), (88, 0)), ((176, 0), (176, 0))),
        "hands on hips": Pose("with hands on hips", ((52, 0), (52, 0)), ((-42, 0), (-42, 0))),
        "walking": Pose("walking", ((14, -34), (14, 36)), ((10, -8), (10, 70)), _STRIDE, _STRIDE_SHINS),
        "walking other": Pose(
            "walking", ((14, 36), (14, -34)), ((10, 70), (10, -8)), _STRIDE[::-1], _STRIDE_SHINS[::-1]
        ),
        "legs apart": Pose("with legs apart", ((30, 0), (30, 0)), ((24, 0), (24, 0)), _WIDE, _WIDE_SHINS),
        "star": Pose("with arms and legs apart", ((135, 0), (135, 0)), ((138, 0), (138, 0)), _WIDE, _WIDE_SHINS),
        "squatting": Pose(
            "with bent knees",
            ((80, 30), (80, 30)),
            ((110, 40), (110, 40)),
            ((52, 30), (52, 30)),
            ((-8, -18), (-8, -18)),
        ),
    }
)

KEYPOINTS = (
    "nose",
    "neck",
    "right shoulder",
    "right elbow",
    "right wrist",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
    "right eye",
    "left eye",
    "right ear",
    "left ear",
)
FACE_KEYPOINTS = (0, 14, 15, 16, 17)

Limb = tuple[Vec, Vec, float]


@dataclass(frozen=True)
class Mannequin:
    """A jointed figure at `x`, `z` (m). Yaw 0 faces the viewer; `stature` scales a 1.75 m body.

    `jitter` holds one (spread, swing) offset in degrees per limb, in the order of `Pose`.
    """

    pose: str
    x: float
    z: float
    stature: float = 1.0
    yaw: float = 0.0
    jitter: tuple[tuple[float, float], ...] = ((0.0, 0.0),) * 8
    kind: str = "person"
    colour: str = MANNEQUIN_COLOUR

    def skeleton(self) -> dict[str, Vec]:
        """Joint positions (3,) in world space: the 18 of `KEYPOINTS` and head, pelvis, hands and toes."""
        body = _joints(POSES[self.pose], self.jitter)
        lowest = min(min(body[f"{s} ankle"][1], body[f"{s} toe"][1]) for s in ("right", "left"))
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
        base = np.array([self.x, 0.0, self.z])
        lift = np.array([0.0, FOOT_RADIUS - lowest, 0.0])
        return {name: turn @ ((p + lift) * self.stature) + base for name, p in body.items()}

    def joints(self) -> Vec:
        """(18,3) world positions in the order of `KEYPOINTS`."""
        skeleton = self.skeleton()
        return np.stack([skeleton[name] for name in KEYPOINTS])

    def limbs(self) -> tuple[Limb, ...]:
        """Capsules (end, end, radius) in world space that make up the figure; the head is one too."""
        skeleton = self.skeleton()
        return tuple((skeleton[a], skeleton[b], r * self.stature) for a, b, r in LIMBS)

    @property
    def footprint(self) -> float:
        """Radius (m) on the ground that other things keep away from."""
        spread = max(abs(a) for a, _ in POSES[self.pose].thighs)
        return (0.36 + 0.010 * spread) * self.stature


FOOT_RADIUS = 0.065
HEAD_RADIUS = 0.145
LIMBS: tuple[tuple[str, str, float], ...] = (
    ("head", "head", HEAD_RADIUS),
    ("neck", "head", 0.06),
    ("right shoulder", "left shoulder", 0.09),
    ("right chest", "right waist", 0.115),
    ("left chest", "left waist", 0.115),
    ("chest", "pelvis", 0.115),
    ("right hip", "left hip", 0.11),
    ("right shoulder", "right elbow", 0.068),
    ("right elbow", "right hand", 0.06),
    ("left shoulder", "left elbow", 0.068),
    ("left elbow", "left hand", 0.06),
    ("right hip", "right knee", 0.09),
    ("right knee", "right ankle", 0.07),
    ("left hip", "left knee", 0.09),
    ("left knee", "left ankle", 0.07),
    ("right ankle", "right toe", FOOT_RADIUS),
    ("left ankle", "left toe", FOOT_RADIUS),
)


def _direction(side: float, spread: float, swing: float) -> Vec:
    """Unit vector of a limb in the body's frame: x to its left, y up, z forward."""
    a, s = math.radians(spread), math.radians(swing)
    x, y = side * math.sin(a), -math.cos(a)
    return np.array([x, y * math.cos(s), math.sin(s) * abs(y)])


def _joints(pose: Pose, jitter: Sequence[tuple[float, float]]) -> dict[str, Vec]:
    """Joint positions in the body's frame (pelvis at the origin), for a body of 1.75 m."""
    j: dict[str, Vec] = {"pelvis": np.zeros(3), "chest": np.array([0.0, 0.38, 0.0])}
    j["neck"] = np.array([0.0, 0.50, 0.0])
    j["head"] = head = np.array([0.0, 0.72, 0.01])
    r = HEAD_RADIUS
    j["nose"] = head + r * np.array([0.0, -0.08, 0.99])
    offsets = [np.asarray(o) for o in jitter]
    for i, (name, side) in enumerate((("right", -1.0), ("left", 1.0))):
        upper, fore, thigh, shin = (
            np.asarray(limbs[i], dtype=float) + offsets[2 * k + i]
            for k, limbs in enumerate((pose.upper_arms, pose.forearms, pose.thighs, pose.shins))
        )
        j[f"{name} eye"] = head + r * np.array([0.36 * side, 0.26, 0.895])
        j[f"{name} ear"] = head + r * np.array([0.96 * side, 0.05, 0.05])
        j[f"{name} shoulder"] = shoulder = np.array([0.20 * side, 0.46, 0.0])
        j[f"{name} chest"] = np.array([0.085 * side, 0.38, 0.0])
        j[f"{name} waist"] = np.array([0.085 * side, 0.0, 0.0])
        j[f"{name} elbow"] = elbow = shoulder + 0.29 * _direction(side, *upper)
        forearm = _direction(side, *fore)
        j[f"{name} wrist"] = elbow + 0.25 * forearm
        j[f"{name} hand"] = elbow + 0.30 * forearm
        j[f"{name} hip"] = hip = np.array([0.105 * side, -0.02, 0.0])
        j[f"{name} knee"] = knee = hip + 0.40 * _direction(side, *thigh)
        j[f"{name} ankle"] = ankle = knee + 0.39 * _direction(side, *shin)
        j[f"{name} toe"] = ankle + np.array([0.03 * side, -0.02, 0.14])
    return j


SceneObject = Solid | Mannequin


@dataclass(frozen=True)
class Scene:
    """Everything that a picture of the demo world shows. `light` points from the scene to the light."""

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
        """(L,3) float32 sRGB in 0..1, one per label; the sky's is the middle of its gradient."""
        low, high = SKIES[self.sky]
        sky = tuple(0.5 * (a + b) for a, b in zip(low, high, strict=True))
        objects = (MANNEQUIN_RGB if o.kind == "person" else OBJECT_COLOURS[o.colour] for o in self.objects)
        return np.array([sky, GROUND_COLOURS[self.ground], *objects], dtype=np.float32)


def srgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """(...,3) sRGB in 0..1 -> CIE L*a*b* (D65, 2 degrees; IEC 61966-2-1 and CIE 15)."""
    rgb = np.asarray(rgb, dtype=np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = (
        linear
        @ np.array(
            [[0.4124564, 0.2126729, 0.0193339], [0.3575761, 0.7151522, 0.1191920], [0.1804375, 0.0721750, 0.9503041]]
        )
        / np.array([0.95047, 1.0, 1.08883])
    )
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


MIN_SEPARATION = 24.0
MIN_GROUND_SEPARATION = 8.0


def separation(rgb: Rgb, others: Sequence[Rgb]) -> float:
    """Smallest distance of an albedo to others in Lab, with lightness halved: shading moves it most."""
    lab = srgb_to_lab(np.array([rgb, *others]))
    return float(np.linalg.norm((lab[1:] - lab[0]) * np.array([0.5, 1.0, 1.0]), axis=1).min())


def sample_scene(seed: int) -> Scene:
    """The scene of a seed (any integer >= 0): the same on every machine.

    One to three solids of different colours, a mannequin in about 35 % of the scenes. Where a wide pose
    leaves no room for all the solids drawn, some are left out.
    Raises ValueRangeError for a negative seed.
    """
    if seed < 0:
        raise ValueRangeError(f"scene seed is {seed}, it must be 0 or more: pass a non-negative integer")
    rng = np.random.default_rng([seed, 0x5CE7E])
    person = bool(rng.random() < MANNEQUIN_SHARE)
    count = 1 + int(rng.choice(3, p=(0.45, 0.40, 0.15) if person else (0.25, 0.40, 0.35)))
    kinds = tuple(SOLID_KINDS[i] for i in rng.integers(0, len(SOLID_KINDS), count))
    ground, sky, colours = _sample_colours(rng, count)
    light = _sample_light(rng)
    figure = _sample_figure(rng) if person else None
    solids = tuple(zip(kinds, colours, strict=True))
    attempt = 0
    while True:
        camera = Camera(
            height=float(rng.uniform(1.4, 2.0)),
            pitch=math.radians(rng.uniform(5.0, 10.0)),
            fov=math.radians(rng.uniform(40.0, 46.0)),
        )
        kept = max(0 if person else 1, count - attempt // PLACING_ATTEMPTS)
        objects = _place(rng, camera, solids[:kept], figure)
        if objects is not None:
            caption = _caption(np.random.default_rng([seed, 0xCA97]), camera, ground, sky, objects)
            return Scene(seed, camera, light, ground, sky, objects, caption)
        attempt += 1


def _sample_light(rng: np.random.Generator) -> tuple[float, float, float]:
    """From behind the viewer's left or right shoulder, 38 to 60 degrees high."""
    elevation = math.radians(rng.uniform(38.0, 60.0))
    azimuth = math.radians(rng.uniform(25.0, 65.0)) * (1.0 if rng.random() < 0.5 else -1.0)
    flat = math.cos(elevation)
    return flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)


def _sample_colours(rng: np.random.Generator, count: int) -> tuple[str, str, tuple[str, ...]]:
    """Ground, sky and `count` object colours, all of them easy to tell apart."""
    grounds, skies = tuple(GROUND_COLOURS), tuple(SKIES)
    while True:
        ground, sky = grounds[rng.integers(len(grounds))], skies[rng.integers(len(skies))]
        taken = [GROUND_COLOURS[ground], MANNEQUIN_RGB, *SKIES[sky]]
        if separation(taken[0], SKIES[sky]) < MIN_GROUND_SEPARATION:
            continue
        names: list[str] = []
        for i in rng.permutation(len(OBJECT_COLOURS)):
            name, rgb = tuple(OBJECT_COLOURS.items())[i]
            if name != ground and separation(rgb, taken) >= MIN_SEPARATION:
                names.append(name)
                taken.append(rgb)
            if len(names) == count:
                return ground, sky, tuple(names)


MANNEQUIN_SHARE = 0.35
PLACING_ATTEMPTS = 6
Window = tuple[float, float, float, float]


def _place(
    rng: np.random.Generator, camera: Camera, solids: Sequence[tuple[str, str]], figure: Mannequin | None
) -> tuple[SceneObject, ...] | None:
    """Solids of the given (kind, colour), and the figure last; they stand apart and hide at most a third
    of each other. None where no room was found."""
    placed: list[tuple[SceneObject, Window]] = []
    if figure is not None:
        z = -float(rng.uniform(3.7, 4.6))
        figure = replace(figure, x=float(rng.uniform(-0.28, 0.28)) * -z, z=z)
        placed.append((figure, _window(camera, figure)))
        if not _in_frame(placed[0][1]):
            return None
    scale = (1.0, 0.95, 0.85, 0.75)[len(solids) + len(placed) - 1]
    for kind, colour in solids:
        for _ in range(12):
            solid = _sample_solid(rng, kind, colour, scale)
            window = _window(camera, solid)
            if _in_frame(window) and all(_apart(solid, window, *other) for other in placed):
                placed.append((solid, window))
                break
        else:
            return None
    things = [thing for thing, _ in placed]
    return tuple(things if figure is None else things[1:] + things[:1])


def _sample_solid(rng: np.random.Generator, kind: str, colour: str, scale: float) -> Solid:
    u, v, w, slender, yaw = (float(value) for value in rng.random(5))
    z = -(4.0 + 2.5 * u)
    x = (v - 0.5) * 0.76 * -z
    radius = scale * (0.55 + 0.35 * w)
    if kind == "sphere":
        return Solid(kind, colour, x, z, radius, 2.0 * radius)
    if kind == "box":
        radius *= 0.80
        return Solid(kind, colour, x, z, radius, radius * (1.3 + 1.5 * slender), yaw * 0.5 * math.pi)
    radius *= 0.80 if kind == "cylinder" else 0.95
    return Solid(kind, colour, x, z, radius, radius * (1.7 + 1.3 * slender))


def _sample_figure(rng: np.random.Generator) -> Mannequin:
    """A mannequin in a random pose, facing the viewer within 50 degrees."""
    pose = tuple(POSES)[rng.integers(len(POSES))]
    jitter = tuple((float(a), float(s)) for a, s in rng.uniform(-8.0, 8.0, (8, 2)))
    yaw = math.radians(float(np.clip(rng.normal(0.0, 20.0), -50.0, 50.0)))
    return Mannequin(pose, 0.0, 0.0, float(rng.uniform(1.0, 1.15)), yaw, jitter)


def extent(thing: SceneObject) -> np.ndarray:
    """(N,3) world points whose hull holds the object."""
    if isinstance(thing, Mannequin):
        ends, others, radius = (np.array(part) for part in zip(*thing.limbs(), strict=True))
        reach = radius[:, None] * np.array([1.0, 1.0, 0.0])
        return np.concatenate([ends - reach, ends + reach, others - reach, others + reach])
    return np.array([thing.x, 0.0, thing.z]) + _CORNERS * np.array([thing.footprint, thing.height, thing.footprint])


_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for z in (-1.0, 1.0) for y in (0.0, 1.0)])


def _window(camera: Camera, thing: SceneObject) -> Window:
    """Left, right, top, bottom of the object's extent in a picture of unit size."""
    p = camera.project(extent(thing), 1)
    (left, top, _), (right, bottom, _) = p.min(axis=0).tolist(), p.max(axis=0).tolist()
    return left, right, top, bottom


def _in_frame(window: Window) -> bool:
    left, right, top, bottom = window
    return left > 0.01 and right < 0.99 and top > 0.02 and bottom < 0.99


def _apart(a: SceneObject, window_a: Window, b: SceneObject, window_b: Window) -> bool:
    """Apart on the ground, and at most a third of the narrower one hidden in the picture."""
    if math.hypot(a.x - b.x, a.z - b.z) < a.footprint + b.footprint + 0.12:
        return False
    (left_a, right_a, _, _), (left_b, right_b, _, _) = window_a, window_b
    narrower = min(right_a - left_a, right_b - left_b)
    return min(right_a, right_b) - max(left_a, left_b) <= 0.33 * narrower


# Captions. Every word comes from these tables, so that the vocabulary is closed.
_PREFIXES = ("", "", "", "a photo of ", "a picture of ", "a render of ", "an image of ")
_GROUND_PHRASES = (" on {ground} ground", " on a {ground} floor", " standing on {ground} ground")
_SKY_PHRASES = (" under a {sky} sky", " with a {sky} sky", ", {sky} sky")
_PAIR_PHRASES = (" and ", " and ", " next to ", " beside ")
_LEFT_PHRASES = (" to the left of ", " left of ")
_RIGHT_PHRASES = (" to the right of ", " right of ")
_DEPTH_PHRASES = (" in front of ", " behind ")
_NOUNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sphere": ("sphere", "sphere", "ball"),
        "box": ("box", "box", "cube"),
        "cylinder": ("cylinder",),
        "cone": ("cone",),
        "person": ("person", "person", "figure", "mannequin"),
    }
)


def _noun(rng: np.random.Generator, thing: SceneObject) -> str:
    noun = str(rng.choice(_NOUNS[thing.kind]))
    if isinstance(thing, Mannequin):
        colour = f"{MANNEQUIN_COLOUR} " if rng.random() < 0.35 else ""
        pose = f" {POSES[thing.pose].words}" if rng.random() < 0.8 else ""
        return f"a {colour}{noun}{pose}"
    return f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing.colour} {noun}"


def _relation(rng: np.random.Generator, camera: Camera, a: SceneObject, b: SceneObject) -> str:
    """Words between two objects; left, right, front and back only where they are plainly so."""
    xa, _, da = camera.project(np.array([[a.x, 0.0, a.z]]), 1)[0]
    xb, _, db = camera.project(np.array([[b.x, 0.0, b.z]]), 1)[0]
    choices = list(_PAIR_PHRASES)
    if abs(xa - xb) > 0.15:
        choices += list(_LEFT_PHRASES if xa < xb else _RIGHT_PHRASES)
    if abs(da - db) > 1.1:
        choices.append(_DEPTH_PHRASES[0 if da < db else 1])
    return str(rng.choice(choices))


def _caption(rng: np.random.Generator, camera: Camera, ground: str, sky: str, objects: Sequence[SceneObject]) -> str:
    things = [objects[i] for i in rng.permutation(len(objects))]
    people = [t for t in things if t.kind == "person"]
    if people and rng.random() < 0.7:
        things = people + [t for t in things if t.kind != "person"]
    names = [_noun(rng, t) for t in things]
    if len(names) == 2:
        text = names[0] + _relation(rng, camera, things[0], things[1]) + names[1]
    else:
        text = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
    text = str(rng.choice(_PREFIXES)) + text
    if rng.random() < 0.75:
        text += str(rng.choice(_GROUND_PHRASES)).format(ground=ground)
    if rng.random() < 0.45:
        text += str(rng.choice(_SKY_PHRASES)).format(sky=sky)
    return text


def caption_words(caption: str) -> tuple[str, ...]:
    """The caption's words; a comma counts as one."""
    return tuple(caption.replace(",", " , ").split())


def vocabulary() -> tuple[str, ...]:
    """All words (and the comma) that captions can contain, sorted."""
    phrases = [
        *_PREFIXES,
        *_GROUND_PHRASES,
        *_SKY_PHRASES,
        *_PAIR_PHRASES,
        *_LEFT_PHRASES,
        *_RIGHT_PHRASES,
        *_DEPTH_PHRASES,
        *OBJECT_COLOURS,
        *GROUND_COLOURS,
        *SKIES,
        MANNEQUIN_COLOUR,
        "a an and ,",
        *(pose.words for pose in POSES.values()),
        *(n for nouns in _NOUNS.values() for n in nouns),
    ]
    words = {word for phrase in phrases for word in caption_words(phrase) if "{" not in word}
    return tuple(sorted(words))
