"""The demo world: the ground truth is exact, the pictures agree with it, and so do the captions."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.controlnet_core.training.demo_world import (
    ADE_CLASS,
    RenderedScene,
    render,
    render_many,
    render_seed,
    sample_scene,
    srgb_to_lab,
    vocabulary,
    write_scenes,
)
from comfyui_controlnet_core.controlnet_core.training.demo_world.captions import caption_words
from comfyui_controlnet_core.controlnet_core.training.demo_world.colours import (
    GROUND_COLOURS,
    MANNEQUIN_COLOUR,
    OBJECT_COLOURS,
    SKIES,
)
from comfyui_controlnet_core.controlnet_core.training.demo_world.mannequin import KEYPOINTS, POSES, Mannequin
from comfyui_controlnet_core.controlnet_core.training.demo_world.scene import SOLID_KINDS, Camera, Scene, Solid
from PIL import Image

SIZE = 64
CAMERA = Camera(height=1.6, pitch=math.radians(8.0), fov=math.radians(42.0))
LIGHT = (0.48, 0.64, 0.6)
SEEDS = range(40)


def scene_of(*objects: Solid | Mannequin, camera: Camera = CAMERA) -> Scene:
    return Scene(0, camera, LIGHT, "grey", "blue", objects, "")


def world_points(scene: Scene, rendered: RenderedScene) -> np.ndarray:
    """(H,W,3) what each pixel's centre shows, from its depth alone; NaN in the sky."""
    size = len(rendered.depth)
    right, up, forward = scene.camera.axes
    centre = np.arange(size) + 0.5 - 0.5 * size
    scale = np.tan(0.5 * scene.camera.fov) / (0.5 * size)
    rays = forward + centre[None, :, None] * scale * right - centre[:, None, None] * scale * up
    depth = np.where(np.isfinite(rendered.depth), rendered.depth, np.nan)
    return scene.camera.position + depth[..., None].astype(np.float64) * rays


def world_normals(scene: Scene, rendered: RenderedScene) -> np.ndarray:
    right, up, forward = scene.camera.axes
    return rendered.normal.astype(np.float64) @ np.stack([right, up, -forward])


def from_surface(solid: Solid, points: np.ndarray) -> np.ndarray:
    """(N,3) -> (N,) an error that vanishes on the solid's surface and nowhere else."""
    x, y, z = (points - np.array([solid.x, 0.0, solid.z])).T
    rho, r, h = np.hypot(x, z), solid.radius, solid.height
    if solid.kind == "sphere":
        return np.abs(np.sqrt(x * x + (y - r) ** 2 + z * z) - r)
    if solid.kind == "cone":
        return np.abs(rho - r * (1.0 - y / h))
    if solid.kind == "cylinder":
        return np.abs(np.maximum(rho - r, np.abs(y - 0.5 * h) - 0.5 * h))
    cos, sin = math.cos(solid.yaw), math.sin(solid.yaw)
    u, w = cos * x - sin * z, sin * x + cos * z
    return np.abs(np.maximum(np.maximum(np.abs(u), np.abs(w)) - r, np.abs(y - 0.5 * h) - 0.5 * h))


SOLIDS = {
    "sphere": Solid("sphere", "red", 0.3, -5.0, 0.8, 1.6),
    "box": Solid("box", "red", -0.4, -5.2, 0.6, 1.1, yaw=0.5),
    "cylinder": Solid("cylinder", "red", 0.5, -4.6, 0.6, 1.2),
    "cone": Solid("cone", "red", -0.2, -5.5, 0.8, 1.9),
}


def test_plane_depth_is_exact() -> None:
    scene = scene_of()
    rendered = render(scene, SIZE)
    focal = CAMERA.focal(SIZE)
    for row in (40, 50, 63):
        below = math.atan((row + 0.5 - SIZE / 2) / focal) + CAMERA.pitch
        distance = CAMERA.height / math.sin(below)
        expected = distance * math.cos(below - CAMERA.pitch)
        assert rendered.depth[row] == pytest.approx(np.full(SIZE, expected), rel=1e-6)


