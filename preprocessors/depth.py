"""Depth maps as hints: near is white, far is black, and pixels without depth (the sky) are black."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from .errors import ParameterError, PictureError, check_choice
from .image_ops import like, to_numpy

if TYPE_CHECKING:
    from .image_ops import Array

NORMALIZE = ("frame", "batch", "fixed")
"""Where the range of the values is measured."""
_UNSET = (0.0, 1.0)
# Default distance that becomes white if 1 / distance is taken, since 1 / 0 is infinite.
_NEAREST = 0.1


def depth_to_hint(
    depth: Array,
    *,
    space: str = "disparity",
    invert: bool = False,
    normalize: str = "frame",
    near: float = 0.0,
    far: float = 0.0,
) -> Array:
    """Distances (H,W) or (B,H,W), larger is farther -> (H,W,3) or (B,H,W,3) float32, near = 1, far = 0.

    space: "disparity" takes 1 / distance first, which monocular networks estimate and the depth ControlNets were
        trained on (distances of 0 and below count as missing). "linear" takes the values as they are.
    invert: the given values are larger where nearer (a disparity map, or a picture with near = white).
    normalize: the range of each "frame", of the "batch", or "fixed" from `near` to `far`: the given values that
        become 1 and 0. Raises ParameterError if `near` is not nearer than `far`.
    Infinite and NaN values are black and not part of the range. A constant map is all 0.
    """
    check_choice("space", space, ("disparity", "linear"))
    check_choice("normalize", normalize, NORMALIZE)
    values = to_numpy(depth).astype(np.float32)
    if values.ndim not in (2, 3):
        raise PictureError(f"depth has shape {tuple(values.shape)}, expected (H,W) or (B,H,W)")
    batch = values if values.ndim == 3 else values[None]
    low, high, nearness = _nearness(batch, space, invert, normalize, near, far)
    span = high - low
    scaled = (nearness - low) / np.where(span > 0, span, 1.0)
    hint = np.where(np.isfinite(scaled) & (span > 0), np.clip(scaled, 0.0, 1.0), 0.0).astype(np.float32)
    coloured = np.repeat(hint[..., None], 3, axis=-1)
    return like(coloured if values.ndim == 3 else coloured[0], depth)


def _nearness(
    batch: np.ndarray, space: str, invert: bool, normalize: str, near: float, far: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ends of the range, two arrays (B,1,1), and values that grow towards the viewer, NaN where missing."""

    def towards_viewer(values: np.ndarray) -> np.ndarray:
        if invert:
            return values
        if space == "linear":
            return -values
        return np.where(values > 0, 1.0 / np.where(values > 0, values, 1.0), np.nan)

    nearness = np.where(np.isfinite(batch), towards_viewer(batch), np.nan)
    if normalize == "fixed":
        ends = towards_viewer(np.array([[[far]], [[near]]], np.float32))
        if not (np.isfinite(ends).all() and ends[0] < ends[1]):
            raise _wrong_ends(space, invert, near, far)
        return ends[:1], ends[1:], nearness
    axes = (1, 2) if normalize == "frame" else (0, 1, 2)
    known = np.isfinite(nearness)
    low = np.min(nearness, axis=axes, keepdims=True, where=known, initial=np.inf)
    high = np.max(nearness, axis=axes, keepdims=True, where=known, initial=-np.inf)
    empty = ~known.any(axis=axes, keepdims=True)
    return np.where(empty, 0.0, low), np.where(empty, 0.0, high), nearness


def _wrong_ends(space: str, invert: bool, near: float, far: float) -> ParameterError:
    if invert:
        expected = "near > far, since these values are larger where nearer"
    elif space == "disparity":
        expected = "0 < near < far, since these values are distances, of which 1 / distance is taken"
    else:
        expected = "near < far, since these values are distances"
    return ParameterError(
        f"normalize='fixed' has near={near:g} and far={far:g}; expected {expected}: set near and far to the values "
        "that become white and black"
    )


