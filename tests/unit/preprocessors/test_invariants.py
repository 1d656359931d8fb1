"""What holds for every weight-free preprocessor, whatever comes in."""

from __future__ import annotations

import socket
import subprocess
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.entry import Entry

from .conftest import WEIGHT_FREE, make_pictures, options_of

LARGE = 4096
SECONDS_AT_LARGE = frozenset(  # the others take a fraction of one
    {
        "lines",
        "soft_edge",
        "scribble_soft_edge",
        "depth_map",
        "depth_stereo",
        "normal_depth",
        "normal_convert",
        "segment_palette",
        "segment_regions",
    }
)
OF_THE_NEIGHBOURHOOD = frozenset(  # a pixel of the hint depends on those around it alone
    {"scribble", "scribble_drawing", "soft_edge", "tile", "blur", "recolor", "luminance", "threshold", "normal_convert"}
    | {"segment_palette", "inpaint", "ip2p", "reference", "invert"}
)


def run(entry: Entry, image: np.ndarray, **options: Any) -> np.ndarray:
    return preprocessors.process(entry, image, **{**options_of(entry, image), **options})


def expected_width(entry: Entry, width: int) -> int:
    return width // 2 if entry.side_by_side else width


def check(entry: Entry, hint: np.ndarray, count: int, height: int, width: int) -> None:
    check_size(entry, hint, count, height, expected_width(entry, width))


def check_size(entry: Entry, hint: np.ndarray, count: int, height: int, width: int) -> None:
    assert hint.shape == (count, height, width, 3)
    assert hint.dtype == np.float32 and np.isfinite(hint).all()
    assert hint.min() >= (-1.0 if entry.name == "inpaint" else 0.0) and hint.max() <= 1.0


def test_a_batch_equals_its_singles(entry: Entry) -> None:
    image = make_pictures(3)
    batch = run(entry, image)
    check(entry, batch, 3, 48, 64)
    for index in range(3):
        assert np.array_equal(batch[index : index + 1], run(entry, image[index : index + 1]))


@pytest.mark.parametrize(("height", "width"), [(1, 2), (2, 2), (3, 5), (7, 4), (37, 53), (1, 40), (40, 2)])
def test_any_size(entry: Entry, height: int, width: int) -> None:
    check(entry, run(entry, make_pictures(1, height, width)), 1, height, width)


def test_a_single_pixel(entry: Entry) -> None:
    image = np.full((1, 1, 1, 3), 0.3, np.float32)
    if entry.side_by_side:
        with pytest.raises(preprocessors.PictureError, match="1 pixel wide"):
            run(entry, image)
    else:
        check(entry, run(entry, image), 1, 1, 1)


def test_a_long_picture(entry: Entry) -> None:
    check(entry, run(entry, make_pictures(1, 24, 4096)), 1, 24, 4096)


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """(1,4096,4096,3) uint8: one picture and its mirror images over and over."""
    picture = np.rint(make_pictures(1, 512, 512)[0] * 255).astype(np.uint8)
    block = np.block([[[picture], [picture[:, ::-1]]], [[picture[::-1]], [picture[::-1, ::-1]]]])
    return np.tile(block, (LARGE // 1024, LARGE // 1024, 1))[None]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] if entry.name in SECONDS_AT_LARGE else [])
        for entry in WEIGHT_FREE
    ],
)
@pytest.mark.slow
def test_4096_pixels_square(kind: Entry, large: np.ndarray) -> None:
    options = options_of(kind, large)
    hint = preprocessors.process(kind, large, **options)
    check(kind, hint, 1, LARGE, LARGE)
    if kind.name in OF_THE_NEIGHBOURHOOD:
        corner = preprocessors.process(
            kind, large[:, -512:, -512:], **{name: mask[:, -512:, -512:] for name, mask in options.items()}
        )
        assert np.array_equal(hint[:, -256:, -256:], corner[:, -256:, -256:])
    elif kind.nature == "measurement" and not kind.side_by_side:  # the picture is no stereo pair
        assert hint.min() < hint.max(), "something is found"


def test_a_constant_picture(entry: Entry) -> None:
    for level in (0.0, 0.5, 1.0):
        check(entry, run(entry, np.full((1, 20, 24, 3), level, np.float32)), 1, 20, 24)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gray_rgb_and_alpha(entry: Entry, channels: int) -> None:
    image = make_pictures(1)
    gray = image.mean(axis=-1, keepdims=True)
    alpha = np.ones_like(gray)
    whole = {1: gray, 2: np.concatenate([gray, alpha], -1), 3: image, 4: np.concatenate([image, alpha], -1)}
    same = {1: np.repeat(gray, 3, -1), 2: np.repeat(gray, 3, -1), 3: image, 4: image}
    assert np.allclose(run(entry, whole[channels]), run(entry, same[channels]), atol=1e-6)


def test_integers_read_like_floats(entry: Entry) -> None:
    image = make_pictures(1)
    as_bytes = np.rint(image * 255).astype(np.uint8)
    as_words = as_bytes.astype(np.uint16) * 257
    expected = run(entry, image)
    if entry.takes == "values":  # the values are measurements in their own unit; a range is measured, no scale
        options = {"relief": 0.5} if entry.name == "normal_depth" else {}
        assert np.allclose(run(entry, as_words, **options), expected, atol=1e-4)
    else:
        assert np.array_equal(run(entry, as_bytes), expected)
        assert np.allclose(run(entry, as_words), expected, atol=1e-6)


def test_tensors_of_any_precision(entry: Entry) -> None:
    image = make_pictures(1)
    hint = run(entry, torch.from_numpy(image))
    assert isinstance(hint, torch.Tensor)
    assert np.array_equal(hint.numpy(), run(entry, image))
    check(entry, run(entry, torch.from_numpy(image).half()).numpy(), 1, 48, 64)
    check(entry, run(entry, torch.from_numpy(image).bfloat16()).numpy(), 1, 48, 64)
    check(entry, run(entry, image.astype(np.float64)), 1, 48, 64)


