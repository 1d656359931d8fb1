"""What the pack only writes, read back to measure it: the classes in a colour hint, the normals of a depth map."""

from __future__ import annotations

import math

import numpy as np
from comfyui_controlnet_core.preprocessors.palettes import nearest_classes, palette


def hint_to_labels(hint: np.ndarray, name: str = "ade20k", *, tolerance: float = 2.0) -> np.ndarray:
    """Colours (...,H,W,3), 0..1 -> class numbers (...,H,W) int64; -1 where no colour is within `tolerance` bytes."""
    pixels = np.rint(np.clip(hint, 0.0, 1.0) * 255.0).astype(np.int32)
    numbers, distance = nearest_classes(pixels.reshape(-1, 3), palette(name).colours)
    return np.where(distance <= tolerance, numbers, -1).reshape(pixels.shape[:-1])


def normals_from_depth(depth: np.ndarray, fov: float) -> np.ndarray:
    """Metric depth (H,W), larger is farther -> unit normals (H,W,3) as (right, up, front).

    fov: the vertical field of view in degrees. A pinhole camera at the picture's centre places the points in space, and
    a normal is the cross product of their differences. Pixels without finite depth face the viewer.
    """
    known = np.isfinite(depth)
    filled = np.where(known, depth, depth[known].max()).astype(np.float64)
    height, width = depth.shape
    # Pixel centres are half a pixel from the corner; the camera looks along -z, hence -depth.
    focal = height / 2 / math.tan(math.radians(fov) / 2)
    y, x = np.mgrid[0:height, 0:width]
    points = np.stack([(x + 0.5 - width / 2) / focal, -(y + 0.5 - height / 2) / focal, np.full_like(filled, -1.0)], -1)
    down, right = np.gradient(points * filled[..., None], axis=(0, 1))
    normals = np.cross(down, right)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    normals[~known] = (0.0, 0.0, 1.0)
    return normals
