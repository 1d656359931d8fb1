"""How well a picture keeps to its condition: measures with published definitions.

All maps are arrays (H, W) or (H, W, 3), hint and picture of one size; every score is in 0..1, 1 is best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ValueRangeError

HIT, MISSED, EXTRA = 1, 2, 3
"""Marks of a pixel: as the hint wants it; wanted and not there; there and not wanted."""
MOST_COLOURS = 256
STEEP_DEGREES = 11.25


@dataclass(frozen=True, eq=False)
class Agreement:
    """A score in 0..1, what was measured in words, and marks (H, W): HIT, MISSED, EXTRA or 0 for each pixel."""

    score: float
    words: str
    marks: np.ndarray


# ------------------------------------------------------------------------------------------- edges


def compare_edges(expected: np.ndarray, found: np.ndarray, tolerance: float = 2.0) -> Agreement:
    """F-measure between two edge maps (H, W), non-zero on edges, with a tolerance in pixels.

    Precision: share of found edge pixels with an expected one within the tolerance; recall: the
    other way round; F = 2PR / (P + R). Two empty maps agree (1), one empty map does not (0).
    Without one-to-one matching this is Martin, Fowlkes and Malik's (2004) boundary measure.
    """
    from scipy.ndimage import distance_transform_edt

    expected, found = expected > 0, found > 0
    marks = np.zeros(expected.shape, np.uint8)
    marks[expected], marks[found] = MISSED, EXTRA
    if not expected.any() or not found.any():
        score = float(expected.any() == found.any())
        where = "only in the hint" if expected.any() else "only in the picture" if found.any() else "in neither"
        return Agreement(score, f"edges {where}", marks)
    right = found & (np.asarray(distance_transform_edt(~expected)) <= tolerance)
    caught = expected & (np.asarray(distance_transform_edt(~found)) <= tolerance)
    marks[caught | right] = HIT
    precision, recall = float(right.sum() / found.sum()), float(caught.sum() / expected.sum())
    score = 0.0 if precision + recall == 0.0 else 2.0 * precision * recall / (precision + recall)
    words = f"{recall:.0%} of the hint's edges are in the picture, {precision:.0%} of the picture's are in the hint"
    return Agreement(score, words, marks)


def edge_f1(expected: np.ndarray, found: np.ndarray, tolerance: float = 2.0) -> float:
    """The score of `compare_edges`."""
    return compare_edges(expected, found, tolerance).score


# ------------------------------------------------------------------------------------------- segments


def label_map(hint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A map in plain colours (H, W, 3) in 0..1 -> labels (H, W), and the colour of each in bytes (L, 3).

    Raises ValueRangeError for a picture of more than 256 colours, which is no label map.
    """
    pixels = np.clip(hint * 255.0 + 0.5, 0, 255).astype(np.uint8)
    colours, labels = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > MOST_COLOURS:
        raise ValueRangeError(
            f"the segmentation map has {len(colours)} colours, expected one for each class: snap it to the palette "
            "first (preprocessor segment_palette)"
        )
    return labels.reshape(hint.shape[:2]), colours


def compare_segments(hint: np.ndarray, found: np.ndarray) -> Agreement:
    """Mean intersection over union of two maps in plain colours (H, W, 3) over the classes of the hint.

    A class is a colour. IoU as in PASCAL VOC: |A and B| / |A or B|. Raises ValueRangeError as `label_map`.
    """
    labels, colours = label_map(hint)
    there, their_colours = label_map(found)
    index = {tuple(colour): number for number, colour in enumerate(colours)}
    renamed = np.array([index.get(tuple(colour), -1) for colour in their_colours])[there]
    return _compare_labels(labels, renamed, len(colours))


def compare_segments_by_colour(hint: np.ndarray, picture: np.ndarray) -> Agreement:
    """As `compare_segments`, for a picture (H, W, 3) in 0..1 that nobody has segmented.

    Each pixel is given to the segment whose mean colour in the picture is nearest, in CIELAB: where every
    segment has a colour of its own inside and nowhere else this is 1. It needs no network; texture and
    two segments of one colour lower it, so compare it with that of other pictures of the same hint.
    """
    labels, colours = label_map(hint)
    lab = _lab(picture)
    means = np.stack([lab[labels == i].mean(axis=0) for i in range(len(colours))])
    return _compare_labels(labels, nearest_colour(lab, means), len(colours))


