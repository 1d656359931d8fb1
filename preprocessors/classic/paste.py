"""Puts the repainted part of a picture back into its source."""

from __future__ import annotations

import numpy as np

from ..errors import PictureError


def paste_back(source: np.ndarray, result: np.ndarray, mask: np.ndarray, *, feather: float = 0.0) -> np.ndarray:
    """(H,W,C) float32, its repainted form (H,W,C) and a mask (H,W) in 0..1 -> the result inside the mask.

    Where the mask is 0, the pixels are those of the source, bit for bit; values between blend. feather: pixels from
    the border of the mask inwards over which the source fades out. The edge of the picture is no border.
    Raises PictureError for shapes that differ.
    """
    if not source.shape == result.shape == (*mask.shape, source.shape[-1]):
        raise PictureError(
            f"source {source.shape}, result {result.shape} and mask {mask.shape} must have the same height and width"
        )
    weight = feather_mask(mask, feather)[..., None]
    mixed = source + weight * (result - source)
    # Picked, not computed, where only one of them counts: the sum is rounded, and NaN would pass through it.
    return np.where(weight <= 0, source, np.where(weight >= 1, result, mixed)).astype(np.float32)


def feather_mask(mask: np.ndarray, feather: float) -> np.ndarray:
    """(H,W) in 0..1 -> the same, rising from its border inwards over `feather` pixels; 0 stays 0."""
    import cv2

    mask = np.clip(mask.astype(np.float32), 0.0, 1.0)
    # cv2 measures to the nearest 0; a mask without one has no border.
    if feather <= 0 or mask.all():
        return mask
    distance = cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # The pixels beside the border have distance 1, so the first one that is all result has distance feather + 1.
    return mask * np.minimum(distance / np.float32(feather + 1.0), 1.0)
