"""Sizes: at which size a preprocessor sees a picture, and how a hint is resized to the picture's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import ParameterError
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
    if fit not in ("crop", "fill"):
        raise ParameterError(f"fit={fit!r}: choose 'crop' or 'fill'")
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
    if resize == "input":
        if resolution:
            raise ParameterError(
                f"resolution={resolution} has no effect with resize='input', which keeps the picture's size: choose "
                "resize='shortest' to make it the shorter side, or leave the resolution at 0"
            )
        side = min(height, width)
    elif resize in ("shortest", "pixel_perfect"):
        side = _side(height, width, resolution, resize, target, fit)
    else:
        raise ParameterError(f"resize={resize!r}: choose 'input', 'shortest' or 'pixel_perfect'")
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


def _side(height: int, width: int, resolution: int, resize: str, target: tuple[int, int] | None, fit: str) -> int:
    if resolution < 0:
        raise ParameterError(f"resolution={resolution}: choose 0 for the picture's own size, or more")
    if resize == "shortest":
        return resolution or min(height, width)
    if target is None:
        if not resolution:
            return min(height, width)
        target = (resolution, resolution)
    return pixel_perfect(height, width, target[0], target[1], fit=fit)


def resize_picture(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h,w) or (h,w,C), uint8 or float32: by areas to a smaller size, by cubic interpolation to a larger one."""
    import cv2

    if picture.shape[:2] == (height, width):
        return picture
    shrinks = height * width < picture.shape[0] * picture.shape[1]
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    # Cubic interpolation overshoots at edges; cv2 clamps bytes itself.
    return resized if picture.dtype == np.uint8 else np.clip(resized, 0.0, 1.0, out=resized)


def resize_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h,w,C) float32 measurements. With infinite or missing values, by nearest neighbour."""
    import cv2

    if values.shape[:2] == (height, width):
        return values
    shrinks = height * width < values.shape[0] * values.shape[1]
    smooth = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # One infinite value would spread over all pixels that are interpolated with it.
    interpolation = smooth if np.isfinite(values).all() else cv2.INTER_NEAREST_EXACT
    return cv2.resize(values, (width, height), interpolation=interpolation).reshape(height, width, -1)


def resize_hint(hint: np.ndarray, height: int, width: int, interpolation: Interpolation) -> np.ndarray:
    """Resize a hint. "nearest" makes no new values, so that labels and lines keep theirs."""
    import cv2

    if hint.shape[:2] == (height, width):
        return hint
    if interpolation == "nearest":
        return cv2.resize(hint, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    shrinks = height * width < hint.shape[0] * hint.shape[1]
    resized = cv2.resize(hint, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if resized.dtype == np.uint8:
        return resized
    # A mean of ones may be rounded to a little more than one. The limits are the hint's own: inpainting has -1.
    return np.clip(resized, hint.min(), hint.max(), out=resized)


def pad_reflect(picture: np.ndarray, size: Size) -> np.ndarray:
    """Pad (H,W) or (H,W,C) at the bottom and right to the padded size, by reflection."""
    import cv2

    bottom, right = size.padded_height - picture.shape[0], size.padded_width - picture.shape[1]
    if not (bottom or right):
        return picture
    padded = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REFLECT)
    # cv2 drops a last axis of 1.
    return padded.reshape(*padded.shape[:2], *picture.shape[2:])
