"""People estimated by OpenPose: bodies on the whole picture, then hands and faces in boxes around them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..pose.people import Person, Pose
from .images import infer, to_input
from .openpose_decode import find_people
from .openpose_nets import BodyNet, FaceNet, HandNet

if TYPE_CHECKING:
    from ..entry import Weights
    from .library import Library

# The height of the picture for the body network, as in the official annotator.
_BODY_SIDE = 184
# Largest shorter side of the maps: for 4096 x 4096 pixels they would take 4 GB.
_MAP_SIDE = 1024
_HAND_SIDES = (184, 368, 552, 736)
_HAND_MAP = 128
_FACE_SIDE = 384
_SMALLEST_BOX = 20
_LEVEL = 0.05
# Left, top, side.
Box = tuple[int, int, int]


def estimate(
    frames: np.ndarray, *, library: Library, weights: tuple[Weights, ...], hands: bool = False, face: bool = False
) -> list[Pose]:
    """(B,H,W,3) uint8 RGB -> a pose per frame. `weights` are the files of body, hand and face.

    Raises WeightsError for a missing file before it starts, even if there is nobody in the picture.
    """
    for part in (weights[0], *(weights[1:2] if hands else ()), *(weights[2:3] if face else ())):
        library.find(part)
    # The networks were trained on BGR.
    swapped = np.ascontiguousarray(frames[..., ::-1])
    height, width = frames.shape[1:3]
    found = []
    for frame, bodies in zip(swapped, _bodies(swapped, library, weights[0]), strict=True):
        people = [Person(body) for body in bodies]
        if hands:
            people = [_with_hands(frame, person, library, weights[1]) for person in people]
        if face:
            people = [_with_face(frame, person, library, weights[2]) for person in people]
        found.append(Pose(tuple(people), height, width))
    return found


def _bodies(frames: np.ndarray, library: Library, weights: Weights) -> list[list[np.ndarray]]:
    import cv2

    net = library.net(weights, BodyNet)
    height, width = frames.shape[1:3]
    scale = _BODY_SIDE / height
    coarse = max(1.0, min(height, width) / _MAP_SIDE)
    rows, columns = round(height / coarse), round(width / coarse)
    small = [_resize(frame, int(height * scale), int(width * scale)) for frame in frames]
    h, w = small[0].shape[:2]
    bottom, right = -h % 8, -w % 8
    padded = [cv2.copyMakeBorder(f, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(128,) * 3) for f in small]
    fields, heat = infer(net, to_input(np.stack(padded), net) / 256.0 - 0.5)
    people = []
    for field, hot in zip(_channels_last(fields), _channels_last(heat), strict=True):
        maps = []
        for stack in (hot, field):
            large = _resize(stack, stack.shape[0] * 8, stack.shape[1] * 8)[:h, :w]
            maps.append(_resize(large, rows, columns))
        people.append([body * (width / columns, height / rows, 1.0) for body in find_people(*maps)])
    return people


def _with_hands(frame: np.ndarray, person: Person, library: Library, weights: Weights) -> Person:
    for side, (shoulder, elbow, wrist) in (("left_hand", (5, 6, 7)), ("right_hand", (2, 3, 4))):
        box = hand_box(person.body[[shoulder, elbow, wrist]], *frame.shape[:2])
        if box is not None:
            person = replace(person, **{side: _hand(frame, box, library, weights)})
    return person


def hand_box(arm: np.ndarray, height: int, width: int) -> Box | None:
    """The square around a hand, from shoulder, elbow and wrist (3,3). None if one is missing or it is too small.

    Its centre is a third of the forearm beyond the wrist. Its side is 1.5 times the larger of the forearm and 0.9 times
    the upper arm.
    """
    if (arm[:, 2] <= 0).any():
        return None
    shoulder, elbow, wrist = arm[:, :2]
    side = 1.5 * max(float(np.linalg.norm(wrist - elbow)), 0.9 * float(np.linalg.norm(elbow - shoulder)))
    x, y = np.maximum(wrist + 0.33 * (wrist - elbow) - side / 2, 0.0)
    side = min(side, width - x, height - y)
    return (int(x), int(y), int(side)) if side >= _SMALLEST_BOX else None


def face_box(body: np.ndarray, height: int, width: int) -> Box | None:
    """The square around a face, from nose, eyes and ears of a body (18,3). None if they are missing."""
    if body[0, 2] <= 0 or (body[14:18, 2] <= 0).all():
        return None
    reach = np.abs(body[14:18, :2] - body[0, :2]).max(axis=1) * (3.0, 3.0, 1.5, 1.5)
    half = float(reach[body[14:18, 2] > 0].max())
    x, y = np.maximum(body[0, :2] - half, 0.0)
    side = min(
        width - x if x + half > width else 2 * half,
        height - y if y + half > height else 2 * half,
    )
    return (int(x), int(y), int(side)) if side >= _SMALLEST_BOX else None


def _hand(frame: np.ndarray, box: Box, library: Library, weights: Weights) -> np.ndarray:
    """Keypoints (21,3) of the hand in `box`: peaks of the heat maps averaged over four sizes."""
    import cv2

    net = library.net(weights, HandNet)
    x, y, side = box
    crop = frame[y : y + side, x : x + side]
    blurred = cv2.GaussianBlur(crop, (0, 0), 0.8)
    average = np.zeros((_HAND_MAP, _HAND_MAP, HandNet.width))
    for size in _HAND_SIDES:
        heat = infer(net, to_input(_resize(blurred, size, size)[None], net) / 256.0 - 0.5)
        large = _resize(_channels_last(heat)[0], size, size)
        average += _resize(large, _HAND_MAP, _HAND_MAP) / len(_HAND_SIDES)
    points = np.zeros((21, 3))
    for part in range(21):
        peak = _strongest_blob(average[..., part])
        if peak is not None:
            row, column = (int(peak[i] * crop.shape[i] / _HAND_MAP) for i in (0, 1))
            points[part] = (x + column, y + row, average[peak[0], peak[1], part])
    return points


def _strongest_blob(heat: np.ndarray) -> tuple[int, int] | None:
    """Row and column of the largest value in the connected region with the largest sum."""
    from scipy.ndimage import gaussian_filter, label, sum_labels

    hot = gaussian_filter(heat, sigma=3) > _LEVEL
    found: Any = label(hot, structure=np.ones((3, 3)))
    regions, count = found
    if not count:
        return None
    best = 1 + int(np.argmax(sum_labels(heat, regions, range(1, count + 1))))
    row, column = np.unravel_index(int(np.argmax(np.where(regions == best, heat, 0.0))), heat.shape)
    return int(row), int(column)


def _with_face(frame: np.ndarray, person: Person, library: Library, weights: Weights) -> Person:
    """The person with the 70 keypoints of the face. The network's last map is the background and no keypoint."""
    box = face_box(person.body, *frame.shape[:2])
    if box is None:
        return person
    net = library.net(weights, FaceNet)
    x, y, side = box
    crop = frame[y : y + side, x : x + side]
    heat = infer(net, to_input(_resize(crop, _FACE_SIDE, _FACE_SIDE)[None], net) / 256.0 - 0.5)
    maps = F.interpolate(heat.float(), crop.shape[:2], mode="bilinear", align_corners=True)[0, :-1].cpu().numpy()
    points = np.zeros((len(maps), 3))
    for part, values in enumerate(maps):
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        if values[row, column] > _LEVEL:
            points[part] = (x + column, y + row, values[row, column])
    return replace(person, face=points)


def _channels_last(maps: Tensor) -> np.ndarray:
    return np.ascontiguousarray(maps.permute(0, 2, 3, 1).float().cpu().numpy())


def _resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize by areas to a smaller size, by Lanczos to a larger one. cv2's Lanczos takes at most four channels."""
    import cv2

    shrinks = height + width < picture.shape[0] + picture.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    size = (max(1, width), max(1, height))
    if picture.shape[-1] <= 4:
        return cv2.resize(picture, size, interpolation=way)
    planes = [cv2.resize(np.ascontiguousarray(plane), size, interpolation=way) for plane in np.moveaxis(picture, -1, 0)]
    return np.stack(planes, axis=-1)