def test_sphere_depth_is_exact() -> None:
    """Along the ray to its centre a sphere is its radius nearer than the centre."""
    camera = Camera(height=0.8, pitch=0.0, fov=math.radians(42.0))
    rendered = render(scene_of(Solid("sphere", "red", 0.0, -5.0, 0.8, 1.6), camera=camera), SIZE + 1)
    assert rendered.depth[SIZE // 2, SIZE // 2] == pytest.approx(4.2, rel=1e-6)


@pytest.mark.parametrize("kind", SOLID_KINDS)
def test_depth_lies_on_the_surface(kind: str) -> None:
    solid = SOLIDS[kind]
    scene = scene_of(solid)
    rendered = render(scene, SIZE)
    points = world_points(scene, rendered)[rendered.labels == 2]
    assert len(points) > 150
    assert from_surface(solid, points).max() < 1e-5


def test_mannequin_depth_lies_on_its_capsules() -> None:
    figure = Mannequin("walking", 0.0, -4.2, 1.1, yaw=0.3)
    scene = scene_of(figure)
    rendered = render(scene, SIZE)
    points = world_points(scene, rendered)[rendered.labels == 2]
    errors = []
    for a, b, radius in figure.capsules():
        axis = b - a
        along = np.clip((points - a) @ axis / max(axis @ axis, 1e-12), 0.0, 1.0)
        errors.append(np.linalg.norm(points - a - along[:, None] * axis, axis=1) - radius)
    assert np.abs(np.min(errors, axis=0)).max() < 1e-5


@pytest.mark.parametrize("kind", SOLID_KINDS)
def test_normals_are_the_gradient_of_the_surface(kind: str) -> None:
    """Stepping along the normal leaves the solid at the rate of the step."""
    solid = SOLIDS[kind]
    scene = scene_of(solid)
    rendered = render(scene, SIZE)
    seen = rendered.labels == 2
    points, normals = world_points(scene, rendered)[seen], world_normals(scene, rendered)[seen]
    step = 1e-3
    rate = from_surface(solid, points + step * normals) / step
    slope = solid.height / math.hypot(solid.radius, solid.height) if kind == "cone" else 1.0
    assert np.median(np.abs(rate * slope - 1.0)) < 0.02
    assert np.quantile(np.abs(rate * slope - 1.0), 0.98) < 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_ground_truth_of_sampled_scenes(seed: int) -> None:
    scene = sample_scene(seed)
    rendered = render(scene, SIZE)
    sky = rendered.labels == 0
    assert rendered.image.shape == rendered.normal.shape == (SIZE, SIZE, 3)
    assert rendered.image.dtype == rendered.depth.dtype == rendered.normal.dtype == np.float32
    assert rendered.image.min() >= 0.0 and rendered.image.max() <= 1.0
    assert np.isinf(rendered.depth[sky]).all() and np.isfinite(rendered.depth[~sky]).all()
    assert not rendered.normal[sky].any()
    assert np.linalg.norm(rendered.normal[~sky], axis=1) == pytest.approx(1.0, abs=1e-5)
    towards_viewer = ((scene.camera.position - world_points(scene, rendered)) * world_normals(scene, rendered)).sum(-1)
    assert (towards_viewer[~sky] > -1e-4).all()
    assert len(rendered.classes) == len(rendered.colours) == len(rendered.albedo) == len(scene.objects) + 2
    assert set(np.unique(rendered.labels)) == set(range(len(rendered.classes))), "every object is seen"


@pytest.mark.parametrize("seed", range(12))
def test_the_nearest_object_wins(seed: int) -> None:
    """Each pixel has the label and the depth of whichever object, drawn alone, is nearest there."""
    scene = sample_scene(seed)
    whole = render(scene, SIZE)
    alone = [render(replace(scene, objects=(thing,)), SIZE) for thing in scene.objects]
    ground = render(replace(scene, objects=()), SIZE).depth
    depths = np.stack([ground, *(np.where(r.labels == 2, r.depth, np.inf) for r in alone)])
    assert np.array_equal(depths.min(axis=0), whole.depth)
    seen = np.isfinite(whole.depth)
    assert np.array_equal((depths.argmin(axis=0) + 1)[seen], whole.labels[seen])


@pytest.mark.parametrize("pose", POSES)
def test_visible_keypoints_lie_on_the_mannequin(pose: str) -> None:
    rendered = render(scene_of(Mannequin(pose, 0.0, -4.6, 1.05)), 128)
    assert rendered.keypoints.shape == (1, len(KEYPOINTS), 3)
    x, y, seen = rendered.keypoints[0].T
    assert set(np.unique(seen)) <= {0.0, 1.0} and seen.sum() >= 15
    visible = seen > 0
    assert (rendered.labels[np.floor(y[visible]).astype(int), np.floor(x[visible]).astype(int)] == 2).all()


def test_a_mannequin_that_faces_the_viewer_has_its_right_side_on_the_left() -> None:
    keypoints = render(scene_of(Mannequin("standing", 0.0, -4.4)), 128).keypoints[0]
    for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "eye", "ear"):
        right, left = (keypoints[KEYPOINTS.index(f"{side} {name}")] for side in ("right", "left"))
        assert right[0] < left[0] and right[1] == pytest.approx(left[1], abs=0.1)
    order = [keypoints[KEYPOINTS.index(f"right {name}"), 1] for name in ("shoulder", "hip", "knee", "ankle")]
    assert order == sorted(order)


