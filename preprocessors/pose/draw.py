"""Poses as pictures: the OpenPose hint, exactly as the v1.1 annotator draws it at 512 pixels.

At other sizes the strokes scale with the picture (a half-width of 4 pixels at a shorter side of 512), so that a hint
looks the same to the network at every size. Poses are drawn at their final size: drawing first and shrinking
afterwards would make the strokes too thin to read.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PictureError
from ..image_ops import like, to_numpy
from ..limits import MAX_DRAWN_PIXELS
from .people import Person, Pose
from .skeleton import ANIMAL_LIMBS, BODY_COLOURS, BODY_LIMBS, HAND_BONES, LIMB_SHADE

if TYPE_CHECKING:
    from ..image_ops import Array

REFERENCE_SIDE = 512
HAND_JOINT_COLOUR = (0, 0, 255)
FACE_COLOUR = (255, 255, 255)
# cv2 takes coordinates as integers, here in sixteenths of a pixel.
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Strokes:
    """Sizes in pixels at a shorter side of 512: half-width of limbs, radii of dots, width of bones and animals."""

    limb: float = 4.0
    joint: float = 4.0
    bone: float = 2.0
    hand: float = 4.0
    face: float = 3.0
    animal: float = 5.0

    def scaled(self, height: int, width: int) -> Strokes:
        """The sizes for a canvas of `height` x `width`."""
        return self.times(min(height, width) / REFERENCE_SIDE)

    def times(self, factor: float) -> Strokes:
        """All sizes multiplied by `factor`."""
        return Strokes(*(size * factor for size in astuple(self)))


def draw_poses(
    keypoints: Array,
    height: int,
    width: int,
    *,
    limb_half_width: float | None = None,
    joint_radius: float | None = None,
    threshold: float = 0.0,
) -> Array:
    """Draw body keypoints (P,18,3) or (B,P,18,3), x and y in pixels and confidence -> (H,W,3) or (B,H,W,3) float32.

    A keypoint is drawn if its confidence is above `threshold` and it is finite. `limb_half_width` and `joint_radius`
    are in pixels; None means 4 at a shorter side of 512, in proportion elsewhere.
    Raises PictureError if the keypoints have another shape.
    """
    people = to_numpy(keypoints)
    if people.ndim not in (3, 4) or people.shape[-2:] != (18, 3):
        raise PictureError(
            f"keypoints have shape {tuple(people.shape)}, expected (P,18,3) or (B,P,18,3): x, y and confidence of the "
            "18 body keypoints of each person"
        )
    usual = Strokes().scaled(height, width)
    half_width = usual.limb if limb_half_width is None else float(limb_half_width)
    radius = usual.joint if joint_radius is None else float(joint_radius)
    batch = people if people.ndim == 4 else people[None]
    canvases = np.zeros((len(batch), height, width, 3), np.uint8)
    for bodies, canvas in zip(batch, canvases, strict=True):
        for body in bodies:
            draw_body(canvas, body, half_width, radius, threshold)
    out = canvases.astype(np.float32) / np.float32(255.0)
    return like(out if people.ndim == 4 else out[0], keypoints)


def render(
    poses: Sequence[Pose], *, height: int = 0, width: int = 0, strokes: Strokes | None = None,
    as_bytes: bool = False, **parts: bool
) -> np.ndarray:  # fmt: skip
    """Draw poses as hints (B,H,W,3) float32 0..1, or uint8 with `as_bytes`, one per frame.

    height, width: the size of the hint; 0 is the canvas of the poses, which must then be the same for all.
    strokes: sizes at a shorter side of 512. parts: `body`, `hands` and `face`, each drawn unless it is False.
    Raises PictureError if the canvases differ, or if the hints are too large for the memory.
    """
    # A batch is one array, so all its frames need one size.
    sizes = {(height or pose.height, width or pose.width) for pose in poses}
    if len(sizes) != 1:
        found = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)) or "no frames"
        raise PictureError(f"the poses have {found} as canvas: give the height and width of the hint")
    ((height, width),) = sizes
    if len(poses) * height * width > MAX_DRAWN_PIXELS:
        raise PictureError(
            f"{len(poses)} hints of {width}x{height} have {len(poses) * height * width:,} pixels, expected at most "
            f"{MAX_DRAWN_PIXELS:,}: choose a smaller size, or draw fewer frames at a time"
        )
    out = np.empty((len(poses), height, width, 3), np.uint8 if as_bytes else np.float32)
    for pose, hint in zip(poses, out, strict=True):
        drawn = draw(pose.resized(height, width), strokes, **parts)
        if as_bytes:
            hint[...] = drawn
        else:
            np.divide(drawn, np.float32(255.0), out=hint)
    return out


def draw(pose: Pose, strokes: Strokes | None = None, **parts: bool) -> np.ndarray:
    """Draw all people and animals of a frame on their canvas, (H,W,3) uint8. See `render` for the options."""
    canvas = np.zeros((pose.height, pose.width, 3), np.uint8)
    scaled = (strokes or Strokes()).scaled(pose.height, pose.width)
    for person in pose.people:
        draw_person(canvas, person, scaled, **parts)
    # They have no parts: they are hidden together with the bodies.
    for animal in pose.animals if parts.get("body", True) else ():
        draw_animal(canvas, animal, scaled.animal)
    return canvas


def draw_person(
    canvas: np.ndarray, person: Person, strokes: Strokes, *, body: bool = True, hands: bool = True, face: bool = True
) -> None:
    """Draw body, then hands, then face into `canvas` (H,W,3) uint8. `strokes` are in pixels of this canvas."""
    if body:
        draw_body(canvas, person.body, strokes.limb, strokes.joint)
    if hands:
        for hand in (person.left_hand, person.right_hand):
            if hand is not None:
                draw_hand(canvas, hand, strokes.bone, strokes.hand)
    if face and person.face is not None:
        for point in person.face[is_present(person.face)]:
            fill_dot(canvas, point[:2], strokes.face, FACE_COLOUR)


def draw_body(canvas: np.ndarray, body: np.ndarray, half_width: float, radius: float, threshold: float = 0.0) -> None:
    """Draw one body (18,3) into `canvas` (H,W,3) uint8: limbs first, in colours times 0.6, then joints."""
    seen = is_present(body, threshold)
    # Joints lie on top of the limbs in the pictures of the training. There is one colour more than limbs.
    for (start, end), colour in zip(BODY_LIMBS, BODY_COLOURS, strict=False):
        if seen[start] and seen[end]:
            shaded = tuple(int(channel * LIMB_SHADE) for channel in colour)
            fill_limb(canvas, body[start, :2], body[end, :2], half_width, shaded)
    for joint, colour in enumerate(BODY_COLOURS):
        if seen[joint]:
            fill_dot(canvas, body[joint, :2], radius, colour)


def draw_hand(canvas: np.ndarray, hand: np.ndarray, bone: float, radius: float) -> None:
    """Draw one hand (21,3): bones in the colours of the hue circle, then blue joints."""
    import cv2

    seen = is_present(hand)
    for index, (start, end) in enumerate(HAND_BONES):
        if seen[start] and seen[end]:
            colour = [channel * 255 for channel in colorsys.hsv_to_rgb(index / len(HAND_BONES), 1.0, 1.0)]
            ends = [tuple(int(value) for value in hand[point, :2]) for point in (start, end)]
            cv2.line(canvas, ends[0], ends[1], colour, thickness=max(1, round(bone)))
    for point in hand[seen]:
        fill_dot(canvas, point[:2], radius, HAND_JOINT_COLOUR)


def draw_animal(canvas: np.ndarray, animal: np.ndarray, width: float) -> None:
    """Draw one animal (17,3), in AP-10K's order, into `canvas` (H,W,3) uint8: plain lines, `width` pixels wide."""
    import cv2

    seen = is_present(animal)
    for (start, end), colour in ANIMAL_LIMBS:
        if seen[start] and seen[end]:
            ends = [tuple(int(value) for value in animal[point, :2]) for point in (start, end)]
            cv2.line(canvas, ends[0], ends[1], colour, thickness=max(1, round(width)))


