"""Hints made of the picture itself: tile, blur, recolor, colour grid, thresholds, inpaint."""

from __future__ import annotations

import numpy as np

from ..errors import ParameterError
from ..image_ops import BYTE_TO_UNIT, above, darkest, gray


def same(picture: np.ndarray) -> np.ndarray:
    """The picture as it is, (H,W,3) float32 0..1: instruct-pix2pix and reference read it so."""
    return picture


def invert(picture: np.ndarray) -> np.ndarray:
    """1 - picture, (H,W,3) float32 0..1: black lines on white become white lines on black, and back."""
    return np.float32(1.0) - picture


def tile(picture: np.ndarray, *, factor: int = 1) -> np.ndarray:
    """(H,W,3) float32 0..1 -> the same size, without detail finer than `factor` pixels.

    The v1.1 tile network reads the resized picture as it is, factor 1. A larger factor averages areas and enlarges them
    again about the same centre, so that nothing moves at any size.
    """
    import cv2

    if factor == 1:
        return picture
    # Cubic enlargement overshoots at edges, hence the clip below.
    height, width = picture.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    reduced = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    enlarged = cv2.resize(reduced, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(enlarged, 0.0, 1.0, out=enlarged)


def blur(picture: np.ndarray, *, sigma: float = 9.0) -> np.ndarray:
    """(H,W,3) uint8 -> the picture blurred by a Gaussian of `sigma` pixels, exactly cv2.GaussianBlur."""
    import cv2

    return cv2.GaussianBlur(picture, (0, 0), sigma)


def recolor(picture: np.ndarray, *, mode: str = "luminance", gamma: float = 1.0) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W) uint8: the lightness of Lab or the value of HSV, to the power `gamma`."""
    import cv2

    space, number = (cv2.COLOR_RGB2LAB, 0) if mode == "luminance" else (cv2.COLOR_RGB2HSV, 2)
    channel = cv2.cvtColor(np.ascontiguousarray(picture), space)[..., number]
    if gamma == 1.0:
        return np.ascontiguousarray(channel)
    table = (BYTE_TO_UNIT ** np.float32(gamma) * np.float32(255.0)).clip(0, 255).astype(np.uint8)
    return table[np.asarray(channel, np.uint8)]


def color_grid(picture: np.ndarray, *, cell: int = 64) -> np.ndarray:
    """(H,W,3) uint8 -> the same size in flat cells of about `cell` pixels, as T2I-Adapter reads colours."""
    import cv2

    # As T2I-Adapter's own code: cubic down, which samples rather than averages, and nearest up.
    height, width = picture.shape[:2]
    cells = (max(1, width // cell), max(1, height // cell))
    reduced = cv2.resize(picture, cells, interpolation=cv2.INTER_CUBIC)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_NEAREST)


def binary(picture: np.ndarray, *, threshold: int = 0) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W) uint8: dark pixels become white. Threshold 0 lets Otsu's method choose."""
    import cv2

    way = cv2.THRESH_BINARY_INV + (0 if threshold else cv2.THRESH_OTSU)
    return cv2.threshold(gray(picture), threshold, 255, way)[1]


def threshold(picture: np.ndarray, *, level: int = 127) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W) uint8: white where the smallest channel is above `level`."""
    return above(darkest(picture), level)


def inpaint(picture: np.ndarray, *, mask: np.ndarray | None, masked_value: float = -1.0) -> np.ndarray:
    """(H,W,3) float32 0..1 and a mask (H,W), 1 = repaint -> the picture with `masked_value` under the mask.

    The v1.1 inpaint network recognises a masked pixel by -1, which must reach it unclamped; some SDXL networks use 0.
    Raises ParameterError without a mask.
    """
    if mask is None:
        raise ParameterError("inpaint needs a mask: give the area to repaint as mask, 1 where to repaint")
    # Half-covered pixels at the border of a mask must not become a mean of picture and mark.
    return np.where(mask[..., None] > 0.5, np.float32(masked_value), picture)


def shuffle(picture: np.ndarray, *, seed: int, grain: int = 256) -> np.ndarray:
    """(H,W,3) uint8 -> the same colours, moved by two smooth random fields of `grain` pixels.

    The same seed gives the same picture, 0 included. Source: the content shuffle of ControlNet v1.1.
    """
    import cv2

    height, width = picture.shape[:2]
    rng = np.random.default_rng(seed)
    x = noise_field(rng, height, width, grain) * float(width - 1)
    y = noise_field(rng, height, width, grain) * float(height - 1)
    # Two planes take less memory than one array of pairs, and the result is the same bit for bit.
    maps = (x.astype(np.float32), y.astype(np.float32))
    return cv2.remap(np.ascontiguousarray(picture), *maps, cv2.INTER_LINEAR)


def noise_field(rng: np.random.Generator, height: int, width: int, grain: int) -> np.ndarray:
    """(H,W) float64 in 0..1: uniform noise on a coarse grid, enlarged bicubically, stretched to its range."""
    import cv2

    # The resize repeats the grid's border, so a margin of one cell on each side is cut off again.
    coarse = rng.uniform(low=0, high=1, size=(height // grain + 2, width // grain + 2, 1))
    noise = cv2.resize(coarse, (width + 2 * grain, height + 2 * grain), interpolation=cv2.INTER_CUBIC)
    noise = noise[grain : grain + height, grain : grain + width]
    noise -= noise.min()
    largest = noise.max()
    return noise / largest if largest > 0 else noise
