"""Surface normals as hints: measured from a depth map, and converted between conventions.

In this file a normal is (right, up, front) of unit length as the viewer sees it; front points at the viewer.
In a picture a component c becomes (c + 1) / 2:

    bae      red = left,  green = up,   blue = front   (NormalBae, the v1.1 net)
    midas10  red = front, green = up,   blue = left    (the v1.0 net: the same, channels reversed)
    opengl   red = right, green = up,   blue = front
    directx  red = right, green = down, blue = front
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import check_choice
from .image_ops import like, to_numpy

if TYPE_CHECKING:
    from .image_ops import Array

# For each convention and channel: the index of its component in (right, up, front), and the sign.
CONVENTIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "bae": ((0, -1), (1, 1), (2, 1)),
    "midas10": ((2, 1), (1, 1), (0, -1)),
    "opengl": ((0, 1), (1, 1), (2, 1)),
    "directx": ((0, 1), (1, -1), (2, 1)),
}


def encode(normals: Array, convention: str = "bae") -> Array:
    """Unit normals (...,3) as (right, up, front) -> hint (...,3) float32 0..1 in `convention`."""
    values = to_numpy(normals)
    channels = [values[..., axis] * sign for axis, sign in _axes(convention)]
    return like(np.stack(channels, axis=-1).astype(np.float32) * np.float32(0.5) + np.float32(0.5), normals)


def decode(hint: Array, convention: str = "bae") -> Array:
    """A hint (...,3) 0..1 -> unit normals (...,3) as (right, up, front). Mid gray, which has no direction, is front."""
    values = to_numpy(hint).astype(np.float32) * np.float32(2.0) - np.float32(1.0)
    # The axes are a permutation with signs, so its inverse is the same table read the other way.
    normals = np.zeros_like(values)
    for channel, (axis, sign) in enumerate(_axes(convention)):
        normals[..., axis] = values[..., channel] * np.float32(sign)
    return like(_unit(normals), hint)


def convert(picture: np.ndarray, *, source: str = "opengl", convention: str = "bae") -> np.ndarray:
    """A normal map (H,W,3) float32 0..1 -> the same map in another convention, of unit length again."""
    return encode(decode(picture, source), convention)


def normals_from_height(height: np.ndarray) -> np.ndarray:
    """Height towards the viewer (H,W), in pixels -> unit normals (H,W,3). Exact for planes; orthographic."""
    return _from_slopes(*_slopes(np.asarray(height, np.float64)))


def from_depth_picture(
    picture: np.ndarray,
    *,
    convention: str = "bae",
    relief: float = 0.5,
    background: float = 0.0,
    invert: bool = False,
    smooth: float = 0.0,
    method: str = "relief",
) -> np.ndarray:
    """A depth picture (H,W,C), near = bright -> normals as a hint (H,W,3) float32.

    relief: depth of the whole range from far to near, in shorter sides of the picture.
    background: pixels below this share of the range (0..1) face the viewer; v1.0 used 0.4.
    smooth: blur before the slopes are taken, in pixels.
    method: "relief", or "midas_legacy", the v1.0 formula on the values as given: Sobel slopes against a constant 2 pi,
        so that the result depends on the scale of the values.
    """
    import cv2

    values = np.nan_to_num(picture[..., 0].astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    values = -values if invert else values
    if smooth > 0:
        values = cv2.GaussianBlur(values, (0, 0), smooth)
    low, span = float(values.min()), float(np.ptp(values))
    relative = (values - low) / np.float32(span) if span > 0 else np.zeros_like(values)
    if method == "midas_legacy":
        right = cv2.Sobel(values, cv2.CV_32F, 1, 0, ksize=3) / np.float32(2.0 * np.pi)
        down = cv2.Sobel(values, cv2.CV_32F, 0, 1, ksize=3) / np.float32(2.0 * np.pi)
    else:
        right, down = _slopes(relative * np.float32(relief * min(values.shape)))
    # Only after the slopes, or the edge of the background would look like a cliff.
    far = relative < background
    right, down = np.where(far, 0.0, right), np.where(far, 0.0, down)
    return encode(_from_slopes(right, down), convention)


def _slopes(height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dh/dx, dh/dy) by central differences, one-sided at the border, 0 along an axis of one pixel."""
    along_x, along_y = (
        np.gradient(height, axis=axis) if height.shape[axis] > 1 else np.zeros_like(height) for axis in (1, 0)
    )
    return along_x, along_y


def _from_slopes(right: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Slopes of the height along x and down y -> unit normals: uphill to the right faces left."""
    return _unit(np.stack([-right, down, np.ones_like(right)], axis=-1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.sqrt((vectors**2).sum(axis=-1, keepdims=True))
    unit = vectors / np.maximum(length, 1e-12)
    unit[length[..., 0] < 1e-6] = (0.0, 0.0, 1.0)
    return unit


def _axes(convention: str) -> tuple[tuple[int, int], ...]:
    check_choice("convention", convention, CONVENTIONS)
    return CONVENTIONS[convention]
