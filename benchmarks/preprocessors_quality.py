"""Measure the quality of the preprocessors without weights against exact truth: seeded scenes, a sphere, a stereo pair.

Every figure names its worst case, so that failures are published too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.classic.soft_edge import soft_edge
from comfyui_controlnet_core.preprocessors.depth import depth_to_hint, stereo_disparity
from comfyui_controlnet_core.preprocessors.normals import decode, encode, normals_from_height
from comfyui_controlnet_core.preprocessors.palettes import labels_to_hint
from comfyui_controlnet_core.preprocessors.pose import draw_poses
from hint_reading import hint_to_labels, normals_from_depth

SCENES = 32
NOISES = (0.0, 8.0, 16.0)
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Score:
    """One figure: what was measured, its value, the goal, and the worst single case."""

    name: str
    value: float
    gate: str
    worst: str


def all_scores() -> Iterator[Score]:
    """Measure every figure, one after the other."""
    yield from edge_scores("soft_edge", ("ellipse", "polygon", "box"), _soft_edges, gate=0.95)
    yield from edge_scores("canny (for comparison)", ("ellipse", "polygon", "box"), _canny, gate=None)
    yield from edge_scores("lines", ("polygon", "box"), _lines, gate=0.85)
    yield from edge_scores("lines on gray (for comparison)", ("polygon", "box"), _gray_lines, gate=None)
    yield from edge_scores("lines where there are curves", ("ellipse",), _lines, gate=None)
    yield sphere_score()
    yield from stereo_scores()
    yield from demo_scores()


# Scenes: flat shapes of different colours, with texture, uneven light and noise.


def scene(seed: int, kinds: tuple[str, ...], noise: float, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene. Returns the picture (H,W,3) uint8 and its true boundaries (H,W) bool; noise is out of 255."""
    rng = np.random.default_rng(seed)
    labels = _shapes(rng, kinds, size * _SUPERSAMPLING)
    colours = _apart(rng, int(labels.max()) + 1)
    flat = cv2.resize(colours[labels].astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    texture = cv2.GaussianBlur(rng.normal(size=(size, size)).astype(np.float32), (0, 0), 1.5)[..., None]
    rows, columns = np.mgrid[0:size, 0:size] / size
    light = 1 + 0.25 * (columns * rng.uniform(-1, 1) + rows * rng.uniform(-1, 1))
    picture = flat * light[..., None] + texture / texture.std() * 6 + rng.normal(size=flat.shape) * noise
    small = labels[_SUPERSAMPLING // 2 :: _SUPERSAMPLING, _SUPERSAMPLING // 2 :: _SUPERSAMPLING]
    boundary = np.zeros((size, size), bool)
    boundary[:, :-1] |= small[:, :-1] != small[:, 1:]
    boundary[:-1] |= small[:-1] != small[1:]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), boundary


def _shapes(rng: np.random.Generator, kinds: tuple[str, ...], side: int) -> np.ndarray:
    labels = np.zeros((side, side), np.int32)
    for index in range(1, int(rng.integers(4, 8)) + 1):
        centre, radius = rng.uniform(0.15, 0.85, 2) * side, rng.uniform(0.08, 0.28) * side
        mask = np.zeros((side, side), np.uint8)
        kind = kinds[int(rng.integers(len(kinds)))]
        if kind == "ellipse":
            axes = (int(radius), int(radius * rng.uniform(0.4, 1)))
            cv2.ellipse(mask, centre.astype(int).tolist(), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        elif kind == "box":
            sides = (float(2 * radius), float(2 * radius * rng.uniform(0.3, 1)))
            corners = cv2.boxPoints((centre.tolist(), sides, float(rng.uniform(0, 90))))
            cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
            points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
        labels[mask > 0] = index
    return labels


def _apart(rng: np.random.Generator, count: int, distance: float = 25.0) -> np.ndarray:
    """Draw colours (count,3) in 0..255, each at least `distance` from the others in Lab."""
    chosen: list[np.ndarray] = []
    labs: list[np.ndarray] = []
    while len(chosen) < count:
        colour = rng.uniform(20, 235, 3)
        lab = cv2.cvtColor(np.float32(colour / 255)[None, None], cv2.COLOR_RGB2LAB)[0, 0]
        if all(np.linalg.norm(lab - other) >= distance for other in labs):
            chosen.append(colour)
            labs.append(lab)
    return np.stack(chosen)


# Edges: precision and recall of edge pixels within two pixels of the truth.


def edge_scores(
    name: str, kinds: tuple[str, ...], detect: Callable[[np.ndarray], np.ndarray], gate: float | None
) -> Iterator[Score]:
    """Measure mean precision, recall and F over the scenes, at each noise; F has a goal at noise 8."""
    for noise in NOISES:
        rows = []
        for seed in range(SCENES):
            picture, truth = scene(1000 + seed, kinds, noise)
            rows.append(precision_recall(detect(picture), truth))
        precision, recall, f = np.mean(rows, axis=0)
        worst = int(np.argmin([row[2] for row in rows]))
        goal = f">= {gate}" if gate is not None and noise == 8 else ""
        detail = f"precision {precision:.3f}, recall {recall:.3f}; worst scene {1000 + worst}: F {rows[worst][2]:.3f}"
        yield Score(f"{name}, noise {noise:g}: F", float(f), goal, detail)


def precision_recall(found: np.ndarray, truth: np.ndarray, tolerance: float = 2.0) -> tuple[float, float, float]:
    """Return (precision, recall, F) of two edge maps (H,W) bool."""

    def near(points: np.ndarray, others: np.ndarray) -> float:
        if not points.any():
            return 1.0
        distance = cv2.distanceTransform((~others).astype(np.uint8), cv2.DIST_L2, 5) if others.any() else None
        return 0.0 if distance is None else float((distance[points] <= tolerance).mean())

    precision, recall = near(found, truth), near(truth, found)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def _soft_edges(picture: np.ndarray, level: float = 0.55) -> np.ndarray:
    """Return the ridges of the soft map above a fixed level, which is the same for all scenes and noises."""
    soft = cv2.GaussianBlur(soft_edge(picture), (0, 0), 1.0)
    row = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], np.uint8)
    kernels = (row, row.T.copy(), np.eye(3, dtype=np.uint8), np.eye(3, dtype=np.uint8)[::-1].copy())
    return np.any([cv2.dilate(soft, kernel) == soft for kernel in kernels], axis=0) & (soft > level)


