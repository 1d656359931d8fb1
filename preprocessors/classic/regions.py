"""Segmentation hints from painted maps and from plain colour regions. Neither recognises objects."""

from __future__ import annotations

import numpy as np

from ..errors import check_choice
from ..image_ops import lab
from ..palettes import nearest_classes
from ..palettes import palette as find_palette


def snap_to_palette(picture: np.ndarray, *, palette: str = "ade20k", tolerance: float = 442.0) -> np.ndarray:
    """A painted label map (H,W,3) uint8 -> the nearest palette colour per pixel, (H,W,3) uint8.

    Pixels farther than `tolerance` (Euclidean, in RGB bytes) from every colour become black.
    """
    colours = find_palette(palette).colours
    numbers, distance = nearest_classes(picture.reshape(-1, 3), colours)
    snapped = np.where((distance <= tolerance)[:, None], colours[numbers], np.uint8(0))
    return snapped.reshape(picture.shape)


def color_regions(
    picture: np.ndarray,
    *,
    seed: int,
    classes: str = "sky, building, earth",
    palette: str = "ade20k",
    order: str = "top_to_bottom",
    cell: int = 16,
) -> np.ndarray:
    """Colour regions named by the user, in the colours of a palette: (H,W,3) uint8 RGB -> (H,W,3) uint8.

    Superpixels of about `cell` pixels (a watershed from a grid of seeds) are grouped by mean colour into one group for
    each name in `classes`. The groups take the names in `order`. This is not semantic: it finds colours, and the user
    says what they are.
    """
    known = find_palette(palette)
    numbers = known.numbers(classes)
    pixels = superpixels(picture, cell)
    count = int(pixels.max()) + 1
    colours = lab(picture)
    area = np.bincount(pixels.ravel(), minlength=count).astype(np.float64)
    area[area == 0] = 1.0
    means = np.stack([np.bincount(pixels.ravel(), colours[..., c].ravel(), count) / area for c in range(3)], axis=1)
    groups = group_colours(means, area, len(numbers), seed)[pixels]
    ranked = _ranks(groups, colours[..., 0], len(numbers), order)
    return known.colours[np.array(numbers)[ranked[groups]]]


def superpixels(picture: np.ndarray, cell: int) -> np.ndarray:
    """(H,W,3) uint8 -> region numbers (H,W) int32 from 0. Regions grow from a grid of seeds and meet at edges."""
    import cv2

    height, width = picture.shape[:2]
    markers = np.zeros((height, width), np.int32)
    rows = np.arange(min(cell // 2, height - 1), height, cell)
    columns = np.arange(min(cell // 2, width - 1), width, cell)
    markers[np.ix_(rows, columns)] = np.arange(1, rows.size * columns.size + 1).reshape(rows.size, columns.size)
    # The watershed gives the outermost pixels no region, so it gets a border of one pixel.
    wide = cv2.copyMakeBorder(np.ascontiguousarray(cv2.medianBlur(picture, 3)), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    markers = np.asarray(cv2.watershed(wide, np.pad(markers, 1)), np.int32)[1:-1, 1:-1]
    # It marks the lines between regions by -1: they go to the nearest region.
    unknown = (markers <= 0).astype(np.uint8)
    labels = cv2.distanceTransformWithLabels(unknown, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    nearest = np.asarray(labels, np.int32)
    known = np.zeros(int(nearest.max()) + 1, np.int32)
    known[nearest[unknown == 0]] = markers[unknown == 0]
    return known[nearest] - 1


def group_colours(points: np.ndarray, weights: np.ndarray, count: int, seed: int, rounds: int = 20) -> np.ndarray:
    """Weighted k-means: (N,3) points, (N,) weights -> (N,) group numbers."""
    # Each further centre starts at the point farthest from the others, so that small regions get one too.
    rng = np.random.default_rng(seed)
    centres = points[[int(rng.integers(len(points)))]]
    while len(centres) < count:
        distance = ((points[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1) * weights
        centres = np.vstack([centres, points[int(distance.argmax())]])
    groups = np.zeros(len(points), int)
    for _ in range(rounds):
        groups = ((points[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
        for index in range(count):
            chosen = groups == index
            if chosen.any():
                centres[index] = np.average(points[chosen], axis=0, weights=weights[chosen])
    return groups


def _ranks(groups: np.ndarray, lightness: np.ndarray, count: int, order: str) -> np.ndarray:
    """The place of each group in the chosen order, (count,)."""
    check_choice("order", order, ("top_to_bottom", "dark_to_light", "large_to_small"))
    area = np.bincount(groups.ravel(), minlength=count)
    if order == "large_to_small":
        keys = -area
    else:
        rows = np.broadcast_to(np.arange(groups.shape[0])[:, None], groups.shape)
        values = (rows if order == "top_to_bottom" else lightness).ravel().astype(np.float64)
        keys = np.where(area > 0, np.bincount(groups.ravel(), values, count) / np.maximum(area, 1), np.inf)
    # The second argsort turns the order of the groups into the place of each.
    return np.argsort(np.argsort(keys, kind="stable"))