def test_values_outside_the_range_and_nan(entry: Entry) -> None:
    image = make_pictures(1)
    strange = image.copy()
    strange[0, :4, :4] = 1.004
    strange[0, :4, 4:8] = -0.01
    strange[0, :4, 8:12] = np.nan
    strange[0, :4, 12:16] = np.inf
    hint = run(entry, strange)
    check(entry, hint, 1, 48, 64)
    if entry.takes != "values":
        tame = image.copy()
        tame[0, :4, :4], tame[0, :4, 4:8], tame[0, :4, 8:12], tame[0, :4, 12:16] = 1, 0, 0, 1
        assert np.array_equal(hint, run(entry, tame))


def test_the_input_is_left_alone(entry: Entry) -> None:
    image = make_pictures(1)
    before = image.copy()
    run(entry, image)
    assert np.array_equal(image, before)


def test_same_seed_same_result(entry: Entry) -> None:
    image = make_pictures(1)
    assert np.array_equal(run(entry, image, seed=0), run(entry, image, seed=0))
    assert np.array_equal(run(entry, image, seed=5), run(entry, image, seed=5))


def test_sizes_on_request(entry: Entry) -> None:
    image = make_pictures(2, 30, 44)
    for output, (height, width) in {"input_size": (30, 44), "detect_size": (60, 88)}.items():
        if entry.side_by_side:
            width = 22 if output == "input_size" else round(22 * 60 / 22)
            height = 30 if output == "input_size" else round(30 * 60 / 22)
        hint = run(entry, image, resolution=60, resize="shortest", multiple=64, output=output)
        check_size(entry, hint, 2, height, width)


@pytest.mark.parametrize("resolution", [33, 68, 77, 119])
def test_white_stays_in_the_range_when_resized(entry: Entry, resolution: int) -> None:
    """A mean of ones, rounded, was 1.0000001."""
    image = np.ones((1, 48, 64, 3), np.float32)
    hint = run(entry, image, resolution=resolution, resize="shortest")
    check(entry, hint, 1, 48, 64)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sides_are_padded_for_any_number_of_channels(entry: Entry, channels: int) -> None:
    image = np.concatenate([make_pictures(1, 30, 44), np.ones((1, 30, 44, 1), np.float32)], axis=-1)[..., -channels:]
    check(entry, run(entry, image, multiple=64), 1, 30, 44)


def test_binary_hints_stay_binary_when_resized(entry: Entry) -> None:
    hint = run(entry, make_pictures(1))
    if set(np.unique(hint)) <= {0.0, 1.0} and entry.resample == "nearest":
        resized = run(entry, make_pictures(1), resolution=96, resize="shortest")
        assert set(np.unique(resized)) <= {0.0, 1.0}


def test_an_empty_batch(entry: Entry) -> None:
    image = make_pictures(1)[:0]
    assert run(entry, image).shape == (0, 48, expected_width(entry, 64), 3)


def test_no_network_and_no_subprocess(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a preprocessor reached out")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    run(entry, make_pictures(1))


def test_progress_counts_every_frame_and_can_stop_the_run(entry: Entry) -> None:
    seen: list[tuple[int, int]] = []
    image = make_pictures(3)
    run(entry, image, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(entry, image, progress=stop)


def test_a_mask_clears_the_hint_outside_of_it(entry: Entry) -> None:
    if entry.masked:
        pytest.skip("reads the mask itself")
    image = make_pictures(1)
    width = expected_width(entry, 64)
    mask = np.zeros((48, width), np.float32)
    mask[:, : width // 2] = 1
    whole, masked = run(entry, image), run(entry, image, mask=mask)
    assert np.array_equal(masked[:, :, : width // 2], whole[:, :, : width // 2])
    assert not masked[:, :, width // 2 :].any()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((2, 8, 8, 5), np.float32), "5"),
        (np.zeros((8, 8, 8), np.float32), "channels last"),
        (np.zeros((1, 0, 8, 3), np.float32), "nothing in it"),
        (np.zeros((1, 8, 8, 3), np.int64), "scale the values"),
    ],
)
def test_what_is_no_picture_is_refused(image: np.ndarray, words: str) -> None:
    with pytest.raises(preprocessors.PictureError, match=words):
        preprocessors.process("canny", image)


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 64},
        {"resize": "longest"},
        {"output": "same"},
        {"normalize": "all"},
        {"multiple": 0},
        {"multiple": -8},
        {"resize": "shortest", "resolution": -1},
        {"resize": "pixel_perfect", "resolution": 64, "fit": "squash"},
        {"strength": 1.0},
        {"seed": -1},
        {"resize": "shortest", "resolution": 1_000_000},
        {"resize": "pixel_perfect", "target": (1_000_000, 64)},
        {"multiple": 1_000_000},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(preprocessors.ParameterError):
        preprocessors.process("canny", make_pictures(1), **options)


def test_a_picture_that_comes_larger_than_any_may_be_made_is_looked_at() -> None:
    image = np.zeros((1, 2, 20_000, 3), np.uint8)
    assert preprocessors.process("invert", image, multiple=64).shape == (1, 2, 20_000, 3)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(preprocessors.PictureError, match="resize the mask"):
        preprocessors.process("canny", make_pictures(2), mask=np.zeros((3, 48, 64)))


def test_inpaint_without_a_mask_is_refused() -> None:
    with pytest.raises(preprocessors.ParameterError, match="needs a mask"):
        preprocessors.process("inpaint", make_pictures(1))
