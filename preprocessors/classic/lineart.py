"""Line art without a network: pixels darker than their surroundings become lines, the brighter the darker they are."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..parallel import run_bands
from .gaussian import blurred_planes, least, reach

# Rows per histogram: cv2 counts in float32, which is exact only for small numbers.
_ROWS = 256


def lineart(picture: np.ndarray, *, sigma: float = 6.0, threshold: float = 8.0, threads: int = 1) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W) uint8, white lines on black.

    The smallest channel of G_sigma - picture, scaled so that the median of the values above `threshold` becomes 127.
    Source: the "standard" line art of ControlNet v1.1.
    """
    darker = run_bands(partial(darkness, sigma=sigma), picture, reach=reach(sigma), threads=threads, dtype=np.float32)
    typical = max(16.0, median_above(darker, threshold))
    np.divide(darker, np.float32(typical), out=darker)
    np.multiply(darker, np.float32(127.0), out=darker)
    return np.minimum(darker, np.float32(255.0), out=darker).astype(np.uint8)


def darkness(picture: np.ndarray, sigma: float) -> np.ndarray:
    """(H,W,3) uint8 -> min over the channels of G_sigma - picture, (H,W) float32 within 0..255."""
    import cv2

    both = zip(blurred_planes(picture, sigma), cv2.split(picture), strict=True)
    darker = least(np.subtract(surroundings, plane, out=surroundings) for surroundings, plane in both)
    return np.clip(darker, np.float32(0.0), np.float32(255.0), out=darker)


def median_above(values: np.ndarray, threshold: float) -> float:
    """The median of the values (H,W) float32 within 0..255 that are above `threshold`; 0 if none is.

    It equals np.median(values[values > threshold]), but sorts only the values near the median. A histogram of the
    rounded values tells which ones these are.
    """
    import cv2

    count = int(np.count_nonzero(values > threshold))
    if not count:
        return 0.0
    rounded = cv2.convertScaleAbs(values)
    # at_least[v] is the number of values that are rounded to v or more.
    at_least = _histogram(rounded)[::-1].cumsum()[::-1]
    middle = []
    # Ranks count from the largest value down.
    for rank in {(count - 1) // 2, count // 2}:
        level = int(np.flatnonzero(at_least > rank)[-1])
        near = values[rounded == level]
        # np.partition counts from the smallest value up.
        place = int(at_least[level]) - 1 - rank
        middle.append(np.partition(near, place)[place])
    return float(np.mean(middle))


def _histogram(rounded: np.ndarray) -> np.ndarray:
    """(H,W) uint8 -> (256,) int64."""
    import cv2

    total = np.zeros(256, np.int64)
    for top in range(0, len(rounded), _ROWS):
        total += cv2.calcHist([rounded[top : top + _ROWS]], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return total
