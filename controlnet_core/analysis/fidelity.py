"""How well a picture follows its hint: measures with published definitions.

All maps are arrays (H, W) or (H, W, 3), hint and picture of the same size. Scores are from 0 to 1 (best).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ValueRangeError

HIT, MISSED, EXTRA = 1, 2, 3
"""Marks of a pixel: as in the hint; in the hint only; in the picture only."""
MOST_COLOURS = 256
STEEP_DEGREES = 11.25


@dataclass(frozen=True, eq=False)
class Agreement:
    """A score from 0 to 1, the measurement in words, and marks (H, W): HIT, MISSED, EXTRA or 0 for each pixel."""

    score: float
    words: str
    marks: np.ndarray


# ------------------------------------------------------------------------------------------- edges


def compare_edges(expected: np.ndarray, found: np.ndarray, tolerance: float = 2.0) -> Agreement:
    """The F-measure of two edge maps (H, W), non-zero on edges. tolerance: in pixels.

    Precision is the share of found edge pixels with an expected one within the tolerance, recall the share of expected
    ones with a found one; F = 2PR / (P + R). The score is 1 if both maps are empty, and 0 if one is. This is the
    boundary measure of Martin, Fowlkes and Malik (2004), but several pixels may match the same one.
    """
    from scipy.ndimage import distance_transform_edt

    expected, found = expected > 0, found > 0
    marks = np.zeros(expected.shape, np.uint8)
    marks[expected], marks[found] = MISSED, EXTRA
    if not expected.any() or not found.any():
        score = float(expected.any() == found.any())
        where = "only in the hint" if expected.any() else "only in the picture" if found.any() else "in neither"
        return Agreement(score, f"edges {where}", marks)
    # The distance transform of a map's complement is the distance to its nearest edge.
    right = found & (np.asarray(distance_transform_edt(~expected)) <= tolerance)
    caught = expected & (np.asarray(distance_transform_edt(~found)) <= tolerance)
    marks[caught | right] = HIT
    precision, recall = float(right.sum() / found.sum()), float(caught.sum() / expected.sum())
    score = 0.0 if precision + recall == 0.0 else 2.0 * precision * recall / (precision + recall)
    words = f"{recall:.0%} of the hint's edges are in the picture, {precision:.0%} of the picture's are in the hint"
    return Agreement(score, words, marks)


# ------------------------------------------------------------------------------------------- segments


def label_map(hint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read a map of plain colours (H, W, 3) in 0..1 as labels (H, W) and the colour of each label in bytes (L, 3).

    Raises ValueRangeError for more than 256 colours: the picture is then not a label map.
    """
    pixels = np.clip(hint * 255.0 + 0.5, 0, 255).astype(np.uint8)
    colours, labels = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) > MOST_COLOURS:
        raise ValueRangeError(
            f"the segmentation map has {len(colours)} colours, expected one for each class, at most {MOST_COLOURS}: "
            "snap it to the palette first (preprocessor segment_palette)"
        )
    return labels.reshape(hint.shape[:2]), colours


def compare_segments(hint: np.ndarray, found: np.ndarray) -> Agreement:
    """The mean intersection over union (IoU) of two maps of plain colours (H, W, 3), over the classes of the hint.

    A class is a colour. IoU = |A and B| / |A or B|, as in PASCAL VOC. Raises ValueRangeError as `label_map` does.
    """
    labels, colours = label_map(hint)
    there, their_colours = label_map(found)
    index = {tuple(colour): number for number, colour in enumerate(colours)}
    renamed = np.array([index.get(tuple(colour), -1) for colour in their_colours])[there]
    return _compare_labels(labels, renamed, len(colours))


def compare_segments_by_colour(hint: np.ndarray, picture: np.ndarray) -> Agreement:
    """The mean IoU for a picture (H, W, 3) in 0..1 for which there is no segmentation.

    Each pixel is assigned to the segment whose mean colour in the picture is nearest, in CIELAB. The score is 1 if each
    segment has a colour of its own. Texture, and segments of the same colour, lower it: compare it only with other
    pictures of the same hint. Raises ValueRangeError as `label_map` does.
    """
    labels, colours = label_map(hint)
    lab = _lab(picture)
    means = np.stack([lab[labels == i].mean(axis=0) for i in range(len(colours))])
    nearest = np.linalg.norm(lab[..., None, :] - means, axis=-1).argmin(axis=-1)
    return _compare_labels(labels, nearest, len(colours))


def _compare_labels(labels: np.ndarray, found: np.ndarray, count: int) -> Agreement:
    scores = [iou(labels == i, found == i) for i in range(count)]
    marks = np.where(labels == found, HIT, MISSED).astype(np.uint8)
    share = float((labels == found).mean())
    words = f"mean over {count} segments, {share:.0%} of all pixels are in the right one"
    return Agreement(float(np.mean(scores)), words, marks)


def _lab(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) sRGB in 0..1 -> CIELAB, where distances are about those that people see."""
    import cv2

    return cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2LAB)


def iou(expected: np.ndarray, found: np.ndarray) -> float:
    """The intersection over union of two masks (H, W); 1 if both are empty."""
    union = np.logical_or(expected, found).sum()
    return 1.0 if union == 0 else float(np.logical_and(expected, found).sum() / union)


# ------------------------------------------------------------------------------------------- geometry


def compare_depth(hint: np.ndarray, found: np.ndarray, tolerance: float = 0.05) -> Agreement:
    """The share of pixels whose depth error is at most `tolerance`, for depth maps (H, W) in 0..1.

    The words give the mean absolute error. Both are in units of the hint's range.
    """
    # Estimated depth has an unknown scale and zero. Fit both to the hint by least squares (Ranftl et al. 2020, eq. 2).
    flat = found.reshape(-1).astype(np.float64)
    wanted = hint.reshape(-1).astype(np.float64)
    spread = flat - flat.mean()
    scale = float(spread @ (wanted - wanted.mean())) / max(float(spread @ spread), 1e-12)
    error = np.abs(scale * spread + wanted.mean() - wanted).reshape(hint.shape)
    return _dense(error <= tolerance, f"mean depth error {float(error.mean()):.3f} of the range")


def compare_normals(hint: np.ndarray, found: np.ndarray, tolerance: float = STEEP_DEGREES) -> Agreement:
    """The share of pixels whose normals differ by less than `tolerance` degrees, for maps (H, W, 3) in 0..1.

    The words give the mean angle. Both, with 11.25 degrees, are the measures of Eigen and Fergus (2015). Black pixels
    of the hint have no normal and do not count. Raises ValueRangeError if all are black.
    """
    known = hint.max(axis=-1) > 0.0
    if not known.any():
        raise ValueRangeError("the normal map is black everywhere: connect one that shows normals")
    a, b = (_unit(2.0 * np.asarray(m, np.float64) - 1.0) for m in (hint, found))
    angle = np.degrees(np.arccos(np.clip((a * b).sum(axis=-1), -1.0, 1.0)))
    return _dense(angle < tolerance, f"mean angle {float(angle[known].mean()):.1f} degrees", known)


def _dense(right: np.ndarray, words: str, known: np.ndarray | None = None) -> Agreement:
    known = np.ones_like(right) if known is None else known
    marks = np.where(known, np.where(right, HIT, MISSED), 0).astype(np.uint8)
    return Agreement(float(right[known].mean()), words, marks)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
