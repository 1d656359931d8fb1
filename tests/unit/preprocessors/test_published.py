"""Bit-equality with cv2, and with the published formulas written out plainly, on whole bytes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from comfyui_controlnet_core import preprocessors
from comfyui_controlnet_core.preprocessors.classic.lines import find_segments
from comfyui_controlnet_core.preprocessors.classic.soft_edge import safe_steps, thin, to_scribble
from comfyui_controlnet_core.preprocessors.resize import pixel_perfect

from .conftest import make_pictures


def photo(height: int = 97, width: int = 131, seed: int = 3) -> np.ndarray:
    """(H,W,3) uint8 with strokes, so that every detector finds something."""
    frame = np.rint(make_pictures(1, height, width, seed)[0] * 255).astype(np.uint8)
    for index in range(6):
        cv2.line(frame, (5 + 20 * index, 10), (30 + 15 * index, 85), (0, 10 * index, 20), 2)
    return frame


def run(name: str, frame: np.ndarray, **parameters: object) -> np.ndarray:
    """The hint as bytes (H,W,3)."""
    hint = preprocessors.process(name, frame[None], **parameters)[0]
    scaled = hint * np.float32(255)
    assert np.abs(scaled - np.rint(scaled)).max() < 1e-3
    return np.rint(scaled).astype(np.uint8)


def rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


@pytest.mark.parametrize(("low", "high", "l2"), [(100, 200, False), (50, 80, True), (10, 30, False)])
def test_canny(low: int, high: int, l2: bool) -> None:
    frame = photo()
    expected = cv2.Canny(frame, low, high, L2gradient=l2)
    assert expected.any()
    assert np.array_equal(run("canny", frame, low=low, high=high, l2_gradient=l2), rgb(expected))


def published_xdog(frame: np.ndarray, threshold: int) -> np.ndarray:
    narrow = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 0.5)
    wide = cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 5.0)
    dog = (255 - np.min(wide - narrow, axis=2)).clip(0, 255).astype(np.uint8)
    return np.where(2 * (255 - dog.astype(np.int16)) > threshold, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("threshold", [1, 31, 32, 33, 64, 200])
def test_xdog(threshold: int) -> None:
    frame = photo()
    expected = published_xdog(frame, threshold)
    assert 0 < expected.mean() < 255
    assert np.array_equal(run("scribble", frame, threshold=threshold), rgb(expected))


def test_scribble_from_a_drawing() -> None:
    frame = photo()
    expected = np.where(np.min(frame, axis=2) < 127, 255, 0).astype(np.uint8)
    assert np.array_equal(run("scribble_drawing", frame), rgb(expected))


def published_nms(soft: np.ndarray, threshold: float, sigma: float) -> np.ndarray:
    blurred = cv2.GaussianBlur(soft.astype(np.float32), (0, 0), sigma)
    kept = np.zeros_like(blurred)
    row = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], np.uint8)
    for kernel in (row, row.T.copy(), np.eye(3, dtype=np.uint8), np.eye(3, dtype=np.uint8)[::-1].copy()):
        np.putmask(kept, cv2.dilate(blurred, kernel) == blurred, blurred)
    return np.where(kept > threshold, 255, 0).astype(np.uint8)


def test_thinning_and_the_scribble_after_it() -> None:
    soft = (preprocessors.process("soft_edge", photo()[None])[0, ..., 0] * 255).astype(np.uint8)
    expected = published_nms(soft, 127, 3.0)
    assert expected.any()
    assert np.array_equal(thin(soft), expected)
    widened = cv2.GaussianBlur(expected, (0, 0), 3.0)
    assert np.array_equal(to_scribble(soft), np.where(widened > 4, 255, 0))


def test_safe_steps_have_three_levels() -> None:
    soft = np.linspace(0, 1, 1001, dtype=np.float32)
    safe = safe_steps(soft)
    assert set(safe.tolist()) == {0.0, 0.5, 1.0}
    published = ((soft * 3).astype(np.int32).astype(np.float32) / 2 * 255).clip(0, 255).astype(np.uint8)
    assert np.array_equal((safe * 255).astype(np.uint8), published)
    assert set(np.unique(published)) == {0, 127, 255}


def test_lineart() -> None:
    frame = photo()
    values = frame.astype(np.float32)
    darkness = np.min(cv2.GaussianBlur(values, (0, 0), 6.0) - values, axis=2).clip(0, 255)
    darkness /= max(16, np.median(darkness[darkness > 8]))
    darkness *= 127
    assert np.array_equal(run("lineart", frame), rgb(darkness.clip(0, 255).astype(np.uint8)))


def test_segments_are_those_of_opencv_on_gray() -> None:
    frame = photo()
    expected = cv2.createLineSegmentDetector(cv2.LSD_REFINE_STD).detect(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0]
    assert np.array_equal(find_segments(frame, channels="gray"), expected.reshape(-1, 4))


def test_blur_recolor_luminance_and_thresholds() -> None:
    frame = photo()
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    assert np.array_equal(run("blur", frame, sigma=4.0), cv2.GaussianBlur(frame, (0, 0), 4.0))
    assert np.array_equal(run("recolor", frame), rgb(cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)[..., 0]))
    value = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[..., 2]
    assert np.array_equal(run("recolor", frame, mode="intensity"), rgb(value))
    darker = ((value.astype(np.float32) / 255) ** np.float32(1.5) * 255).clip(0, 255).astype(np.uint8)
    assert np.array_equal(run("recolor", frame, mode="intensity", gamma=1.5), rgb(darker))
    assert np.array_equal(run("luminance", frame), rgb(gray))
    otsu = cv2.threshold(gray, 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)[1]
    assert np.array_equal(run("binary", frame), rgb(otsu))
    fixed = cv2.threshold(gray, 90, 255, cv2.THRESH_BINARY_INV)[1]
    assert np.array_equal(run("binary", frame, threshold=90), rgb(fixed))
    bright = np.where(np.min(frame, axis=2) > 127, 255, 0).astype(np.uint8)
    assert np.array_equal(run("threshold", frame), rgb(bright))


def test_color_grid() -> None:
    frame = photo(200, 260)
    cells = cv2.resize(frame, (260 // 64, 200 // 64), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(run("color_grid", frame), cv2.resize(cells, (260, 200), interpolation=cv2.INTER_NEAREST))


@pytest.mark.parametrize("seed", [0, 7])
def test_shuffle(seed: int) -> None:
    frame = photo()
    height, width = frame.shape[:2]
    rng = np.random.default_rng(seed)

    def disk() -> np.ndarray:
        noise = rng.uniform(low=0, high=1, size=(height // 256 + 2, width // 256 + 2, 1))
        noise = cv2.resize(noise, (width + 512, height + 512), interpolation=cv2.INTER_CUBIC)
        noise = noise[256 : 256 + height, 256 : 256 + width]
        noise -= np.min(noise)
        return noise / np.max(noise)

    flow = np.stack([disk() * float(width - 1), disk() * float(height - 1)], axis=2).astype(np.float32)
    assert np.array_equal(run("shuffle", frame, seed=seed), cv2.remap(frame, flow, None, cv2.INTER_LINEAR))


@pytest.mark.parametrize(
    ("size", "target", "fit", "expected"),
    [
        ((500, 741), (512, 512), "crop", 512),
        ((500, 741), (512, 512), "fill", 345),
        ((100, 50), (64, 96), "crop", 96),
    ],
)
def test_pixel_perfect(size: tuple[int, int], target: tuple[int, int], fit: str, expected: int) -> None:
    assert pixel_perfect(*size, *target, fit=fit) == expected
    image = make_pictures(1, *size)
    hint = preprocessors.process("canny", image, resize="pixel_perfect", target=target, fit=fit, output="detect_size")
    assert min(hint.shape[1:3]) == expected
