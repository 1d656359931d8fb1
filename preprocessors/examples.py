"""Example inputs for each preprocessor, all made from one photo.

Help pages and the contact sheet show them, so that their pictures can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .entry import Entry

STEREO_SHIFT = 12


def example(entry: Entry, photo: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Make the example input (1,H,W,C) of `entry` from a photo (H,W,3) uint8, and the options to run it with.

    `process(entry, image, **options)` gives the picture of the help page. Entries with weights also need a `library`.
    """
    mask = {"mask": _rectangle(photo)} if entry.masked else {}
    return SAMPLES[entry.sample](photo)[None], {**mask, **dict(entry.example)}


def _depth(photo: np.ndarray) -> np.ndarray:
    """A blurred copy that stands in for a depth map (bright = near). It measures nothing."""
    import cv2

    return cv2.GaussianBlur(photo, (0, 0), photo.shape[1] / 40)


def _stereo(photo: np.ndarray) -> np.ndarray:
    """The photo beside a copy whose lower half is shifted to the left, as if it were nearer."""
    right = photo.copy()
    half = photo.shape[0] // 2
    right[:half] = np.roll(photo[:half], -STEREO_SHIFT // 3, axis=1)
    right[half:] = np.roll(photo[half:], -STEREO_SHIFT, axis=1)
    return np.concatenate([photo, right], axis=1)


def _normals(photo: np.ndarray) -> np.ndarray:
    """The normals of the depth example, in OpenGL's axes."""
    from .normals import from_depth_picture

    return from_depth_picture(_depth(photo).astype(np.float32), convention="opengl")


def _labels(photo: np.ndarray) -> np.ndarray:
    """Colour regions of the photo in colours close to the palette, as in a map painted by hand."""
    from .classic.regions import color_regions

    painted = color_regions(photo, seed=0, classes="table, plate, food, wall", order="large_to_small")
    # Nobody hits the palette's colours exactly by hand.
    noise = np.random.default_rng(0).integers(-6, 7, painted.shape)
    return np.clip(painted.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def _rectangle(photo: np.ndarray) -> np.ndarray:
    """A mask (1,H,W) of a rectangle to repaint."""
    height, width = photo.shape[:2]
    mask = np.zeros((1, height, width), np.float32)
    mask[:, height // 4 : height // 2, width // 3 : -width // 4] = 1.0
    return mask


SAMPLES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"photo": lambda photo: photo, "depth": _depth, "stereo": _stereo, "normals": _normals, "labels": _labels}
)
"""Functions from a photo (H,W,3) uint8 to an input picture."""