def test_hidden_and_averted_keypoints_have_no_confidence() -> None:
    figure = Mannequin("standing", 0.0, -5.5)
    wall = Solid("box", "red", 0.0, -4.2, 0.5, 0.9)
    behind = render(scene_of(figure, wall), 128).keypoints[0, :, 2]
    assert behind[KEYPOINTS.index("nose")] == 1.0
    assert behind[KEYPOINTS.index("right ankle")] == behind[KEYPOINTS.index("left ankle")] == 0.0
    averted = render(scene_of(replace(figure, yaw=math.pi)), 128).keypoints[0, :, 2]
    assert averted[[KEYPOINTS.index(name) for name in ("nose", "right eye", "left eye")]].sum() == 0.0
    assert averted[KEYPOINTS.index("neck")] == 1.0


def test_no_mannequin_no_keypoints() -> None:
    assert render(scene_of(SOLIDS["cone"]), SIZE).keypoints.shape == (0, 18, 3)


def test_pictures_are_antialiased_and_flat_inside() -> None:
    rendered = render(scene_of(SOLIDS["cylinder"]), SIZE)
    inside = rendered.labels == 2
    share = inside.mean()
    # The red channel against the grey ground is between the two at the rim only.
    redness = rendered.image[..., 0] - rendered.image[..., 2]
    high = np.median(redness[inside])
    between = (redness > 0.15 * high) & (redness < 0.6 * high)
    assert 0 < between.mean() < 0.5 * share


def test_the_true_pictures_can_be_read_back_by_the_nearest_albedo() -> None:
    """The measure of the fidelity benchmark has a high ceiling: colours survive the shading."""
    scores = []
    for seed in SEEDS:
        rendered = render_seed(seed, SIZE)
        lab, palette = srgb_to_lab(rendered.image), srgb_to_lab(rendered.albedo)
        nearest = np.linalg.norm(lab[:, :, None] - palette, axis=-1).argmin(axis=-1)
        for label in range(2, len(palette)):
            said, true = nearest == label, rendered.labels == label
            scores.append((said & true).sum() / (said | true).sum())
    assert np.mean(scores) > 0.75