def is_present(points: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """(N,3) keypoints -> (N,) bool: the confidence is above `threshold`, and all numbers are finite."""
    return np.isfinite(points).all(axis=1) & (np.nan_to_num(points[:, 2]) > threshold)


def fill_limb(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, half_width: float, colour: tuple[int, ...]
) -> None:
    """Fill an ellipse between two points x, y.

    A whole `half_width` is drawn on whole pixels, as the official annotator does; others with subpixel positions.
    """
    import cv2

    (x0, y0), (x1, y1) = map(float, start), map(float, end)
    centre, length = ((x0 + x1) / 2, (y0 + y1) / 2), math.hypot(x0 - x1, y0 - y1)
    # From the end to the start, as the annotator does: int() below would round the opposite angle differently.
    angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
    if half_width >= 1 and float(half_width).is_integer():
        axes = (int(length / 2), int(half_width))
        polygon = cv2.ellipse2Poly((int(centre[0]), int(centre[1])), axes, int(angle), 0, 360, 1)
        cv2.fillConvexPoly(canvas, np.asarray(polygon), colour)
        return
    turn = np.linspace(0.0, 2.0 * np.pi, 32, endpoint=False)
    along, across = np.cos(turn) * length / 2, np.sin(turn) * half_width
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    points = np.stack((centre[0] + along * cos - across * sin, centre[1] + along * sin + across * cos), axis=1)
    fixed = np.rint(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillConvexPoly(canvas, fixed, colour, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)


def fill_dot(canvas: np.ndarray, centre: np.ndarray, radius: float, colour: tuple[int, ...]) -> None:
    """Fill a circle; a whole `radius` is drawn on whole pixels, as the official annotator does."""
    import cv2

    is_whole = radius >= 1 and float(radius).is_integer()
    bits = 0 if is_whole else _SUBPIXEL_BITS
    x, y = (int(value) if is_whole else round(float(value) * (1 << bits)) for value in centre)
    cv2.circle(canvas, (x, y), max(1, round(radius * (1 << bits))), colour, thickness=-1, shift=bits)