def from_pictures(
    pictures: Iterable[np.ndarray],
    *,
    normalize: str,
    space: str = "linear",
    invert: bool = False,
    near: float = 0.0,
    far: float = 1.0,
    sky: float = 65504.0,
) -> np.ndarray:
    """Depth pictures (a Z-pass, a disparity map), each (H,W,C) -> hints (B,H,W,3), near = white.

    The first channel is read in its own units; see `depth_to_hint`. Renderers write the sky as a very large distance
    (1e10, or 65504 in half precision): distances from `sky` on count as missing.
    near, far: the defaults 0 and 1 follow the direction of the values: 1 and 0 with `invert`, 0.1 and 1 for disparity.
    """
    if (near, far) == _UNSET and invert:
        near, far = far, near
    elif (near, far) == _UNSET and space == "disparity":
        near = _NEAREST
    # Copies: a view would keep all channels of all frames in memory.
    maps = np.stack([picture[..., 0].copy() for picture in pictures])
    if not invert:
        maps = np.where(maps >= sky, np.float32(np.inf), maps)
    return depth_to_hint(maps, space=space, invert=invert, normalize=normalize, near=near, far=far)


def ground_prior(picture: np.ndarray, *, horizon: float = 0.4) -> np.ndarray:
    """A flat floor up to its horizon, (H,W) float32. It is an assumption: nothing is measured in the picture.

    The disparity of a plane grows linearly with the row, from 0 at `horizon` (a share of the height from the top) to 1
    at the bottom. Everything above the horizon is black.
    """
    height, width = picture.shape[:2]
    rows = (np.arange(height, dtype=np.float32) + 0.5) / height
    nearness = np.clip((rows - horizon) / max(1.0 - horizon, 1e-6), 0.0, 1.0)
    return np.repeat(nearness[:, None], width, axis=1)


def stereo_disparity(left: np.ndarray, right: np.ndarray, *, max_disparity: int = 64, block: int = 3) -> np.ndarray:
    """Measure the disparity of the left picture in a rectified pair (H,W,3) uint8 -> (H,W) float32 in pixels.

    Semi-global matching (Hirschmueller 2008, cv2.StereoSGBM). Pixels without a match take the farther of both
    neighbours in the row, since it is the background that the other eye does not see. Negative values are missing.
    """
    import cv2

    # The matcher skips the first `count` columns, so the pair gets that many on the left, and loses them below.
    width = left.shape[1]
    count = max(16, -(-min(max_disparity, width) // 16) * 16)
    padded = [cv2.copyMakeBorder(p, 0, 0, count, 0, cv2.BORDER_REPLICATE) for p in (left, right)]
    matcher = cv2.StereoSGBM.create(
        minDisparity=0, numDisparities=count, blockSize=block, P1=8 * block**2, P2=32 * block**2, disp12MaxDiff=1,
        uniquenessRatio=10, speckleWindowSize=100, speckleRange=2, mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )  # fmt: skip
    found = matcher.compute(*padded)[:, count:].astype(np.float32) / np.float32(16.0)
    return _fill_from_background(np.where(found >= 0, found, np.float32(np.nan)))


def _fill_from_background(disparity: np.ndarray) -> np.ndarray:
    """Replace NaN by the smaller of the nearest known values to the left and right in the row; empty rows by -1."""
    height, width = disparity.shape
    known = np.isfinite(disparity)
    columns = np.broadcast_to(np.arange(width), disparity.shape)
    # For each pixel the column of the nearest known one on either side, without a loop over the rows.
    before = np.maximum.accumulate(np.where(known, columns, -1), axis=1)
    after = np.minimum.accumulate(np.where(known, columns, width)[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(np.where(known, disparity, np.inf), ((0, 0), (0, 1)), constant_values=np.inf)
    rows = np.arange(height)[:, None]
    filled = np.minimum(padded[rows, before], padded[rows, after])
    return np.where(np.isfinite(filled), filled, -1.0).astype(np.float32)


def from_stereo_pictures(
    pictures: Iterable[np.ndarray], *, normalize: str, max_disparity: int = 64, near: float = 64.0, far: float = 0.0
) -> np.ndarray:
    """Pairs side by side, (H,2W,3) uint8, the left eye's on the left -> hints (B,H,W,3), near = white."""
    pairs = (np.split(picture, 2, axis=1) for picture in pictures)
    maps = np.stack([stereo_disparity(*pair, max_disparity=max_disparity) for pair in pairs])
    maps[maps < 0] = np.nan
    return depth_to_hint(maps, space="linear", invert=True, normalize=normalize, near=near, far=far)
