"""The five hints that the demo ControlNets are trained on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.depth import depth_to_hint
from comfyui_controlnet_core.preprocessors.palettes import labels_to_hint, palette
from comfyui_controlnet_core.preprocessors.pose import draw_poses


def pictures(count: int = 2, height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = [cv2.GaussianBlur(rng.random((height, width, 3)), (0, 0), 2) for _ in range(count)]
    stretched = [(frame - frame.min()) / np.ptp(frame) for frame in smooth]
    return np.rint(np.stack(stretched) * 255).astype(np.float32) / 255


def test_canny_is_cv2_canny_on_the_colour_picture() -> None:
    image = pictures()
    hint = preprocessors.process("canny", image)
    for frame, made in zip(image, hint, strict=True):
        expected = cv2.Canny(np.rint(frame * 255).astype(np.uint8), 100, 200)
        assert 0 < (expected > 0).mean() < 0.5
        assert np.array_equal(made, np.repeat(expected[..., None] / np.float32(255), 3, axis=-1))


def test_a_tensor_comes_back_as_a_tensor() -> None:
    image = torch.from_numpy(pictures())
    hint = preprocessors.process("scribble", image)
    assert isinstance(hint, torch.Tensor) and hint.shape == image.shape and hint.dtype == torch.float32
    assert set(hint.unique().tolist()) == {0.0, 1.0}


def test_pose_is_drawn_to_scale() -> None:
    person = np.zeros((1, 18, 3))
    person[0, 0] = (20, 64, 1)
    person[0, 1] = (108, 64, 1)
    hint = draw_poses(person, 128, 128, limb_half_width=1.5, joint_radius=2)
    column = hint[:, 64]
    assert 2 <= np.count_nonzero(column.any(axis=-1)) <= 4
    assert hint[64, 20].tolist() == [1.0, 0.0, 0.0]
    assert np.allclose(hint[64, 64] * 255, (0, 0, 153))
    assert draw_poses(np.zeros((0, 18, 3)), 8, 9).shape == (8, 9, 3)


def test_depth_near_is_white_and_the_sky_black() -> None:
    depth = torch.tensor([[1.0, 2.0, float("inf")], [4.0, float("nan"), 8.0]])
    hint = depth_to_hint(depth)[..., 0]
    assert hint[0, 0] == 1.0 and hint[1, 2] == 0.0 and hint[0, 2] == 0.0 and hint[1, 1] == 0.0
    assert hint[0, 0] > hint[0, 1] > hint[1, 0] > 0


def test_labels_take_the_colours_of_ade20k() -> None:
    names, colours = palette("ade20k").classes, palette("ade20k").colours
    assert (names[0], names[2], names[12], names[149]) == ("wall", "sky", "person", "flag")
    hint = labels_to_hint(np.array([[2, 12, -1]]))
    assert np.array_equal(np.rint(hint * 255), [[colours[2], colours[12], (0, 0, 0)]])
    assert len({tuple(colour) for colour in colours.tolist()}) == 149


def test_unknown_names_and_ranges_are_refused() -> None:
    with pytest.raises(preprocessors.ParameterError, match="did you mean canny"):
        preprocessors.get("cany")
    with pytest.raises(preprocessors.ParameterError, match="low"):
        preprocessors.process("canny", pictures(), low=-1)