def _hint(kind: str, picture: np.ndarray, **parameters: object) -> np.ndarray:
    return preprocessors.process(kind, picture[None], **parameters)[0, ..., 0] > 0


def _canny(picture: np.ndarray) -> np.ndarray:
    return _hint("canny", picture)


def _lines(picture: np.ndarray) -> np.ndarray:
    return _hint("lines", picture)


def _gray_lines(picture: np.ndarray) -> np.ndarray:
    return _hint("lines", picture, channels="gray")


# Normals and depth.


def sphere_score(radius: float = 110.0, size: int = 256) -> Score:
    """Compare normals from the exact height of a sphere with the true ones, in degrees."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float64)
    right, up = (columns - size / 2) / radius, -(rows - size / 2) / radius
    inside = right**2 + up**2 < 0.98
    front = np.sqrt(np.clip(1 - right**2 - up**2, 0, None))
    angles = _angles(np.stack([right, up, front], -1), normals_from_height(radius * front))[inside]
    worst = f"95 % below {np.percentile(angles, 95):.3f}, largest {angles.max():.2f} (at the rim)"
    return Score("normals of a sphere: median error in degrees", float(np.median(angles)), "<= 0.1", worst)


def stereo_scores() -> Iterator[Score]:
    """Measure the rank correlation of our disparity with the truth of scikit-image's motorcycle pair."""
    try:
        from scipy.stats import spearmanr
        from skimage.data import stereo_motorcycle
    except ImportError:
        return
    left, right, truth = stereo_motorcycle()
    found = stereo_disparity(left, right, max_disparity=64)
    known = np.isfinite(truth) & (truth > 0) & (found >= 0)
    error = np.abs(found - truth)[known]
    bad = f"{100 * (error > 2).mean():.1f} % of pixels off by more than 2 px, {100 * known.mean():.1f} % compared"
    yield Score("stereo depth (motorcycle): Spearman", float(spearmanr(found[known], truth[known])[0]), ">= 0.95", bad)


def demo_scores(count: int = 24, size: int = 256) -> Iterator[Score]:
    """Compare with the demo world's exact normals from depth, depth and normals after their hints, classes, joints."""
    from comfyui_controlnet_core.controlnet_core.training.demo_world import ADE_CLASS, render, sample_scene

    normals, depths, trips, labels, joints = [], [], [], [], []
    for seed in range(count):
        world = sample_scene(seed)
        truth = render(world, size)
        surface = np.isfinite(truth.depth)
        found = normals_from_depth(truth.depth, fov=np.degrees(world.camera.fov))
        normals.append(np.median(_angles(truth.normal, found)[surface]))
        hint = depth_to_hint(truth.depth)[..., 0]
        depths.append(_same_order(hint[surface], -truth.depth[surface]) and not hint[~surface].any())
        trips.append(_angles(truth.normal, decode(_in_bytes(encode(truth.normal)), "bae"))[surface].max())
        numbers = np.array([ADE_CLASS[name] for name in truth.classes])[truth.labels]
        labels.append((hint_to_labels(_in_bytes(labels_to_hint(numbers))) == numbers).mean())
        joints += _joint_hits(truth.keypoints, size)
    worst = f"worst scene {int(np.argmax(normals))}: {max(normals):.3f}"
    yield Score("demo scenes, normals from depth: median error in degrees", float(np.median(normals)), "<= 0.5", worst)
    yield Score("demo scenes, depth hints in the order of the truth", float(np.mean(depths)), "= 1", "sky black in all")
    yield Score("demo scenes, normals through 8 bits: largest error in degrees", float(max(trips)), "<= 1", "")
    yield Score(
        "demo scenes, classes read back from colours", float(np.mean(labels)), "= 1", f"least {min(labels):.4f}"
    )
    yield Score(
        "demo scenes, joints drawn in their colours",
        float(np.mean(joints)),
        "",
        f"{len(joints)} joints; others cover the rest",
    )


def _angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((np.asarray(a, np.float64) * b).sum(-1), -1, 1)))


def _in_bytes(hint: np.ndarray) -> np.ndarray:
    return np.rint(hint * 255).astype(np.float32) / np.float32(255)


def _same_order(values: np.ndarray, reference: np.ndarray) -> bool:
    order = np.argsort(reference, kind="stable")
    return bool((np.diff(values[order]) >= -1e-6).all())


def _joint_hits(keypoints: np.ndarray, size: int) -> list[bool]:
    """Return for each visible joint, of each person drawn alone, whether its pixel has the joint's colour."""
    from comfyui_controlnet_core.preprocessors.pose.skeleton import BODY_COLOURS

    hits = []
    for person in keypoints:
        hint = np.rint(draw_poses(person[None], size, size) * 255)
        for (x, y, seen), colour in zip(person, BODY_COLOURS, strict=True):
            if seen and 0 <= x < size and 0 <= y < size:
                hits.append(tuple(hint[int(y), int(x)]) == colour)
    return hits
