"""Pose files: OpenPose JSON and ComfyUI's POSE_KEYPOINT, in the forms that different tools write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from .. import limits
from ..errors import PictureError
from .people import Person, Pose, body_from_coco17
from .skeleton import BODY_25_TO_18

_FIGURES = {"people", "animals"}
_KEYS = {
    "body": "pose_keypoints_2d",
    "left_hand": "hand_left_keypoints_2d",
    "right_hand": "hand_right_keypoints_2d",
    "face": "face_keypoints_2d",
}
# OpenPose draws 70 points of a face, other tools 68 or fewer; all are dots of one colour, so that none is refused.
_COUNTS = {"left_hand": range(21, 22), "right_hand": range(21, 22), "face": range(56, 71)}
# Whole bodies in one list: the body, six points of the feet, which no net reads, then face and hands.
# COCO-WholeBody, and the same with a neck and in OpenPose's order (DWPose).
_WHOLE_BODIES = {133: 17, 134: 18}
# Forms of other tools, by their number of keypoints and by a key of their files: the error names them.
_OTHER_BODIES = {
    15: "OpenPose MPI", 16: "MPII", 26: "Halpe", 33: "MediaPipe", 135: "OpenPose's whole body",
    136: "Halpe's whole body",
}  # fmt: skip
_OTHER_FILES = {
    "annotations": "a COCO data set", "instance_info": "an MMPose prediction",
    "keypoints": "a COCO or MMPose result", "landmarks": "a MediaPipe result",
}  # fmt: skip
# A median coordinate up to this is a share of the canvas: nobody is two pixels tall.
_LARGEST_SHARE = 2.0
# So many points say for themselves whether they are shares.
_FEWEST_POINTS = 3


def read_poses(data: Any, *, height: int | None = None, width: int | None = None) -> tuple[Pose, ...]:
    """Read OpenPose JSON or POSE_KEYPOINT: one pose per frame.

    data: JSON text, one frame (a mapping with "people"), or a sequence of frames. A body has COCO's 17 keypoints,
        OpenPose's 18 or 25, or the 133 or 134 of a whole body with hands and face. Coordinates are pixels, or shares of
        the canvas (0 to 1); which of both is decided once for all frames, by their median. A body, hand or face that
        is clearly of the other kind is read as such.
    height, width: the canvas in pixels, for files that do not name one, as those of the OpenPose command.

    A hand or a face that cannot be read is left out, and `Pose.notes` says so. Raises PictureError for anything else.
    """
    if isinstance(data, (str, bytes)):
        data = _parse(data)
    frames = [data] if isinstance(data, Mapping) else data
    if not isinstance(frames, Sequence) or not all(isinstance(f, Mapping) and _FIGURES & f.keys() for f in frames):
        raise PictureError(f'a pose is a mapping with a list of "people", or a list of those; this is {_kind(frames)}')
    if not frames:
        raise PictureError("the pose file is an empty list: it holds no frame")
    _check_limit(len(frames), limits.MAX_FRAMES, "the pose file has {:,} frames")
    poses = tuple(_read_frame(frame, height, width) for frame in frames)
    _check_limit(
        sum(pose.height * pose.width for pose in poses), limits.MAX_FILE_PIXELS, "the canvases have {:,} pixels"
    )
    seen = [_distances(part) for pose in poses for person in pose.people for part in person.parts().values()]
    seen += [_distances(animal) for pose in poses for animal in pose.animals]
    # Per file, and by the median: one point outside of the picture, at 1.05, must not turn shares into pixels.
    are_shares = bool(sum(map(len, seen))) and bool(np.median(np.concatenate(seen)) <= _LARGEST_SHARE)
    return tuple(_in_pixels(pose, are_shares) for pose in poses)


def _distances(part: np.ndarray) -> np.ndarray:
    """The absolute coordinates of the points that are seen."""
    return np.abs(part[part[:, 2] > 0, :2])


def _in_pixels(pose: Pose, are_shares: bool) -> Pose:
    """The pose with all coordinates in pixels. are_shares: what those of the file are.

    Tools join bodies, hands and faces of several networks. A part of another kind than the file would be drawn in one
    corner or far outside, so that what is clear decides for itself: a part whose points all lie within 0..1, or nearly
    so, in a file of pixels, and one whose median does not, in a file of shares.
    """
    mixed = 0

    def convert(part: np.ndarray) -> np.ndarray:
        nonlocal mixed
        seen = _distances(part)
        own = are_shares
        if len(seen) >= _FEWEST_POINTS:
            own = bool((np.median(seen) if are_shares else seen.max()) <= _LARGEST_SHARE)
        mixed += own != are_shares
        return part * np.array([pose.width, pose.height, 1.0]) if own else part

    people = tuple(Person(**{name: convert(part) for name, part in person.parts().items()}) for person in pose.people)
    animals = tuple(convert(animal) for animal in pose.animals)
    kinds = ("pixels", "shares of the canvas") if are_shares else ("shares of the canvas", "pixels")
    note = f"{mixed} parts of a figure are in {kinds[0]}, the others in {kinds[1]}"
    return replace(pose, people=people, animals=animals, notes=(*pose.notes, *([note] if mixed else [])))


def write_poses(poses: Sequence[Pose]) -> list[dict[str, Any]]:
    """Poses -> POSE_KEYPOINT: one mapping per frame, coordinates in pixels, None for a missing part.

    Frames with animals also have them as AP-10K's keypoints, under the keys that comfyui_controlnet_aux and the web UI
    use. Those read a confidence below 1 as a missing point, so that it is 1 or 0.
    """

    def numbers(points: np.ndarray | None) -> list[float] | None:
        return None if points is None else np.asarray(points, np.float64).ravel().tolist()

    def animals(pose: Pose) -> dict[str, Any]:
        seen = [animal * (1.0, 1.0, 0.0) + (0.0, 0.0, 1.0) for animal in pose.animals]
        found = [numbers(np.where(old[:, 2:] > 0, new, 0.0)) for old, new in zip(pose.animals, seen, strict=True)]
        return {"version": "ap10k", "animals": found} if found else {}

    return [
        {
            "people": [{key: numbers(getattr(person, part)) for part, key in _KEYS.items()} for person in pose.people],
            **animals(pose),
            "canvas_height": pose.height,
            "canvas_width": pose.width,
        }
        for pose in poses
    ]


def _check_limit(amount: int, limit: int, text: str) -> None:
    if amount > limit:
        raise PictureError(
            f"{text.format(amount)}, expected at most {limit:,}: split the file or make the canvas smaller"
        )


def _parse(text: str | bytes) -> Any:
    _check_limit(len(text), limits.MAX_JSON_BYTES, "the pose file has {:,} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error if isinstance(error, json.JSONDecodeError) else "a number or nesting without end"
        raise PictureError(f"the pose is not valid JSON: {reason}") from None


def _kind(frames: Any) -> str:
    """What else a file holds, by the keys of its first entry."""
    first = frames[0] if isinstance(frames, Sequence) and frames else frames
    keys = first if isinstance(first, Mapping) else ()
    return next((name for key, name in _OTHER_FILES.items() if key in keys), "something else") + ": convert it"


def _read_frame(frame: Mapping[str, Any], height: int | None, width: int | None) -> Pose:
    height, width = frame.get("canvas_height") or height, frame.get("canvas_width") or width
    if not height or not width:
        raise PictureError(
            "the pose names no canvas size: give the width and height of its picture, or link that picture"
        )
    height, width = _side(height, "height"), _side(width, "width")
    _check_limit(height * width, limits.MAX_CANVAS_PIXELS, f"the canvas of {width}x{height} has {{:,}} pixels")
    found, animals = frame.get("people", ()), frame.get("animals", ())
    if not isinstance(found, Sequence) or not all(isinstance(person, Mapping) for person in found):
        raise PictureError('"people" holds something else than a list of people')
    if not isinstance(animals, Sequence) or isinstance(animals, str):
        raise PictureError('"animals" holds something else than a list of animals')
    _check_limit(len(found), limits.MAX_PEOPLE, "a frame has {:,} people")
    _check_limit(len(animals), limits.MAX_PEOPLE, "a frame has {:,} animals")
    notes: list[str] = []
    people = tuple(_read_person(person, notes) for person in found)
    return Pose(people, height, width, tuple(notes), tuple(map(_read_animal, animals)))


def _read_animal(data: Any) -> np.ndarray:
    """AP-10K's 17 keypoints, flat or nested, (17,3)."""
    points = _to_points(data, '"animals"')
    if points is None or len(points) != 17:
        count = 0 if points is None else len(points)
        raise PictureError(f"an animal has {count} keypoints; expected the 17 of AP-10K")
    return points


