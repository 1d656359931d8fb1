"""Soft edges without a network: how strongly the colours differ between the two halves of a small disc."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ..image_ops import above, lab
from ..parallel import run_each

_ORIENTATIONS = 8
_BILATERAL_WIDTH = 5
_WHOLE_PIXELS = 2**24


def soft_edge(
    picture: np.ndarray,
    *,
    radius: int = 3,
    smoothing: int = 3,
    contrast: float = 16.0,
    safe: bool = False,
    threads: int = 1,
) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W) float32 0..1, brighter where the edge is stronger.

    After `smoothing` bilateral passes in Lab, the mean colours of both halves of a disc of `radius` pixels are compared
    in eight orientations. The largest distance d (in Lab units) becomes 1 - exp(-(d / contrast)^2). `safe` keeps three
    levels (see `safe_steps`). Source: the half-disc gradient of Martin et al. 2004, without its learned weights.
    """
    import cv2

    height, width = picture.shape[:2]
    if height * width > _WHOLE_PIXELS:
        settings = {"radius": radius, "smoothing": smoothing, "contrast": contrast, "safe": safe, "threads": threads}
        return _in_bands(picture, smoothing * (_BILATERAL_WIDTH // 2) + radius, settings)
    colours = lab(picture)
    for _ in range(smoothing):
        colours = cv2.bilateralFilter(colours, _BILATERAL_WIDTH, 20.0, 3.0)
    # Each thread takes some of the orientations. The maximum does not depend on who computed it.
    kernels = half_discs(radius)
    shares: list[np.ndarray | None] = [None] * min(threads, len(kernels))

    def share(index: int) -> None:
        shares[index] = _strongest(colours, kernels[index :: len(shares)])

    run_each(share, len(shares), threads, lambda done: None)
    strongest = np.maximum.reduce([part for part in shares if part is not None])
    soft = np.float32(1.0) - np.exp(strongest * np.float32(-1.0 / contrast**2))
    return safe_steps(soft) if safe else soft


def _in_bands(picture: np.ndarray, reach: int, settings: dict[str, Any]) -> np.ndarray:
    """`soft_edge` of bands of rows: 8192 x 8192 would take 7 GB at once. reach: rows that a pixel depends on.

    Only for large pictures: cv2's bilateral filter quantises by the range of what it sees, so that a band differs in
    the fourth digit from the same rows of the whole.
    """
    height, width = picture.shape[:2]
    rows = max(4 * reach, _WHOLE_PIXELS // 4 // width)
    soft = np.empty((height, width), np.float32)
    for top in range(0, height, rows):
        low = max(0, top - reach)
        made = soft_edge(picture[low : top + rows + reach], **settings)
        soft[top : top + rows] = made[top - low :][:rows]
    return soft


def _strongest(lab: np.ndarray, kernels: Sequence[np.ndarray]) -> np.ndarray:
    """The largest squared distance between both halves of the discs, (H,W) float32."""
    import cv2

    strongest = np.zeros(lab.shape[:2], np.float32)
    for kernel in kernels:
        difference = cv2.filter2D(lab, -1, kernel, borderType=cv2.BORDER_REFLECT)
        lightness, red_green, blue_yellow = cv2.split(cv2.multiply(difference, difference, dst=difference))
        np.add(lightness, red_green, out=lightness)
        np.maximum(strongest, np.add(lightness, blue_yellow, out=lightness), out=strongest)
    return strongest


@cache
def half_discs(radius: int) -> tuple[np.ndarray, ...]:
    """Kernels (2r+1,2r+1) float32 for 8 orientations: the mean of one half of a disc minus the mean of the other."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    inside = x * x + y * y <= (radius + 0.5) ** 2
    kernels = []
    for index in range(_ORIENTATIONS):
        angle = np.pi * index / _ORIENTATIONS
        sides = np.where(inside, np.clip(x * np.cos(angle) + y * np.sin(angle), -1.0, 1.0), 0.0)
        kernels.append((sides / sides.clip(min=0.0).sum()).astype(np.float32))
    return tuple(kernels)


def safe_steps(soft: np.ndarray, steps: int = 2) -> np.ndarray:
    """Reduce 0..1 to floor((steps + 1) x) / steps, by default 0, 1/2 and 1, so that no gray picture hides in the map.

    Source: ControlNet v1.1's "safe" soft edges. 1 stays 1.
    """
    return np.minimum(np.floor(soft * np.float32(steps + 1)) / np.float32(steps), np.float32(1.0))


def thin(soft: np.ndarray, *, threshold: float = 127.0, sigma: float = 3.0) -> np.ndarray:
    """Ridges of a soft map: (H,W) uint8 -> (H,W) uint8 0 or 255.

    After a blur by `sigma`, a pixel stays if it is the largest of three in one of four directions and is above
    `threshold`. Source: the non-maximum suppression of ControlNet's scribbles.
    """
    import cv2

    blurred = cv2.GaussianBlur(soft.astype(np.float32), (0, 0), sigma)
    ridge = np.zeros(soft.shape, bool)
    for kernel in _line_kernels():
        ridge |= cv2.dilate(blurred, kernel) == blurred
    return np.where(ridge & (blurred > threshold), np.uint8(255), np.uint8(0))


def to_scribble(soft: np.ndarray) -> np.ndarray:
    """A soft map (H,W) uint8 -> strokes 0 or 255: ridges, widened by a blur whose values above 4 count."""
    import cv2

    strokes = cv2.GaussianBlur(thin(soft), (0, 0), 3.0)
    return above(strokes, 4)


def soft_scribble(
    picture: np.ndarray, *, radius: int = 3, smoothing: int = 3, contrast: float = 16.0, threads: int = 1
) -> np.ndarray:
    """Strokes along the soft edges: (H,W,3) uint8 RGB -> (H,W) uint8 0 or 255."""
    soft = soft_edge(picture, radius=radius, smoothing=smoothing, contrast=contrast, threads=threads)
    return to_scribble((soft * np.float32(255.0)).astype(np.uint8))


def _line_kernels() -> tuple[np.ndarray, ...]:
    flat = np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], np.uint8)
    diagonal = np.eye(3, dtype=np.uint8)
    return flat, np.ascontiguousarray(flat.T), diagonal, np.ascontiguousarray(diagonal[::-1])
