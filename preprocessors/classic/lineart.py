"""Line art without a network: what is darker than its surroundings, brighter the darker it is."""

from __future__ import annotations

import numpy as np


def lineart(picture: np.ndarray, *, sigma: float = 6.0, threshold: float = 8.0) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W) uint8, white lines on black.

    The smallest channel of G_sigma - picture, scaled so that the median of what exceeds `threshold`
    becomes 127. Source: the "standard" line art of ControlNet v1.1.
    """
    import cv2

    values = picture.astype(np.float32)
    surroundings = cv2.GaussianBlur(values, (0, 0), sigma)
    red, green, blue = cv2.split(cv2.subtract(surroundings, values))
    darker = cv2.min(cv2.min(red, green), blue)
    strokes = darker[darker > threshold]
    typical = max(16.0, float(np.median(np.minimum(strokes, 255.0)))) if strokes.size else 16.0
    scaled = np.clip(darker, 0.0, 255.0) / np.float32(typical) * np.float32(127.0)
    return np.clip(scaled, 0.0, 255.0).astype(np.uint8)
