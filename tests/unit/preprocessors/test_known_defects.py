"""Defects of the pack that everybody uses, each on an input where it shows: ours must not have them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.palettes import labels_to_hint, palette

from .conftest import make_pictures


def test_floats_are_clamped_before_they_become_bytes() -> None:
    image = np.full((1, 4, 4, 3), 0.5, np.float32)
    image[0, 0, 0], image[0, 3, 3] = 1.004, -0.01
    wrapped = (image * 255).astype(np.int32).astype(np.uint8)
    assert wrapped[0, 0, 0, 0] == 0 and wrapped[0, 3, 3, 0] == 254, "the input must show the defect"
    hint = preprocessors.process("luminance", image)
    assert hint[0, 0, 0, 0] == 1.0 and hint[0, 3, 3, 0] == 0.0


def test_scribble_keeps_the_darkest_strokes_of_an_ink_drawing() -> None:
    paper = np.full((120, 160, 3), 250, np.uint8)
    for index in range(7):
        cv2.line(paper, (10 + 20 * index, 10), (25 + 18 * index, 110), (5, 5, 5), 1 + index % 3)
    hint = preprocessors.process("scribble", paper[None])[0, ..., 0] > 0
    narrow = cv2.GaussianBlur(paper.astype(np.float32), (0, 0), 0.5)
    wide = cv2.GaussianBlur(paper.astype(np.float32), (0, 0), 5.0)
    dog = (255 - np.min(wide - narrow, axis=2)).clip(0, 255).astype(np.uint8)
    overflowing = (np.uint8(2) * (np.uint8(255) - dog)) > 32
    lost = (hint & ~overflowing).sum() / hint.sum()
    assert lost > 0.05, "the input must show the defect"
    assert not (overflowing & ~hint).any()
    ink = paper.min(axis=2) < 50
    assert (hint & ink).sum() / ink.sum() > 0.95


@pytest.mark.parametrize("factor", [1, 2, 8, 16])
def test_tile_keeps_the_size_and_the_place(factor: int) -> None:
    rows, columns = np.mgrid[0:500, 0:741]
    spot = np.exp(-(((rows - 263.0) / 60) ** 2 + ((columns - 341.0) / 60) ** 2) / 2)
    image = np.repeat(spot[None, ..., None], 3, axis=-1).astype(np.float32)
    hint = preprocessors.process("tile", image, factor=factor)
    assert hint.shape == image.shape
    weight = hint[0, ..., 0].astype(np.float64)
    assert abs((weight * rows).sum() / weight.sum() - 263.0) < 0.1
    assert abs((weight * columns).sum() / weight.sum() - 341.0) < 0.1


def test_recolor_reads_red_as_red() -> None:
    image = np.zeros((1, 4, 4, 3), np.float32)
    image[..., 0] = 1.0
    red = preprocessors.process("recolor", image)[0, 0, 0, 0]
    blue = preprocessors.process("recolor", image[..., ::-1])[0, 0, 0, 0]
    assert red == pytest.approx(0.532, abs=0.01) and blue == pytest.approx(0.323, abs=0.01)


def test_binary_makes_ink_white() -> None:
    image = np.ones((1, 32, 32, 3), np.float32)
    image[0, 10:12] = 0.0
    hint = preprocessors.process("binary", image)
    assert hint[0, 10:12].all() and not hint[0, :10].any()


def test_the_palette_is_that_of_ade20k() -> None:
    names, colours = palette("ade20k").classes, palette("ade20k").colours
    expected = {"wall": (120, 120, 120), "sky": (6, 230, 230), "person": (150, 5, 61), "car": (0, 102, 200)}
    for name, colour in expected.items():
        assert tuple(colours[names.index(name)]) == colour
    hint = labels_to_hint(np.arange(150)[None])
    assert np.array_equal(np.rint(hint[0] * 255), colours)


def test_depth_keeps_its_levels() -> None:
    ramp = np.linspace(500, 60000, 1000).astype(np.uint16)
    hint = preprocessors.process("depth_map", np.tile(ramp, (4, 1))[None, ..., None])
    assert len(np.unique(hint)) == 1000
    assert hint[0, 0, 0, 0] == 1.0 and hint[0, 0, -1, 0] == 0.0


def test_shuffle_with_seed_0_is_repeatable_and_other_seeds_differ() -> None:
    image = make_pictures(1, 96, 96)
    first = preprocessors.process("shuffle", image, seed=0)
    assert np.array_equal(first, preprocessors.process("shuffle", image, seed=0))
    assert not np.array_equal(first, preprocessors.process("shuffle", image, seed=1))


def test_inpaint_marks_reach_the_net_unclamped() -> None:
    image = make_pictures(1)
    mask = np.zeros((48, 64), np.float32)
    mask[10:20, 30:40] = 1
    hint = preprocessors.process("inpaint", image, mask=mask)
    assert (hint[0, 10:20, 30:40] == -1.0).all()
    assert np.array_equal(hint[0, :10], image[0, :10])
    sdxl = preprocessors.process("inpaint", image, mask=mask, masked_value=0)
    assert not sdxl[0, 10:20, 30:40].any()


def test_hint_size_is_the_picture_s_unless_asked() -> None:
    image = make_pictures(1, 50, 74)
    assert preprocessors.process("canny", image, resolution=64, resize="shortest", multiple=64).shape == image.shape
    detected = preprocessors.process("canny", image, resolution=64, resize="shortest", output="detect_size")
    assert detected.shape == (1, 64, 95, 3)


def test_every_frame_of_a_batch_comes_back() -> None:
    image = make_pictures(17, 16, 16)
    assert preprocessors.process("canny", image).shape[0] == 17
