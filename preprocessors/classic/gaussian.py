"""Gaussian blurs of byte pictures in float32, channel by channel, bit for bit equal to cv2.GaussianBlur on x86.

cv2 keeps as many rows in memory as its kernel is high. If a row is a whole number of memory pages, or nearly so, these
rows share a few places of the cache, and the blur takes twice as long. Such planes get more columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

# The largest number of floats in a processor's vector register.
_VECTOR = 16


def reach(sigma: float) -> int:
    """The radius of cv2.GaussianBlur's kernel for a float picture, about four sigma."""
    return (round(sigma * 8 + 1) | 1) // 2


def blurred_planes(picture: np.ndarray, sigma: float) -> Iterator[np.ndarray]:
    """(H,W,3) uint8 -> the channels of cv2.GaussianBlur(float32 picture), each (H,W) float32."""
    import cv2

    # cv2 computes the last columns without vectors, and rounds them differently for another memory layout.
    if picture.shape[1] % _VECTOR:
        values = picture.astype(np.float32)
        yield from cv2.split(cv2.GaussianBlur(values, (0, 0), sigma, dst=values))
        return
    for plane in cv2.split(picture):
        yield blurred(plane, sigma)


def blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
    """(H,W) of any number type -> its float32 Gaussian blur (H,W)."""
    import cv2

    height, width = plane.shape
    wide = _roomy_width(width, reach(sigma))
    values = np.empty((height, wide), np.float32)
    values[:, :width] = plane
    if wide > width:
        # cv2 reflects at the border: the further columns hold what it would see there.
        extra = min(reach(sigma), wide - width)
        values[:, width : width + extra] = values[:, width - 1 - extra : width - 1][:, ::-1]
        values[:, width + extra :] = 0.0
    return cv2.GaussianBlur(values, (0, 0), sigma, dst=values)[:, :width]


def least(planes: Iterable[np.ndarray]) -> np.ndarray:
    """The minimum of the planes at each pixel, in the memory of the first one."""
    rest = iter(planes)
    smallest = next(rest)
    for plane in rest:
        np.minimum(smallest, plane, out=smallest)
    return smallest


def _roomy_width(width: int, margin: int) -> int:
    """`width`, or at least `margin` more if rows of float32 with that width share places of the cache."""
    if width <= margin + 1:
        return width
    candidates = (width, width + margin, width + margin + 64)
    return next(wide for wide in candidates if (wide + 32) % 512 >= 40)
