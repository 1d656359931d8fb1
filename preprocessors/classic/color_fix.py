"""The colour fix of tile ControlNets: the coarse colours of a result become those of its source."""

from __future__ import annotations

import numpy as np

from ..errors import PictureError

_SMOOTH_ROUNDS = 6
_MAX_ROUNDS = 40
_TOLERANCE = 1e-4
"""Error of a block's mean colour at which the correction ends; 1/40 of a step of 8 bit."""


def fix_colors(result: np.ndarray, source: np.ndarray, *, block: int = 8, sharpness: float = 0.0) -> np.ndarray:
    """(H,W,3) float32 0..1 and its source of the same size -> the result with the source's coarse colours.

    block: side of a square block in pixels, >= 1. The mean colour of each block, counted from the top left corner,
    becomes that of the source; what is finer than a block stays that of the result. sharpness: how much the finest
    detail is raised first, 0 for none. Raises PictureError for unequal shapes and for values that are not finite.
    """
    if result.shape != source.shape:
        raise PictureError(f"the result has shape {result.shape} and its source {source.shape}: they must be equal")
    if not (np.isfinite(result).all() and np.isfinite(source).all()):
        raise PictureError("a picture has values that are not finite: decode it in float32 or bfloat16")
    fixed = np.clip(sharpen(result.astype(np.float32), sharpness), 0.0, 1.0)
    wanted = block_means(np.clip(source, 0.0, 1.0), block)
    # A smooth correction first: a flat one for each block would show the edges of the blocks.
    for _ in range(_SMOOTH_ROUNDS):
        fixed = fixed + enlarge_smoothly(wanted - block_means(fixed, block), block, fixed.shape)
    return set_block_means(np.clip(fixed, 0.0, 1.0), wanted, block)


def sharpen(picture: np.ndarray, amount: float) -> np.ndarray:
    """(H,W,3) float32 -> the same with detail of about one pixel raised, by unsharp masking; 0 changes nothing."""
    import cv2

    return picture if amount == 0 else picture + np.float32(amount) * (picture - cv2.GaussianBlur(picture, (0, 0), 1.0))


def set_block_means(picture: np.ndarray, wanted: np.ndarray, block: int) -> np.ndarray:
    """(H,W,3) in 0..1 -> the same in 0..1 with these mean colours (rows,columns,3) in its blocks, within 1e-4.

    Each block gets one number per channel, more where pixels reach black or white.
    """
    for _ in range(_MAX_ROUNDS):
        gap = wanted - block_means(picture, block)
        if np.abs(gap).max() < _TOLERANCE:
            break
        # Newton's method: only the pixels that are not yet at the limit can move, so each of them moves further.
        # The mean grows ever more slowly towards the limit, so a step never goes too far.
        movable = np.where(repeat(gap, block, picture.shape) > 0, picture < 1, picture > 0)
        share = np.maximum(block_means(movable.astype(np.float32), block), 1.0 / block**2)
        picture = np.clip(picture + repeat(gap / share, block, picture.shape), 0.0, 1.0)
    return picture


def block_means(picture: np.ndarray, block: int) -> np.ndarray:
    """(H,W,3) -> (ceil(H/block), ceil(W/block), 3): means of the blocks, those at the edges of what they have."""
    height, width = picture.shape[:2]
    rows, columns = np.arange(0, height, block), np.arange(0, width, block)
    sums = np.add.reduceat(np.add.reduceat(picture, rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    return (sums / counts[..., None]).astype(np.float32)


def enlarge_smoothly(blocks: np.ndarray, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """(rows,columns,3), a value for each block -> (H,W,3), linear between the centres of the blocks."""
    import cv2

    rows, columns = blocks.shape[:2]
    large = cv2.resize(blocks, (columns * block, rows * block), interpolation=cv2.INTER_LINEAR)
    return large[: shape[0], : shape[1]]


def repeat(blocks: np.ndarray, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """(rows,columns,3), a value for each block -> (H,W,3)."""
    return blocks.repeat(block, axis=0)[: shape[0]].repeat(block, axis=1)[:, : shape[1]]