def _compare_labels(labels: np.ndarray, found: np.ndarray, count: int) -> Agreement:
    scores = [iou(labels == i, found == i) for i in range(count)]
    marks = np.where(labels == found, HIT, MISSED).astype(np.uint8)
    words = f"mean over {count} segments, {float((labels == found).mean()):.0%} of all pixels are in theirs"
    return Agreement(float(np.mean(scores)), words, marks)


def nearest_colour(lab: np.ndarray, means: np.ndarray) -> np.ndarray:
    """(H, W, 3), (L, 3) -> (H, W) index of the nearest of the colours."""
    return np.linalg.norm(lab[..., None, :] - means, axis=-1).argmin(axis=-1)


def classify_albedo(picture: np.ndarray, albedo: np.ndarray) -> np.ndarray:
    """(H, W, 3) sRGB in 0..1 -> (H, W) index of the nearest of the albedos (L, 3), by distance in Lab."""
    return nearest_colour(_lab(picture), _lab(albedo))


def _lab(colours: np.ndarray) -> np.ndarray:
    # Imported here: the demo world's renderer is much to read at the start of an editor that measures nothing.
    from ..training.demo_world import srgb_to_lab

    return srgb_to_lab(colours)


def iou(expected: np.ndarray, found: np.ndarray) -> float:
    """Intersection over union of two masks (H, W); 1 where both are empty."""
    union = np.logical_or(expected, found).sum()
    return 1.0 if union == 0 else float(np.logical_and(expected, found).sum() / union)


def object_ious(labels: np.ndarray, found: np.ndarray, first: int = 2) -> list[float]:
    """IoU of each object: labels from `first` on (0 is the sky and 1 the ground in the demo world)."""
    return [iou(labels == i, found == i) for i in range(first, int(labels.max()) + 1)]


# ------------------------------------------------------------------------------------------- geometry


def compare_depth(hint: np.ndarray, found: np.ndarray, tolerance: float = 0.05) -> Agreement:
    """Depth maps (H, W) in 0..1, near is bright: the share of pixels whose error is at most `tolerance`.

    Such maps have no scale and no zero, so the found one is first scaled and shifted to the hint by least
    squares (Ranftl et al. 2020, eq. 2); words give the mean absolute error, in units of the hint's range.
    """
    flat = found.reshape(-1).astype(np.float64)
    wanted = hint.reshape(-1).astype(np.float64)
    spread = flat - flat.mean()
    scale = float(spread @ (wanted - wanted.mean())) / max(float(spread @ spread), 1e-12)
    error = np.abs(scale * spread + wanted.mean() - wanted).reshape(hint.shape)
    return _dense(error <= tolerance, f"mean depth error {float(error.mean()):.3f} of the range")


def compare_normals(hint: np.ndarray, found: np.ndarray, tolerance: float = STEEP_DEGREES) -> Agreement:
    """Normal maps (H, W, 3) in 0..1 of one convention: the share of pixels less than `tolerance` degrees apart.

    Mean angle and the share within 11.25 degrees are the measures of Eigen and Fergus (2015). Black pixels
    of the hint have no normal and do not count.
    """
    known = hint.max(axis=-1) > 0.0
    if not known.any():
        raise ValueRangeError("the normal map is black everywhere: link one that shows normals")
    a, b = (_unit(2.0 * np.asarray(m, np.float64) - 1.0) for m in (hint, found))
    angle = np.degrees(np.arccos(np.clip((a * b).sum(axis=-1), -1.0, 1.0)))
    return _dense(angle < tolerance, f"mean angle {float(angle[known].mean()):.1f} degrees", known)


def _dense(right: np.ndarray, words: str, known: np.ndarray | None = None) -> Agreement:
    known = np.ones_like(right) if known is None else known
    marks = np.where(known, np.where(right, HIT, MISSED), 0).astype(np.uint8)
    return Agreement(float(right[known].mean()), words, marks)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


# ------------------------------------------------------------------------------------------- gain


def regained(controlled: float, baseline: float, ceiling: float) -> float:
    """(with - baseline) / (ceiling - baseline): the share of what could be gained that was gained."""
    return (controlled - baseline) / (ceiling - baseline)
