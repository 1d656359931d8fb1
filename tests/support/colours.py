"""Colours of pictures in tests, as (r, g, b) in 0..255."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb


def colours_of(picture: np.ndarray) -> set[tuple[int, ...]]:
    """All colours of a picture (H, W, 3) in [0, 1]."""
    return {tuple(colour) for colour in np.unique((picture.reshape(-1, 3) * 255).round().astype(int), axis=0)}


def viridis(share: float) -> tuple[int, ...]:
    """The colour of a share in 0..1 on our heat maps."""
    return tuple(round(255 * channel) for channel in colormaps["viridis"](share)[:3])


def to_bytes(colour: str) -> tuple[int, ...]:
    """ "#ff8000" -> (255, 128, 0)."""
    return tuple(round(255 * channel) for channel in to_rgb(colour))