def _side(value: Any, name: str) -> int:
    if isinstance(value, Real) and 1 <= float(value) <= limits.MAX_SIDE:
        return int(float(value))
    raise PictureError(f"the canvas {name} is {str(value)[:40]!r}: expected pixels, from 1 to {limits.MAX_SIDE}")


def _read_person(data: Mapping[str, Any], notes: list[str]) -> Person:
    """One person. What is wrong with a hand or a face goes to `notes`; PictureError for the body."""
    body = _read_points(data, "body")
    body = np.zeros((18, 3)) if body is None else body
    count = _WHOLE_BODIES.get(len(body))
    parts: dict[str, np.ndarray] = {}
    if count is not None:
        names = ("face", "left_hand", "right_hand")
        parts = dict(zip(names, np.split(body[count + 6 :], (68, 68 + 21)), strict=True))
        body = body[:count]
    for name, counts in _COUNTS.items():
        try:
            points = _read_points(data, name)
        except PictureError as error:
            notes.append(f"left out a {name.replace('_', ' ')}: {error}")
            continue
        if points is not None and len(points) in counts:
            parts[name] = points
        elif points is not None:
            expected = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
            notes.append(f"left out a {name.replace('_', ' ')} of {len(points)} keypoints, expected {expected}")
    return Person(_to_body18(body), **parts)


def _to_body18(body: np.ndarray) -> np.ndarray:
    if len(body) == 17:
        return body_from_coco17(body)
    if len(body) == 25:
        return body[list(BODY_25_TO_18)]
    if len(body) == 18:
        return body
    known = f", the form of {_OTHER_BODIES[len(body)]}" if len(body) in _OTHER_BODIES else ""
    raise PictureError(
        f"a body of {len(body)} keypoints{known}; expected COCO's 17, OpenPose's 18 or 25, or a whole body's 133 or 134"
    )


def _read_points(data: Mapping[str, Any], part: str) -> np.ndarray | None:
    """Flat or nested triples -> (N,3) float64; None if there are none."""
    return _to_points(data.get(_KEYS[part]), _KEYS[part])


def _to_points(data: Any, key: str) -> np.ndarray | None:
    if data is None:
        return None
    try:
        points = np.asarray(data, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise PictureError(f"{key} holds something else than numbers") from None
    if not points.size:
        return None
    if not (np.abs(points) <= limits.MAX_COORDINATE).all():
        raise PictureError(
            f"{key} holds numbers that are no place in a picture: NaN, or beyond {limits.MAX_COORDINATE:,}"
        )
    if points.size % 3:
        raise PictureError(f"{key} has {points.size} numbers; expected triples of x, y and confidence")
    return points.reshape(-1, 3)
