"""Poses as data: people with bodies, hands and faces, and the JSON forms in which tools exchange them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..errors import PictureError
from .skeleton import BODY_25_TO_18

LARGEST = 16384
"""Side of a canvas, as the editor's own nodes allow it."""
FARTHEST = 1_000_000
"""Distance of a keypoint from the corner, in pixels; those outside the canvas are drawn as far as they reach in."""
_PARTS = {
    "body": "pose_keypoints_2d",
    "left_hand": "hand_left_keypoints_2d",
    "right_hand": "hand_right_keypoints_2d",
    "face": "face_keypoints_2d",
}


@dataclass(frozen=True)
class Person:
    """Keypoints as x, y in pixels and confidence; confidence 0 is a missing one, None a missing part.

    body (18,3), hands (21,3), face (68,3) or (70,3).
    """

    body: np.ndarray
    left_hand: np.ndarray | None = None
    right_hand: np.ndarray | None = None
    face: np.ndarray | None = None

    def moved(self, scale: tuple[float, float], offset: tuple[float, float] = (0.0, 0.0)) -> Person:
        """Every x times scale[0] plus offset[0], every y times scale[1] plus offset[1]."""

        def move(points: np.ndarray | None) -> np.ndarray | None:
            if points is None:
                return None
            moved = np.array(points, np.float64)
            moved[:, :2] = moved[:, :2] * np.array(scale) + np.array(offset)
            return moved

        body = move(self.body)
        assert body is not None
        return Person(body, move(self.left_hand), move(self.right_hand), move(self.face))


@dataclass(frozen=True)
class Pose:
    """All people of one frame, on a canvas of `height` x `width` pixels."""

    people: tuple[Person, ...]
    height: int
    width: int

    def resized(self, height: int, width: int) -> Pose:
        """The same pose on a canvas of another size."""
        scale = (width / self.width, height / self.height)
        return Pose(tuple(person.moved(scale) for person in self.people), height, width)


def read_poses(data: Any, *, height: int | None = None, width: int | None = None) -> tuple[Pose, ...]:
    """OpenPose JSON or POSE_KEYPOINT -> one pose per frame.

    `data` is JSON text, one frame (a mapping with "people"), or a sequence of frames. Bodies have 18
    keypoints or OpenPose's 25. Coordinates are pixels, or parts of the canvas if none exceeds 1. Files that
    name no canvas size need `height` and `width`. Raises PictureError for anything else.
    """
    if isinstance(data, (str, bytes)):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            said = error if isinstance(error, json.JSONDecodeError) else "a number or a nesting without end"
            raise PictureError(f"the pose is not valid JSON: {said}") from None
    frames = [data] if isinstance(data, Mapping) else data
    if not isinstance(frames, Sequence) or not all(isinstance(f, Mapping) and "people" in f for f in frames):
        raise PictureError('a pose is a mapping with a list of "people", or a list of those; something else came')
    return tuple(_read_frame(frame, height, width) for frame in frames)


def write_poses(poses: Sequence[Pose]) -> list[dict[str, Any]]:
    """Poses -> POSE_KEYPOINT: one mapping per frame, coordinates in pixels."""

    def numbers(points: np.ndarray | None) -> list[float] | None:
        return None if points is None else [float(value) for value in np.asarray(points).ravel()]

    return [
        {
            "people": [{key: numbers(getattr(person, part)) for part, key in _PARTS.items()} for person in pose.people],
            "canvas_height": pose.height,
            "canvas_width": pose.width,
        }
        for pose in poses
    ]


def fit_to_box(person: Person, box: tuple[float, float, float, float], *, keep_aspect: bool = True) -> Person:
    """Move and scale a person so that the visible body fills the box (left, top, right, bottom) in pixels.

    With `keep_aspect` the scale is the same in both directions, feet stay at the bottom of the box and the
    body in its middle.
    """
    seen = person.body[person.body[:, 2] > 0, :2]
    if not len(seen):
        return person
    low, high = seen.min(axis=0), seen.max(axis=0)
    span = np.maximum(high - low, 1e-6)
    room = np.array([box[2] - box[0], box[3] - box[1]], np.float64)
    scale = np.full(2, (room / span).min()) if keep_aspect else room / span
    left = (box[0] + box[2]) / 2 - (low[0] + high[0]) / 2 * scale[0]
    return person.moved((scale[0], scale[1]), (left, box[3] - high[1] * scale[1]))


def body_from_coco17(keypoints: np.ndarray) -> np.ndarray:
    """COCO's 17 keypoints (17,3) -> OpenPose's 18; the neck is between the shoulders, if both are seen."""
    points = np.asarray(keypoints, np.float64)
    if points.shape != (17, 3):
        raise PictureError(f"keypoints of shape {points.shape} came; expected (17,3) in COCO's order")
    neck = (points[5] + points[6]) / 2
    neck[2] = min(points[5, 2], points[6, 2])
    order = [0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    return np.stack([neck if index < 0 else points[index] for index in order])


def _read_frame(frame: Mapping[str, Any], height: int | None, width: int | None) -> Pose:
    height = frame.get("canvas_height", height)
    width = frame.get("canvas_width", width)
    if not height or not width:
        raise PictureError("the pose names no canvas size: give height and width of the picture it was made for")
    height, width = _side(height, "height"), _side(width, "width")
    found = frame["people"]
    if not isinstance(found, Sequence) or not all(isinstance(person, Mapping) for person in found):
        raise PictureError('"people" holds something else than a list of people')
    people = tuple(_read_person(person) for person in found)
    parts = [part for person in people for part in vars(person).values() if part is not None]
    seen = [part[part[:, 2] > 0, :2] for part in parts]
    if any(len(s) for s in seen) and all((np.abs(s) <= 1).all() for s in seen):
        people = tuple(person.moved((float(width), float(height))) for person in people)
    return Pose(people, height, width)


def _side(value: Any, name: str) -> int:
    if isinstance(value, Real) and 1 <= value <= LARGEST:
        return int(value)
    raise PictureError(f"the canvas {name} is {str(value)[:40]!r}: expected pixels, from 1 to {LARGEST}")


def _read_person(data: Mapping[str, Any]) -> Person:
    parts = {part: _read_points(data.get(key), key) for part, key in _PARTS.items()}
    body = parts.pop("body")
    if body is None:
        body = np.zeros((18, 3))
    if len(body) == 25:
        body = body[list(BODY_25_TO_18)]
    if len(body) != 18:
        raise PictureError(f"a body of {len(body)} keypoints came; expected 18, or OpenPose's 25")
    person = Person(body, **parts)
    for part, counts in (("left_hand", (21,)), ("right_hand", (21,)), ("face", (68, 70))):
        points = getattr(person, part)
        if points is not None and len(points) not in counts:
            raise PictureError(f"{part} of {len(points)} keypoints came; expected {counts[0]}")
    return person


def _read_points(numbers: Any, key: str) -> np.ndarray | None:
    """Flat or nested triples -> (N,3) float64; None if there are none."""
    if numbers is None:
        return None
    try:
        points = np.asarray(numbers, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise PictureError(f"{key} holds something else than numbers") from None
    if not points.size:
        return None
    if not (np.abs(points) <= FARTHEST).all():
        raise PictureError(f"{key} holds numbers that are no place in a picture: NaN, or beyond {FARTHEST:,}")
    if points.size % 3:
        raise PictureError(f"{key} has {points.size} numbers; expected triples of x, y and confidence")
    return points.reshape(-1, 3)
