"""How well a picture keeps to its condition: measures with published definitions."""

from __future__ import annotations

import numpy as np

from ..training.demo_world import srgb_to_lab


def edge_f1(expected: np.ndarray, found: np.ndarray, tolerance: float = 2.0) -> float:
    """F-measure between two edge maps (H, W), non-zero on edges, with a tolerance in pixels.

    Precision: share of found edge pixels with an expected one within the tolerance; recall: the
    other way round; F = 2PR / (P + R). Two empty maps agree (1), one empty map does not (0).
    """
    from scipy.ndimage import distance_transform_edt

    expected, found = expected > 0, found > 0
    if not expected.any() or not found.any():
        return float(expected.any() == found.any())
    precision = float((distance_transform_edt(~expected)[found] <= tolerance).mean())
    recall = float((distance_transform_edt(~found)[expected] <= tolerance).mean())
    return 0.0 if precision + recall == 0.0 else 2.0 * precision * recall / (precision + recall)


def classify_albedo(picture: np.ndarray, albedo: np.ndarray) -> np.ndarray:
    """(H, W, 3) sRGB in 0..1 -> (H, W) index of the nearest of the albedos (L, 3), by distance in Lab."""
    distances = np.linalg.norm(srgb_to_lab(picture)[..., None, :] - srgb_to_lab(albedo), axis=-1)
    return distances.argmin(axis=-1)


def iou(expected: np.ndarray, found: np.ndarray) -> float:
    """Intersection over union of two masks (H, W); 1 where both are empty."""
    union = np.logical_or(expected, found).sum()
    return 1.0 if union == 0 else float(np.logical_and(expected, found).sum() / union)


def object_ious(labels: np.ndarray, found: np.ndarray, first: int = 2) -> list[float]:
    """IoU of each object: labels from `first` on (0 is the sky and 1 the ground in the demo world)."""
    return [iou(labels == i, found == i) for i in range(first, int(labels.max()) + 1)]


def regained(controlled: float, baseline: float, ceiling: float) -> float:
    """(with - baseline) / (ceiling - baseline): the share of what could be gained that was gained."""
    return (controlled - baseline) / (ceiling - baseline)
