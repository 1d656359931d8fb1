"""Depth maps as hints: near is white, far is black, and what has no depth (the sky) is black."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import ParameterError, PictureError
from .image_ops import like, to_numpy

if TYPE_CHECKING:
    from .image_ops import Array


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

    space: "disparity" takes 1 / distance first, which is what monocular networks estimate and what the
        depth ControlNets saw (distances at or below 0 count as missing); "linear" takes the values as given.
    invert: the values given are larger where nearer (a disparity map, or a picture with near = white).
    normalize: min-max over each "frame", over the "batch", or "fixed" between `near` and `far` (the values,
        as given, that become 1 and 0).
    Infinite and NaN values are black and do not count in the range; a constant map is all 0.
    """
    values = to_numpy(depth).astype(np.float32)
    if values.ndim not in (2, 3):
        raise PictureError(f"depth of shape {tuple(values.shape)} came; expected (H,W) or (B,H,W)")
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
    """Values that grow towards the viewer, NaN where there are none, and the range of each frame (B,1,1)."""
    if space not in ("disparity", "linear"):
        raise ParameterError(f"space={space!r}: choose 'disparity' or 'linear'")

    def towards_viewer(values: np.ndarray) -> np.ndarray:
        if invert:
            return values
        if space == "linear":
            return -values
        return np.where(values > 0, 1.0 / np.where(values > 0, values, 1.0), np.nan)

    nearness = np.where(np.isfinite(batch), towards_viewer(batch), np.nan)
    if normalize == "fixed":
        if near == far:
            raise ParameterError(
                f"normalize='fixed' needs different values for near and far, got {near} twice"
            )
        ends = towards_viewer(np.array([[[far]], [[near]]], np.float32))
        return ends[:1], ends[1:], nearness
    if normalize not in ("frame", "batch"):
        raise ParameterError(f"normalize={normalize!r}: choose 'frame', 'batch' or 'fixed'")
    axes = (1, 2) if normalize == "frame" else (0, 1, 2)
    known = np.isfinite(nearness)
    low = np.min(np.where(known, nearness, np.inf), axis=axes, keepdims=True)
    high = np.max(np.where(known, nearness, -np.inf), axis=axes, keepdims=True)
    empty = ~known.any(axis=axes, keepdims=True)
    return np.where(empty, 0.0, low), np.where(empty, 0.0, high), nearness
