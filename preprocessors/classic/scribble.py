"""Scribbles: binary white strokes on black, from a photo, from a soft edge map, or from a drawing."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..image_ops import above, darkest
from ..parallel import run_bands
from .gaussian import blurred_planes, least, reach


def xdog(
    picture: np.ndarray, *, threshold: int = 32, sigma: float = 0.5, wide_sigma: float = 5.0, threads: int = 1
) -> np.ndarray:
    """Extended difference of Gaussians: (H,W,3) uint8 RGB -> (H,W) uint8, 255 on strokes.

    A pixel is a stroke if the picture is darker than its surroundings by more than threshold / 2 in all three channels.
    The published test is 2 (255 - dog) > threshold with dog = floor(255 - min_c(G_wide - G_narrow)). In bytes that
    product wraps around at 256 and loses the darkest strokes, so the equivalent min_c > floor(threshold / 2) is tested.
    Source: Winnemoeller et al. 2012; ControlNet's scribble annotator.
    """
    strokes = partial(_strokes, limit=threshold // 2, sigma=sigma, wide_sigma=wide_sigma)
    return run_bands(strokes, picture, reach=max(reach(sigma), reach(wide_sigma)), threads=threads, dtype=np.uint8)


def _strokes(picture: np.ndarray, *, limit: int, sigma: float, wide_sigma: float) -> np.ndarray:
    """(H,W,3) uint8 -> 255 where min over the channels of G_wide - G_narrow exceeds `limit`."""
    both = zip(blurred_planes(picture, wide_sigma), blurred_planes(picture, sigma), strict=True)
    darker = least(np.subtract(wide, narrow, out=wide) for wide, narrow in both)
    return above(darker, limit)


def drawing(picture: np.ndarray, *, threshold: int = 127) -> np.ndarray:
    """Dark strokes on light paper -> white strokes on black: (H,W,3) uint8 RGB -> (H,W) uint8 0 or 255.

    A pixel is a stroke if its smallest channel is below `threshold`, so that coloured pens count as well.
    """
    # Inverted bytes: 255 where the darkest channel is below the threshold.
    return ~above(darkest(picture), threshold - 1)
