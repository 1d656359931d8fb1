"""Straight lines: the segments that the line segment detector measures, drawn one pixel wide."""

from __future__ import annotations

import numpy as np

from ..image_ops import gray

# The detector cannot grow a segment from fewer pixels.
_SMALLEST_SIDE = 8


def lines(picture: np.ndarray, *, channels: str = "lab", min_length: float = 20.0, merge: bool = True) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W) uint8, 255 on segments of at least `min_length` pixels.

    channels: "lab" uses lightness and both colour axes, "gray" the gray picture alone, as is usual. Only "lab" finds
        edges between colours of the same brightness.
    merge: leave out a segment that lies on longer ones for most of its length.
    Source: von Gioi et al. 2010 (LSD), cv2.createLineSegmentDetector.
    """
    import cv2

    canvas = np.zeros(picture.shape[:2], np.uint8)
    segments = find_segments(picture, channels=channels)
    lengths = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
    # The longest first, so that `merge` compares each segment with longer ones only.
    order = np.argsort(-lengths, kind="stable")
    for segment in segments[order[lengths[order] >= min_length]]:
        if not (merge and _covered(canvas, segment)):
            start, end = np.rint(segment).astype(int).reshape(2, 2).tolist()
            cv2.line(canvas, start, end, 255, 1)
    return canvas


def find_segments(picture: np.ndarray, *, channels: str = "lab") -> np.ndarray:
    """(H,W,3) uint8 RGB -> (N,4) float32 segments x0, y0, x1, y1, none if the picture is too small."""
    import cv2

    if min(picture.shape[:2]) < _SMALLEST_SIDE:
        return np.zeros((0, 4), np.float32)
    if channels == "gray":
        planes = (gray(picture),)
    else:
        planes = cv2.split(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2LAB))
    detector = cv2.createLineSegmentDetector(cv2.LSD_REFINE_STD)
    found = [detector.detect(plane)[0] for plane in planes]
    # OpenCV 4 returns (N,1,4) and version 5 (N,4); None where there is nothing.
    return np.concatenate([np.zeros((0, 4), np.float32)] + [s.reshape(-1, 4) for s in found if s is not None])


def _covered(canvas: np.ndarray, segment: np.ndarray, part: float = 0.7, reach: int = 2) -> bool:
    """Whether drawn pixels lie within `reach` of at least `part` of the segment."""
    x0, y0, x1, y1 = segment
    steps = np.linspace(0.0, 1.0, max(2, int(np.hypot(x1 - x0, y1 - y0))))
    dx, dy = y1 - y0, x0 - x1
    norm = float(np.hypot(dx, dy)) or 1.0
    hit = np.zeros(len(steps), bool)
    for offset in range(-reach, reach + 1):
        x = np.rint(x0 + steps * (x1 - x0) + offset * dx / norm).astype(int).clip(0, canvas.shape[1] - 1)
        y = np.rint(y0 + steps * (y1 - y0) + offset * dy / norm).astype(int).clip(0, canvas.shape[0] - 1)
        hit |= canvas[y, x] > 0
    return bool(hit.mean() >= part)
