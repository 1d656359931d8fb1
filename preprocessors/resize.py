"""Sizes: at which size a preprocessor sees a picture, and how a hint is resized to the picture's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import ParameterError, check_choice
from .limits import MAX_SIDE

Interpolation = Literal["nearest", "smooth"]


@dataclass(frozen=True)
class Size:
    """The size to which a picture is resized, and the size after padding at the bottom and right."""

    height: int
    width: int
    padded_height: int
    padded_width: int


def pixel_perfect(height: int, width: int, target_height: int, target_width: int, *, fit: str = "crop") -> int:
    """The shorter side at which one pixel of the hint becomes one pixel of the generated picture (sd-webui's formula).

    fit: "crop" if the hint will cover the target and be cropped (the larger of both ratios counts), "fill" if it will
    lie inside the target (the smaller one counts).
    """
    check_choice("fit", fit, ("crop", "fill"))
    ratios = (target_height / height, target_width / width)
    ratio = max(ratios) if fit == "crop" else min(ratios)
    return max(1, round(ratio * min(height, width)))


def detect_size(
    height: int,
    width: int,
    *,
    resolution: int,
    resize: str,
    multiple: int,
    target: tuple[int, int] | None = None,
    fit: str = "crop",
) -> Size:
    """The size at which a preprocessor sees a picture of height x width.

    resize: "input" is its own size. "shortest" makes its shorter side `resolution`. "pixel_perfect" takes the size from
    `target` = (height, width) of the picture to be generated, or from a square with the side `resolution`.
    Raises ParameterError for options that contradict each other or make too large a picture.
    """
    check_choice("resize", resize, ("input", "shortest", "pixel_perfect"))
    if resize == "input" and resolution:
        raise ParameterError(
            f"resolution={resolution} has no effect with resize='input', which keeps the picture's size: choose "
            "resize='shortest' to make it the shorter side, or leave the resolution at 0"
        )
    if resolution < 0:
        raise ParameterError(f"resolution={resolution}: choose 0 for the picture's own size, or more")
    if target is None and resolution:
        target = (resolution, resolution)
    if resize == "pixel_perfect" and target is not None:
        side = pixel_perfect(height, width, *target, fit=fit)
    else:
        side = resolution or min(height, width)
    if multiple < 1:
        raise ParameterError(f"multiple={multiple}: choose 1 or more")
    scale = side / min(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    # A picture that is already larger is accepted: it is in memory, and is not enlarged.
    if max(new_height, new_width) > max(MAX_SIDE, height, width) or multiple > MAX_SIDE:
        raise ParameterError(
            f"resolution={resolution} and multiple={multiple} make {new_width}x{new_height} pixels, padded to the "
            f"multiple, of a picture of {width}x{height}; expected at most {MAX_SIDE}: choose a smaller resolution "
            "or multiple"
        )
    return Size(new_height, new_width, -(-new_height // multiple) * multiple, -(-new_width // multiple) * multiple)


def resize_picture(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h,w) or (h,w,C), uint8 or float32: by areas to a smaller size, by cubic interpolation to a larger one."""
    import cv2

    if picture.shape[:2] == (height, width):
        return picture
    resized = _resize(picture, height, width, enlarge=cv2.INTER_CUBIC)
    # Cubic interpolation overshoots at edges; cv2 clamps bytes itself.
    return resized if picture.dtype == np.uint8 else np.clip(resized, 0.0, 1.0, out=resized)


def resize_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h,w,C) float32 measurements. With infinite or missing values, by nearest neighbour."""
    import cv2

    if values.shape[:2] == (height, width):
        return values
    # One infinite value would spread over all pixels that are interpolated with it.
    if np.isfinite(values).all():
        resized = _resize(values, height, width, enlarge=cv2.INTER_LINEAR)
    else:
        resized = cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    # cv2 drops a last axis of 1.
    return resized.reshape(height, width, -1)


def resize_hint(hint: np.ndarray, height: int, width: int, interpolation: Interpolation) -> np.ndarray:
    """Resize a hint. "nearest" makes no new values, so that labels and lines keep theirs."""
    import cv2

    if hint.shape[:2] == (height, width):
        return hint
    if interpolation == "nearest":
        return cv2.resize(hint, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    resized = _resize(hint, height, width, enlarge=cv2.INTER_LINEAR)
    if resized.dtype == np.uint8:
        return resized
    # A mean of ones may be rounded to a little more than one. The limits are the hint's own: inpainting has -1.
    return np.clip(resized, hint.min(), hint.max(), out=resized)


def _resize(picture: np.ndarray, height: int, width: int, *, enlarge: int) -> np.ndarray:
    """By areas to a smaller size, which averages all pixels; by the interpolation `enlarge` to a larger one."""
    import cv2

    shrinks = height * width < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else enlarge)


def pad_reflect(picture: np.ndarray, size: Size) -> np.ndarray:
    """Pad (H,W) or (H,W,C) at the bottom and right to the padded size, by reflection."""
    import cv2

    bottom, right = size.padded_height - picture.shape[0], size.padded_width - picture.shape[1]
    if not (bottom or right):
        return picture
    padded = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REFLECT)
    # cv2 drops a last axis of 1.
    return padded.reshape(*padded.shape[:2], *picture.shape[2:])
