"""Poses as pictures: the OpenPose hint, exactly as the v1.1 annotator draws it at 512 pixels.

At other sizes the strokes scale with the picture (a half-width of 4 pixels at a shortest side of 512),
so that a hint looks the same to the net whatever its size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PictureError
from ..image_ops import like, to_numpy
from .skeleton import BODY_COLOURS, BODY_LIMBS, LIMB_SHADE

if TYPE_CHECKING:
    from ..image_ops import Array

REFERENCE_SIDE = 512
_SUBPIXEL_BITS = 4


def draw_poses(
    keypoints: Array,
    height: int,
    width: int,
    *,
    limb_half_width: float | None = None,
    joint_radius: float | None = None,
    threshold: float = 0.0,
) -> Array:
    """Body keypoints (P,18,3) or (B,P,18,3) of x, y in pixels and confidence -> (H,W,3) or (B,H,W,3) float32.

    A keypoint is drawn if its confidence exceeds `threshold` and it is finite. `limb_half_width` and
    `joint_radius` are in pixels; None means 4 at a shortest side of 512, in proportion elsewhere.
    Raises PictureError if the keypoints have another shape.
    """
    people = to_numpy(keypoints)
    if people.ndim not in (3, 4) or people.shape[-2:] != (18, 3):
        raise PictureError(
            f"keypoints of shape {tuple(people.shape)} came; expected (P,18,3) or (B,P,18,3): x, y, "
            "confidence of the 18 body keypoints for each person"
        )
    scale = min(height, width) / REFERENCE_SIDE
    half_width = 4.0 * scale if limb_half_width is None else float(limb_half_width)
    radius = 4.0 * scale if joint_radius is None else float(joint_radius)
    batch = people if people.ndim == 4 else people[None]
    out = np.zeros((len(batch), height, width, 3), np.float32)
    for picture, canvas in zip(batch, out, strict=True):
        drawn = np.zeros((height, width, 3), np.uint8)
        for person in picture:
            draw_body(drawn, person, half_width, radius, threshold)
        np.divide(drawn, np.float32(255.0), out=canvas)
    return like(out if people.ndim == 4 else out[0], keypoints)


def draw_body(
    canvas: np.ndarray, person: np.ndarray, half_width: float, radius: float, threshold: float = 0.0
) -> None:
    """Draw one body (18,3) into `canvas` (H,W,3) uint8: limbs first, in colours times 0.6, then joints."""
    seen = present(person, threshold)
    for (start, end), colour in zip(BODY_LIMBS, BODY_COLOURS, strict=False):
        if seen[start] and seen[end]:
            shaded = tuple(int(channel * LIMB_SHADE) for channel in colour)
            fill_limb(canvas, person[start, :2], person[end, :2], half_width, shaded)
    for joint, colour in enumerate(BODY_COLOURS):
        if seen[joint]:
            fill_dot(canvas, person[joint, :2], radius, colour)


def present(person: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """(N,3) keypoints -> (N,) bool: confident enough, and finite."""
    return np.isfinite(person).all(axis=1) & (np.nan_to_num(person[:, 2]) > threshold)


def fill_limb(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, half_width: float, colour: tuple[int, int, int]
) -> None:
    """A filled ellipse between two points x, y; on whole pixels, as published, if `half_width` is whole."""
    import cv2

    (x0, y0), (x1, y1) = map(float, start), map(float, end)
    centre, length = ((x0 + x1) / 2, (y0 + y1) / 2), math.hypot(x0 - x1, y0 - y1)
    angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
    if half_width >= 1 and float(half_width).is_integer():
        axes = (int(length / 2), int(half_width))
        polygon = cv2.ellipse2Poly((int(centre[0]), int(centre[1])), axes, int(angle), 0, 360, 1)
        cv2.fillConvexPoly(canvas, polygon, colour)
        return
    turn = np.linspace(0.0, 2.0 * np.pi, 32, endpoint=False)
    along, across = np.cos(turn) * length / 2, np.sin(turn) * half_width
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    polygon = np.stack(
        (centre[0] + along * cos - across * sin, centre[1] + along * sin + across * cos), axis=1
    )
    fixed = np.rint(polygon * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillConvexPoly(canvas, fixed, colour, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)


def fill_dot(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
    """A filled circle; on whole pixels, as published, if `radius` is whole."""
    import cv2

    if radius >= 1 and float(radius).is_integer():
        cv2.circle(canvas, (int(centre[0]), int(centre[1])), int(radius), colour, thickness=-1)
        return
    unit = 1 << _SUBPIXEL_BITS
    fixed = (round(float(centre[0]) * unit), round(float(centre[1]) * unit))
    cv2.circle(canvas, fixed, max(1, round(radius * unit)), colour, thickness=-1, shift=_SUBPIXEL_BITS)
