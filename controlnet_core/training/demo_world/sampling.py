"""Random scenes: each is drawn from one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...errors import ValueRangeError
from .captions import write_caption
from .colours import GROUND_COLOURS, MANNEQUIN_RGB, OBJECT_COLOURS, SKIES, colour_distance
from .mannequin import POSES, Mannequin
from .scene import SOLID_KINDS, Camera, Scene, SceneObject, Solid

MANNEQUIN_SHARE = 0.35
MIN_COLOUR_DISTANCE, MIN_GROUND_DISTANCE = 24.0, 8.0
"""In Lab: between objects and everything else, and between the ground and the sky."""
ATTEMPTS_PER_COUNT = 6
"""Placements that are tried before one solid fewer is placed."""
Window = tuple[float, float, float, float]
"""Left, right, top, bottom in a picture of size 1."""


def sample_scene(seed: int) -> Scene:
    """The scene of a seed (any integer >= 0): the same on every machine.

    It has one to three solids of different colours, and in about 35 % of the scenes a mannequin. Where a wide pose
    leaves no room for all solids, there are fewer. Raises ValueRangeError for a negative seed.
    """
    if seed < 0:
        raise ValueRangeError(f"the scene seed is {seed}: pass an integer of 0 or more")
    # The constants keep this sequence of random numbers apart from the caption's below.
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
        # A wide pose may leave no room for all solids: after some attempts one fewer is placed.
        kept = max(0 if person else 1, count - attempt // ATTEMPTS_PER_COUNT)
        objects = _place_objects(rng, camera, solids[:kept], figure)
        if objects is not None:
            caption = write_caption(np.random.default_rng([seed, 0xCA97]), camera, ground, sky, objects)
            return Scene(seed, camera, light, ground, sky, objects, caption)
        attempt += 1


def _sample_light(rng: np.random.Generator) -> tuple[float, float, float]:
    """From behind the viewer's left or right shoulder, 38 to 60 degrees high."""
    elevation = math.radians(rng.uniform(38.0, 60.0))
    azimuth = math.radians(rng.uniform(25.0, 65.0)) * (1.0 if rng.random() < 0.5 else -1.0)
    flat = math.cos(elevation)
    return flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)


def _sample_colours(rng: np.random.Generator, count: int) -> tuple[str, str, tuple[str, ...]]:
    """Ground, sky and `count` object colours, all easy to tell apart."""
    grounds, skies = tuple(GROUND_COLOURS), tuple(SKIES)
    while True:
        ground, sky = grounds[rng.integers(len(grounds))], skies[rng.integers(len(skies))]
        taken = [GROUND_COLOURS[ground], MANNEQUIN_RGB, *SKIES[sky]]
        if colour_distance(taken[0], SKIES[sky]) < MIN_GROUND_DISTANCE:
            continue
        names: list[str] = []
        for i in rng.permutation(len(OBJECT_COLOURS)):
            name, rgb = tuple(OBJECT_COLOURS.items())[i]
            if name != ground and colour_distance(rgb, taken) >= MIN_COLOUR_DISTANCE:
                names.append(name)
                taken.append(rgb)
            if len(names) == count:
                return ground, sky, tuple(names)


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
    """A mannequin in a random pose, turned to the viewer within 50 degrees."""
    pose = tuple(POSES)[rng.integers(len(POSES))]
    jitter = tuple((float(a), float(s)) for a, s in rng.uniform(-8.0, 8.0, (8, 2)))
    yaw = math.radians(float(np.clip(rng.normal(0.0, 20.0), -50.0, 50.0)))
    return Mannequin(pose, 0.0, 0.0, float(rng.uniform(1.0, 1.15)), yaw, jitter)


def _place_objects(
    rng: np.random.Generator, camera: Camera, solids: Sequence[tuple[str, str]], figure: Mannequin | None
) -> tuple[SceneObject, ...] | None:
    """Solids of the given (kind, colour), and the figure last; None where no room was found."""
    placed: list[tuple[SceneObject, Window]] = []
    if figure is not None:
        z = -float(rng.uniform(3.7, 4.6))
        figure = replace(figure, x=float(rng.uniform(-0.28, 0.28)) * -z, z=z)
        placed.append((figure, _window(camera, figure)))
        if not _is_in_frame(placed[0][1]):
            return None
    # The more objects, the smaller the solids.
    scale = (1.0, 0.95, 0.85, 0.75)[len(solids) + len(placed) - 1]
    for kind, colour in solids:
        for _ in range(12):  # then a new camera is drawn: some cameras have no room at all
            solid = _sample_solid(rng, kind, colour, scale)
            window = _window(camera, solid)
            if _is_in_frame(window) and all(_are_apart(solid, window, *other) for other in placed):
                placed.append((solid, window))
                break
        else:
            return None
    things = [thing for thing, _ in placed]
    return tuple(things if figure is None else things[1:] + things[:1])


_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for z in (-1.0, 1.0) for y in (0.0, 1.0)])


def _extent(thing: SceneObject) -> np.ndarray:
    """(N, 3) world points whose hull holds the object."""
    if isinstance(thing, Mannequin):
        ends, others, radius = (np.array(part) for part in zip(*thing.capsules(), strict=True))
        reach = radius[:, None] * np.array([1.0, 1.0, 0.0])
        return np.concatenate([ends - reach, ends + reach, others - reach, others + reach])
    return np.array([thing.x, 0.0, thing.z]) + _CORNERS * np.array([thing.clearance, thing.height, thing.clearance])


def _window(camera: Camera, thing: SceneObject) -> Window:
    """The rectangle that an object fills in the picture."""
    p = camera.project(_extent(thing), 1)
    (left, top, _), (right, bottom, _) = p.min(axis=0).tolist(), p.max(axis=0).tolist()
    return left, right, top, bottom


def _is_in_frame(window: Window) -> bool:
    left, right, top, bottom = window
    return left > 0.01 and right < 0.99 and top > 0.02 and bottom < 0.99


def _are_apart(a: SceneObject, window_a: Window, b: SceneObject, window_b: Window) -> bool:
    """Whether two objects do not touch, and at most a third of the narrower one is hidden."""
    if math.hypot(a.x - b.x, a.z - b.z) < a.clearance + b.clearance + 0.12:
        return False
    (left_a, right_a, _, _), (left_b, right_b, _, _) = window_a, window_b
    narrower = min(right_a - left_a, right_b - left_b)
    return min(right_a, right_b) - max(left_a, left_b) <= 0.33 * narrower
