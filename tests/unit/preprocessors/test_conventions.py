"""Axes, polarity and colours: each of these tests would fail if one were flipped."""

from __future__ import annotations

import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.depth import depth_to_hint, stereo_disparity
from comfyui_controlnet_core.preprocessors.normals import (
    CONVENTIONS,
    decode,
    encode,
    normals_from_height,
)
from comfyui_controlnet_core.preprocessors.palettes import (
    labels_to_hint,
    palette,
    panoptic_to_labels,
)
from hint_reading import hint_to_labels, normals_from_depth

LEFT, RIGHT, UP, DOWN, FRONT = (-1, 0, 0), (1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1)

# The pure colour by which each convention shows a direction.
COLOURS = {
    "bae": {LEFT: (1, 0.5, 0.5), UP: (0.5, 1, 0.5), FRONT: (0.5, 0.5, 1)},
    "midas10": {FRONT: (1, 0.5, 0.5), UP: (0.5, 1, 0.5), LEFT: (0.5, 0.5, 1)},
    "opengl": {RIGHT: (1, 0.5, 0.5), UP: (0.5, 1, 0.5), FRONT: (0.5, 0.5, 1)},
    "directx": {RIGHT: (1, 0.5, 0.5), DOWN: (0.5, 1, 0.5), FRONT: (0.5, 0.5, 1)},
}


@pytest.mark.parametrize("convention", COLOURS)
def test_normals_have_their_colours(convention: str) -> None:
    for direction, colour in COLOURS[convention].items():
        hint = encode(np.array(direction, np.float32), convention)
        assert np.allclose(hint, colour)
        assert np.allclose(decode(hint, convention), direction)


def ramp(direction: tuple[int, int, int]) -> np.ndarray:
    """A depth picture, near = bright, of a plane that faces half to the viewer and half `direction`."""
    rows, columns = np.mgrid[0:64, 0:64] / 63.0
    brightness = {LEFT: columns, RIGHT: 1 - columns, UP: rows, DOWN: 1 - rows}[direction]
    return np.repeat(brightness[None, ..., None], 3, axis=-1).astype(np.float32)


@pytest.mark.parametrize("method", ["relief", "midas_legacy"])
@pytest.mark.parametrize("direction", [LEFT, RIGHT, UP, DOWN])
def test_a_plane_nearer_on_one_side_faces_the_other(direction: tuple[int, int, int], method: str) -> None:
    hint = preprocessors.process("normal_depth", ramp(direction), method=method)[0, 32, 32]
    normal = decode(hint, "bae")
    assert float(np.dot(normal, direction)) > 0.001 and normal[2] > 0.5
    side = next(axis for axis in (0, 1) if direction[axis] == 0)
    assert abs(float(normal[side])) < 1e-3
    inverted = decode(preprocessors.process("normal_depth", ramp(direction), invert=True)[0, 32, 32], "bae")
    assert float(np.dot(inverted, direction)) < 0


def test_bae_left_is_red_up_is_green() -> None:
    assert preprocessors.process("normal_depth", ramp(LEFT))[0, 32, 32, 0] > 0.6
    assert preprocessors.process("normal_depth", ramp(UP))[0, 32, 32, 1] > 0.6
    flat = preprocessors.process("normal_depth", np.zeros((1, 8, 8, 3), np.float32))
    assert np.allclose(flat, (0.5, 0.5, 1.0))


def test_relief_does_not_depend_on_the_size() -> None:
    small = np.linspace(0, 1, 32, dtype=np.float32)[None, None, :, None].repeat(32, 1)
    large = np.linspace(0, 1, 256, dtype=np.float32)[None, None, :, None].repeat(256, 1)
    a = preprocessors.process("normal_depth", small)[0, 16, 16]
    b = preprocessors.process("normal_depth", large)[0, 128, 128]
    assert np.allclose(a, b, atol=0.02)


def test_background_is_flat() -> None:
    hint = preprocessors.process("normal_depth", ramp(LEFT), background=0.4, convention="midas10")
    assert np.allclose(hint[0, :, :20], (1.0, 0.5, 0.5))
    assert hint[0, 32, 50, 2] > 0.6


def test_midas_legacy_is_the_published_formula() -> None:
    import cv2

    disparity = np.random.default_rng(0).random((40, 50)).astype(np.float32) * 20
    x = cv2.Sobel(disparity, cv2.CV_32F, 1, 0, ksize=3)
    y = cv2.Sobel(disparity, cv2.CV_32F, 0, 1, ksize=3)
    relative = (disparity - disparity.min()) / np.ptp(disparity)
    x[relative < 0.4], y[relative < 0.4] = 0, 0
    normal = np.stack([x, y, np.full_like(x, np.pi * 2)], axis=2)
    normal /= np.sum(normal**2, axis=2, keepdims=True) ** 0.5
    published = (normal * 127.5 + 127.5)[:, :, ::-1] / 255
    ours = preprocessors.process(
        "normal_depth",
        disparity[None, ..., None],
        method="midas_legacy",
        background=0.4,
        convention="midas10",
    )
    assert np.abs(ours[0] - published).max() < 1e-5