@pytest.mark.parametrize("seed", [0, 7, 123456789])
def test_same_seed_same_scene_and_picture(seed: int) -> None:
    assert sample_scene(seed) == sample_scene(seed)
    first, second = render_seed(seed, 32), pickle.loads(pickle.dumps(render_seed))(seed, 32)
    for name in ("image", "depth", "normal", "labels", "keypoints"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert sample_scene(seed) != sample_scene(seed + 1)


def test_worker_processes_draw_the_same_pictures_in_order() -> None:
    here, there = (list(render_many(range(3), 16, workers)) for workers in (1, 2))
    assert [r.caption for r in here] == [r.caption for r in there]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(here, there, strict=True))


def test_scenes_are_varied_and_their_colours_distinct() -> None:
    scenes = [sample_scene(seed) for seed in range(400)]
    assert 0.28 < np.mean(["person" in scene.classes for scene in scenes]) < 0.42
    assert {kind for scene in scenes for kind in scene.classes} == set(ADE_CLASS)
    assert {scene.ground for scene in scenes} == set(GROUND_COLOURS)
    assert {scene.sky for scene in scenes} == set(SKIES)
    assert {o.colour for s in scenes for o in s.objects} == {*OBJECT_COLOURS, MANNEQUIN_COLOUR}
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 4
        assert len(set(scene.colours[1:])) == len(scene.colours) - 1


def test_ade_classes_are_distinct() -> None:
    assert set(ADE_CLASS) == {"sky", "ground", "person", *SOLID_KINDS}
    assert len(set(ADE_CLASS.values())) == len(ADE_CLASS)
    assert all(0 <= number < 150 for number in ADE_CLASS.values())


def test_captions_use_exactly_the_vocabulary() -> None:
    known, used = set(vocabulary()), set[str]()
    for seed in range(1500):
        used.update(caption_words(sample_scene(seed).caption))
        assert used <= known
        if used == known:
            break
    assert used == known


@pytest.mark.parametrize("seed", range(150))
def test_captions_tell_the_truth(seed: int) -> None:
    scene = sample_scene(seed)
    for thing in scene.objects:
        assert thing.kind == "person" or f" {thing.colour} " in f" {scene.caption} "
    named = re.search(r"(\w+) (?:ground|floor)", scene.caption)
    assert named is None or named.group(1) == scene.ground
    named = re.search(r"(\w+) sky", scene.caption)
    assert named is None or named.group(1) == scene.sky
    relation = re.search(r"(.*?) (?:to the )?(left|right) of (.*)", scene.caption)
    if relation is not None:
        first, side, second = relation.groups()
        xs = {o.colour: scene.camera.project(np.array([[o.x, 0.0, o.z]]), 1)[0, 0] for o in scene.objects}
        a, b = (_mentioned(text, xs) for text in (first, second))
        assert (xs[a] < xs[b]) == (side == "left")


def _mentioned(text: str, colours: dict[str, float]) -> str:
    """The first object colour in a piece of caption; a figure may go unnamed by its colour."""
    return next((word for word in text.split() if word in colours), MANNEQUIN_COLOUR)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueRangeError, match="-1"):
        sample_scene(-1)
    with pytest.raises(ValueRangeError, match="picture size is 4"):
        render_seed(0, 4)
    with pytest.raises(ValueRangeError, match="torus"):
        render(scene_of(replace(SOLIDS["cone"], kind="torus")), SIZE)


def test_scenes_are_written_as_pictures_with_captions(tmp_path: Path) -> None:
    write_scenes(tmp_path / "target", 2, size=SIZE, first=7)
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == [
        "00000.png", "00000.txt", "00001.png", "00001.txt",
    ]  # fmt: skip
    scene = render_seed(8, SIZE)
    assert (tmp_path / "target" / "00001.txt").read_text("utf-8") == scene.caption
    with Image.open(tmp_path / "target" / "00001.png") as picture:
        assert np.abs(np.asarray(picture) / 255.0 - scene.image.clip(0, 1)).max() <= 0.5 / 255.0 + 1e-6
