"""Pictures of scenes, with exact depth, normals, labels and keypoints.

The geometry is sampled once per pixel, at its centre. Where two surfaces meet, the colour is the mean of 2 x 2 rays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import ValueRangeError
from .mannequin import FACE_KEYPOINTS, Mannequin
from .ray_casting import RayCaster
from .sampling import sample_scene
from .scene import Scene
from .shading import Shader, draw_ground_maps
from .shapes import build_shape

_OFFSETS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))


@dataclass(frozen=True)
class RenderedScene:
    """A picture of a scene and the ground truth; H = W = size.

    image      (H, W, 3) float32 sRGB in 0..1, anti-aliased
    depth      (H, W) float32 metres along the camera's axis, inf in the sky
    normal     (H, W, 3) float32 unit vectors in camera space (x right, y up, z to the viewer), 0 in the sky
    labels     (H, W) int32: 0 sky, 1 ground, 2.. the objects in the order of `scene.objects`
    classes    class name per label; colours: colour name per label
    albedo     (L, 3) float32 sRGB per label
    keypoints  (P, 18, 3) float32: x, y in pixels (the centre of the first pixel is 0.5), 1 if visible else 0
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


def render(scene: Scene, size: int = 128) -> RenderedScene:
    """Draw a scene as a square picture of `size` pixels, with its ground truth.

    Raises ValueRangeError for a size below 8.
    """
    if size < 8:
        raise ValueRangeError(f"the picture size is {size}: use 8 or more pixels")
    shapes = tuple(build_shape(thing) for thing in scene.objects)
    caster = RayCaster.prepare(scene.camera, shapes, size)
    shader = Shader(scene, caster, *draw_ground_maps(scene, shapes))
    row, column = (a.ravel() for a in np.mgrid[0:size, 0:size])
    x, y = column + 0.5, row + 0.5
    hits = caster.cast(x, y)
    image = shader.colour(hits, x, y)

    # Only pixels at edges need more rays, a small part of the picture.
    edge = np.flatnonzero(_find_edges(hits.face.reshape(size, size)))
    xs = np.concatenate([column[edge] + dx for dx, _ in _OFFSETS])
    ys = np.concatenate([row[edge] + dy for _, dy in _OFFSETS])
    image[edge] = shader.colour(caster.cast(xs, ys), xs, ys).reshape(len(_OFFSETS), -1, 3).mean(axis=0)

    right, up, forward = scene.camera.axes
    normal = (hits.normal @ np.stack([right, up, -forward], axis=1)).astype(np.float32)
    labels = hits.label.reshape(size, size)
    return RenderedScene(
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


def _find_edges(face: np.ndarray) -> np.ndarray:
    """(H, W) surface numbers -> (H, W) bool, true where one of the 4 neighbours differs."""
    edge = np.zeros(face.shape, dtype=bool)
    across, down = face[:, 1:] != face[:, :-1], face[1:] != face[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _keypoints(scene: Scene, labels: np.ndarray) -> np.ndarray:
    """(P, 18, 3): x, y and visibility of each figure's joints."""
    size = len(labels)
    people = [(i + 2, thing) for i, thing in enumerate(scene.objects) if isinstance(thing, Mannequin)]
    keypoints = np.zeros((len(people), 18, 3), dtype=np.float32)
    for row, (label, thing) in zip(keypoints, people, strict=True):
        joints = thing.joints()
        row[:, :2] = scene.camera.project(joints, size)[:, :2]
        j, i = np.floor(row[:, 0]).astype(int), np.floor(row[:, 1]).astype(int)
        inside = (j >= 0) & (j < size) & (i >= 0) & (i < size)
        # A joint is visible where its pixel shows the figure.
        seen = inside & (labels[np.clip(i, 0, size - 1), np.clip(j, 0, size - 1)] == label)
        # A joint of the face must also lie on the side of the head that is turned to the camera.
        head = thing.skeleton()["head"]
        view = scene.camera.position - head
        face = list(FACE_KEYPOINTS)
        outward = (joints[face] - head) @ (view / np.linalg.norm(view))
        seen[face] &= outward > -0.35 * np.linalg.norm(joints[face] - head, axis=1)
        row[:, 2] = seen
    return keypoints


def render_seed(seed: int, size: int = 128) -> RenderedScene:
    """Draw the scene of a seed. A function of the module, so that worker processes can be sent it."""
    return render(sample_scene(seed), size)


def render_many(seeds: Sequence[int], size: int = 128, workers: int = 2) -> Iterator[RenderedScene]:
    """Yield the pictures of the seeds in their order, drawn by `workers` processes (0 or 1: in this one)."""
    if workers <= 1:
        yield from (render_seed(seed, size) for seed in seeds)
        return
    # Imported here: a single process does not need it. "spawn" is safe with threads, which torch has.
    import multiprocessing
    from functools import partial

    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(partial(render_seed, size=size), seeds, chunksize=16)