def test_normals_of_an_analytic_sphere() -> None:
    rows, columns = np.mgrid[0:256, 0:256].astype(np.float64)
    right, up = (columns - 128) / 110, -(rows - 128) / 110
    inside = right**2 + up**2 < 0.9
    front = np.sqrt(np.where(inside, 1 - right**2 - up**2, 0))
    truth = np.stack([right, up, front], axis=-1)
    found = normals_from_height(110 * front)
    core = inside & (right**2 + up**2 < 0.85)
    angles = np.degrees(np.arccos(np.clip((truth * found).sum(-1)[core], -1, 1)))
    assert np.median(angles) < 0.1


def test_normals_of_a_plane_in_perspective() -> None:
    """A floor one unit below a camera that looks straight ahead faces up everywhere."""
    rows, _ = np.mgrid[0:64, 0:96].astype(np.float64)
    focal = 32 / np.tan(np.radians(50) / 2)
    below = (rows + 0.5 - 32) / focal
    depth = np.where(below > 0.05, 1 / np.maximum(below, 0.05), np.inf)
    normals = normals_from_depth(depth, fov=50)
    assert np.allclose(normals[40:63, 2:-2], UP, atol=1e-4)
    assert np.allclose(normals[:30], FRONT)


def test_conventions_convert_back_and_forth() -> None:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(1, 9, 11, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    start = encode(normals, "opengl").astype(np.float32)
    for other in CONVENTIONS:
        there = preprocessors.process("normal_convert", start, source="opengl", convention=other)
        back = preprocessors.process("normal_convert", there, source=other, convention="opengl")
        assert np.allclose(back, start, atol=1e-6)


def test_depth_ranges() -> None:
    depth = np.stack([np.full((4, 4), 2.0), np.full((4, 4), 4.0)])
    depth[:, 0, 0] = 1.0
    frame = depth_to_hint(depth, space="linear", normalize="frame")[..., 0]
    batch = depth_to_hint(depth, space="linear", normalize="batch")[..., 0]
    fixed = depth_to_hint(depth, space="linear", normalize="fixed", near=0.0, far=8.0)[..., 0]
    assert frame[0, 1, 1] == 0.0 and frame[1, 1, 1] == 0.0
    assert batch[0, 1, 1] == pytest.approx(2 / 3) and batch[1, 1, 1] == 0.0
    assert fixed[0, 1, 1] == 0.75 and fixed[1, 1, 1] == 0.5 and fixed[0, 0, 0] == 0.875
    with pytest.raises(preprocessors.ParameterError, match="near and far"):
        depth_to_hint(depth, normalize="fixed")


@pytest.mark.parametrize(
    ("options", "ends", "expected"),
    [
        ({"space": "linear"}, (8.0, 2.0), "near < far"),
        ({"space": "linear"}, (0.0, np.inf), "near < far"),
        ({"space": "linear", "invert": True}, (2.0, 8.0), "near > far"),
        ({"space": "disparity", "invert": True}, (2.0, 8.0), "near > far"),
        ({"space": "disparity"}, (0.0, 8.0), "0 < near < far"),
        ({"space": "disparity"}, (8.0, 2.0), "0 < near < far"),
        ({"space": "disparity"}, (2.0, 2.0), "0 < near < far"),
    ],
)
def test_ends_of_the_wrong_sense_are_refused(options: dict, ends: tuple[float, float], expected: str) -> None:
    """They gave a black picture."""
    depth = np.linspace(1, 10, 16).reshape(1, 4, 4, 1)
    near, far = ends
    with pytest.raises(preprocessors.ParameterError, match=f"near={near:g} and far={far:g}; expected {expected}"):
        preprocessors.process("depth_map", depth, normalize="fixed", near=near, far=far, **options)


@pytest.mark.parametrize("space", ["linear", "disparity"])
@pytest.mark.parametrize("invert", [False, True])
def test_ends_that_nobody_set_follow_the_sense_of_the_values(space: str, invert: bool) -> None:
    values = np.linspace(0.1, 1, 10, dtype=np.float32)[None, :, None]
    hint = preprocessors.process("depth_map", values, normalize="fixed", space=space, invert=invert)[0, 0, :, 0]
    assert (np.diff(hint) > 0 if invert else np.diff(hint) < 0).all()
    assert hint.max() >= 0.9 - 1e-6 and hint.min() <= 0.1 + 1e-6


def test_depth_map_reads_a_z_pass_and_its_inverse() -> None:
    z = np.array([[[[1.0], [2.0], [np.inf]]]], np.float32)
    assert preprocessors.process("depth_map", z)[0, 0, :, 0].tolist() == [1.0, 0.0, 0.0]
    near_is_large = preprocessors.process("depth_map", np.array([[[[1.0], [2.0], [4.0]]]]), invert=True)
    assert near_is_large[0, 0, :, 0].tolist() == pytest.approx([0, 1 / 3, 1])


def test_the_floor_prior_is_black_above_its_horizon() -> None:
    hint = preprocessors.process("depth_ground_prior", np.zeros((1, 100, 8, 3), np.float32), horizon=0.5)
    assert not hint[0, :50].any() and hint[0, 99, 0, 0] > 0.98
    assert np.all(np.diff(hint[0, 50:, 0, 0]) > 0)


def test_stereo_finds_the_nearer_patch() -> None:
    rng = np.random.default_rng(1)
    right = rng.integers(0, 255, (80, 160, 3), dtype=np.uint8)
    left = right.copy()
    left[:, 4:] = right[:, :-4]
    left[20:60, 70:110] = right[20:60, 58:98]
    disparity = stereo_disparity(left, right, max_disparity=32)
    assert disparity[40, 90] == pytest.approx(12, abs=0.2) and disparity[5, 140] == pytest.approx(4, abs=0.2)
    hint = preprocessors.process("depth_stereo", np.concatenate([left, right], axis=1)[None], max_disparity=32)
    assert hint.shape == (1, 80, 160, 3) and hint[0, 40, 90, 0] > 0.9 > 0.5 > hint[0, 5, 140, 0]


def test_painted_maps_snap_to_their_class_and_resize_without_mixing() -> None:
    names, colours = palette("ade20k").classes, palette("ade20k").colours
    sky, car = colours[names.index("sky")], colours[names.index("car")]
    painted = np.zeros((1, 40, 40, 3), np.uint8)
    painted[:, :20] = np.clip(sky.astype(int) + (4, -7, 5), 0, 255)
    painted[:, 20:] = np.clip(car.astype(int) + (3, 2, -6), 0, 255)
    hint = np.rint(preprocessors.process("segment_palette", painted, resolution=63, resize="shortest") * 255)
    assert {tuple(c) for c in hint.reshape(-1, 3)} == {tuple(sky), tuple(car)}
    none = preprocessors.process("segment_palette", np.full((1, 4, 4, 3), 90, np.uint8), tolerance=5)
    assert not none.any()


def test_regions_take_the_names_in_order() -> None:
    names, colours = palette("ade20k").classes, palette("ade20k").colours
    image = np.zeros((1, 60, 60, 3), np.float32)
    image[:, :20], image[:, 20:40], image[:, 40:] = (0.6, 0.7, 1.0), (0.5, 0.5, 0.5), (0.2, 0.5, 0.1)
    hint = np.rint(preprocessors.process("segment_regions", image, classes="sky, building, grass") * 255)
    for row, name in ((5, "sky"), (30, "building"), (55, "grass")):
        assert tuple(hint[0, row, 30]) == tuple(colours[names.index(name)])
    with pytest.raises(preprocessors.ParameterError, match="near it are"):
        palette("ade20k").numbers("skyy")


def test_coco_has_things_then_stuff_and_colours_that_read_back() -> None:
    coco = palette("coco")
    assert len(coco.classes) == 133 and (coco.classes[0], coco.classes[80]) == ("person", "banner")
    assert tuple(coco.colours[0]) == (220, 20, 60) and coco.numbers("cat, rug, 7") == [15, 132, 7]
    labels = np.arange(133).reshape(7, 19)
    assert np.array_equal(hint_to_labels(labels_to_hint(labels, "coco"), "coco"), labels)
    ade = hint_to_labels(labels_to_hint(np.arange(150).reshape(10, 15)))
    assert [n for n in range(150) if ade.ravel()[n] != n] == [48], "skyscraper reads back as road"
    assert (hint_to_labels(np.full((2, 2, 3), 0.35)) == -1).all()
    painted = np.rint(coco.colours[None].astype(np.float32)) / 255
    assert np.allclose(preprocessors.process("segment_palette", painted[None], palette="coco")[0], painted)


def test_panoptic_segments_of_one_class_share_its_colour() -> None:
    labels = panoptic_to_labels(np.array([[1, 2], [3, 0]]), {1: 15, 2: 15, 3: 0})
    assert labels.tolist() == [[15, 15], [0, -1]]


def test_lines_are_white_on_black() -> None:
    image = np.ones((1, 64, 64, 3), np.float32)
    image[0, 30:33, 8:56] = 0
    for name in ("canny", "lines", "soft_edge", "scribble", "scribble_drawing", "lineart", "binary"):
        hint = preprocessors.process(name, image)
        assert 0 < hint.mean() < 0.3, name
        assert not hint[0, :10].any() and hint[0, 27:36].any(), name


def test_lines_sees_edges_of_one_brightness() -> None:
    image = np.zeros((1, 64, 64, 3), np.float32)
    image[0, :, :32], image[0, :, 32:] = (200 / 255, 0, 0), (0, 102 / 255, 0)
    assert preprocessors.process("lines", image)[0, :, 30:34].any()
    assert not preprocessors.process("lines", image, channels="gray").any()
