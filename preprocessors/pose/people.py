"""Poses as data: people with bodies, hands and faces on a canvas."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import PictureError


@dataclass(frozen=True)
class Person:
    """The keypoints of one person: rows of x and y in pixels, and confidence. Confidence 0 means a missing point.

    body: (18,3) in OpenPose's order. left_hand, right_hand: (21,3). face: (56,3) to (70,3). None is a missing part.
    """

    body: np.ndarray
    left_hand: np.ndarray | None = None
    right_hand: np.ndarray | None = None
    face: np.ndarray | None = None

    def parts(self) -> dict[str, np.ndarray]:
        """The parts that are not missing, by name."""
        return {name: points for name, points in vars(self).items() if points is not None}

    def moved(self, scale: tuple[float, float], offset: tuple[float, float] = (0.0, 0.0)) -> Person:
        """Multiply every x by scale[0] and every y by scale[1], then add the offsets."""
        # The last ones keep the confidence.
        factors, offsets = np.array([*scale, 1.0]), np.array([*offset, 0.0])
        return Person(**{name: points * factors + offsets for name, points in self.parts().items()})


@dataclass(frozen=True)
class Pose:
    """All people of one frame on a canvas of `height` x `width` pixels.

    notes: sentences about parts of the file that were left out, for the user.
    animals: (17,3) each, in the order of AP-10K (`skeleton.ANIMAL_LIMBS`).
    """

    people: tuple[Person, ...]
    height: int
    width: int
    notes: tuple[str, ...] = ()
    animals: tuple[np.ndarray, ...] = ()

    def scaled(self, scale: tuple[float, float]) -> Pose:
        """The same frame with every x multiplied by scale[0] and every y by scale[1]."""
        factors = np.array([*scale, 1.0])
        people = tuple(person.moved(scale) for person in self.people)
        return replace(self, people=people, animals=tuple(animal * factors for animal in self.animals))

    def resized(self, height: int, width: int) -> Pose:
        """The same pose on a canvas of another size."""
        return replace(self.scaled((width / self.width, height / self.height)), height=height, width=width)


def fit_to_box(person: Person, box: tuple[float, float, float, float], *, keep_aspect: bool = True) -> Person:
    """Move and scale a person so that the visible body fills the box (left, top, right, bottom), in pixels.

    With `keep_aspect` the scale is the same in both directions, the feet stand on the bottom of the box, and the body
    is centred between its left and right side.
    """
    seen = person.body[person.body[:, 2] > 0, :2]
    if not len(seen):
        return person
    low, high = seen.min(axis=0), seen.max(axis=0)
    # One visible point, or a line of them, has no width.
    span = np.maximum(high - low, 1e-6)
    room = np.array([box[2] - box[0], box[3] - box[1]], np.float64)
    scale = np.full(2, (room / span).min()) if keep_aspect else room / span
    left = (box[0] + box[2]) / 2 - (low[0] + high[0]) / 2 * scale[0]
    return person.moved((scale[0], scale[1]), (left, box[3] - high[1] * scale[1]))


def body_from_coco17(keypoints: np.ndarray) -> np.ndarray:
    """COCO's 17 keypoints (17,3) -> OpenPose's 18 (18,3).

    COCO has no neck: it is put in the middle between the shoulders, and is missing unless both are seen.
    """
    points = np.asarray(keypoints, np.float64)
    if points.shape != (17, 3):
        raise PictureError(f"keypoints have shape {points.shape}, expected (17,3) in COCO's order")
    neck = (points[5] + points[6]) / 2
    neck[2] = min(points[5, 2], points[6, 2])
    # OpenPose: nose, neck, then arms and legs with the right side first, then eyes and ears. -1 is the neck.
    order = [0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    return np.stack([neck if index < 0 else points[index] for index in order])


def person_from_whole_body(keypoints: np.ndarray) -> Person:
    """COCO-WholeBody's 133 keypoints (133,3) -> body, face (68,3) and hands (21,3) as OpenPose has them.

    They are 17 of the body, 6 of the feet, which no net reads, 68 of the face, 21 of the left and 21 of the right hand.
    """
    points = np.asarray(keypoints, np.float64)
    if points.shape != (133, 3):
        raise PictureError(f"keypoints have shape {points.shape}, expected (133,3) in the order of COCO-WholeBody")
    body, _, face, left, right = np.split(points, (17, 23, 91, 112))
    return Person(body_from_coco17(body), left, right, face)
