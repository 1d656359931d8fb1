"""The demo world's jointed figure: poses, joints, and the capsules that it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .colours import MANNEQUIN_COLOUR

Vec = np.ndarray
Capsule = tuple[Vec, Vec, float]
"""End, other end, (3,) each, and radius, in metres."""
Angles = tuple[float, float]
"""(spread, swing) of a limb in degrees."""
SIDES = (("right", -1.0), ("left", 1.0))
"""Name, and sign of the x axis: x points to the figure's left."""


@dataclass(frozen=True)
class Pose:
    """Directions of the limbs, (right, left) for each pair.

    A direction is (spread, swing) in degrees. Spread 0 hangs down, 90 points sideways, 180 points up. Swing leans the
    limb forward. `words` describes the pose in captions.
    """

    words: str
    upper_arms: tuple[Angles, Angles]
    forearms: tuple[Angles, Angles]
    thighs: tuple[Angles, Angles] = ((5, 0), (5, 0))
    shins: tuple[Angles, Angles] = ((3, 0), (3, 0))


_WIDE = ((27.0, 0.0), (27.0, 0.0))
_WIDE_SHINS = ((22.0, 0.0), (22.0, 0.0))
_STRIDE = ((3.0, 30.0), (3.0, -24.0))
_STRIDE_SHINS = ((3.0, 12.0), (3.0, -42.0))
_OTHER_STRIDE = (_STRIDE[1], _STRIDE[0]), (_STRIDE_SHINS[1], _STRIDE_SHINS[0])
_BENT = ((52, 30), (52, 30))
_BENT_SHINS = ((-8, -18), (-8, -18))
POSES: Mapping[str, Pose] = {
    "standing": Pose("standing", ((14, 0), (14, 0)), ((8, 8), (8, 8))),
    "arms up": Pose("with raised arms", ((152, 0), (152, 0)), ((168, 0), (168, 0))),
    "arms out": Pose("with arms out", ((88, 0), (88, 0)), ((90, 0), (90, 0))),
    "right arm up": Pose("with one raised arm", ((158, 0), (15, 0)), ((170, 0), (8, 8))),
    "left arm up": Pose("with one raised arm", ((15, 0), (158, 0)), ((8, 8), (170, 0))),
    "waving right": Pose("waving", ((92, 0), (15, 0)), ((172, 0), (8, 8))),
    "waving left": Pose("waving", ((15, 0), (92, 0)), ((8, 8), (172, 0))),
    "flexing": Pose("with bent arms", ((88, 0), (88, 0)), ((176, 0), (176, 0))),
    "hands on hips": Pose("with hands on hips", ((52, 0), (52, 0)), ((-42, 0), (-42, 0))),
    "walking": Pose("walking", ((14, -34), (14, 36)), ((10, -8), (10, 70)), _STRIDE, _STRIDE_SHINS),
    "walking other": Pose("walking", ((14, 36), (14, -34)), ((10, 70), (10, -8)), *_OTHER_STRIDE),
    "legs apart": Pose("with legs apart", ((30, 0), (30, 0)), ((24, 0), (24, 0)), _WIDE, _WIDE_SHINS),
    "star": Pose("with arms and legs apart", ((135, 0), (135, 0)), ((138, 0), (138, 0)), _WIDE, _WIDE_SHINS),
    "squatting": Pose("with bent knees", ((80, 30), (80, 30)), ((110, 40), (110, 40)), _BENT, _BENT_SHINS),
}


def _both_sides(*joints: str) -> list[str]:
    return [f"{side} {joint}" for side, _ in SIDES for joint in joints]


# The order of OpenPose's 18 keypoints (COCO with a neck).
KEYPOINTS: tuple[str, ...] = (
    *("nose", "neck"),
    *_both_sides("shoulder", "elbow", "wrist"),
    *_both_sides("hip", "knee", "ankle"),
    *_both_sides("eye"),
    *_both_sides("ear"),
)
FACE_KEYPOINTS = (0, 14, 15, 16, 17)

FOOT_RADIUS = 0.065
HEAD_RADIUS = 0.145


def _limb(first: str, second: str, third: str, upper: float, lower: float) -> list[tuple[str, str, float]]:
    chains = [[f"{side} {joint}" for joint in (first, second, third)] for side, _ in SIDES]
    return [part for a, b, c in chains for part in ((a, b, upper), (b, c, lower))]


CAPSULES: tuple[tuple[str, str, float], ...] = (
    ("head", "head", HEAD_RADIUS),
    ("neck", "head", 0.06),
    ("right shoulder", "left shoulder", 0.09),
    ("right chest", "right waist", 0.115),
    ("left chest", "left waist", 0.115),
    ("chest", "pelvis", 0.115),
    ("right hip", "left hip", 0.11),
    *_limb("shoulder", "elbow", "hand", 0.068, 0.06),
    *_limb("hip", "knee", "ankle", 0.09, 0.07),
    ("right ankle", "right toe", FOOT_RADIUS),
    ("left ankle", "left toe", FOOT_RADIUS),
)
"""Joint, joint, radius in metres of the parts of a 1.75 m body."""


@dataclass(frozen=True)
class Mannequin:
    """A jointed figure that stands on the ground at `x`, `z` (metres).

    yaw: in radians, 0 faces the viewer. stature: scales a body of 1.75 m. jitter: one (spread, swing) offset in degrees
    for each limb, in the order of `Pose`.
    """

    pose: str
    x: float
    z: float
    stature: float = 1.0
    yaw: float = 0.0
    jitter: tuple[Angles, ...] = ((0.0, 0.0),) * 8
    kind: str = "person"
    colour: str = MANNEQUIN_COLOUR

    def skeleton(self) -> dict[str, Vec]:
        """Joint name -> position (3,) in world space: the 18 of `KEYPOINTS`, and those that only `CAPSULES` use."""
        body = _joints(POSES[self.pose], self.jitter)
        lowest = min(min(body[f"{side} ankle"][1], body[f"{side} toe"][1]) for side, _ in SIDES)
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
        base = np.array([self.x, 0.0, self.z])
        # The lowest foot touches the ground, whatever the pose.
        lift = np.array([0.0, FOOT_RADIUS - lowest, 0.0])
        return {name: turn @ ((p + lift) * self.stature) + base for name, p in body.items()}

    def joints(self) -> Vec:
        """(18, 3) world positions in the order of `KEYPOINTS`."""
        skeleton = self.skeleton()
        return np.stack([skeleton[name] for name in KEYPOINTS])

    def capsules(self) -> tuple[Capsule, ...]:
        """The parts of the figure in world space; the head is a capsule of length 0."""
        skeleton = self.skeleton()
        return tuple((skeleton[a], skeleton[b], radius * self.stature) for a, b, radius in CAPSULES)

    @property
    def clearance(self) -> float:
        """Radius (metres) on the ground that other objects keep free."""
        # Spread legs need more room.
        spread = max(abs(a) for a, _ in POSES[self.pose].thighs)
        return (0.36 + 0.010 * spread) * self.stature


def _direction(side: float, spread: float, swing: float) -> Vec:
    """Unit vector of a limb in the body's frame: x to its left, y up, z forward."""
    a, s = math.radians(spread), math.radians(swing)
    x, y = side * math.sin(a), -math.cos(a)
    return np.array([x, y * math.cos(s), math.sin(s) * abs(y)])


def _joints(pose: Pose, jitter: Sequence[Angles]) -> dict[str, Vec]:
    """Joint positions in the body's frame (pelvis at the origin), in metres for a body of 1.75 m."""
    head = np.array([0.0, 0.72, 0.01])
    joints = {
        "pelvis": np.zeros(3),
        "chest": np.array([0.0, 0.38, 0.0]),
        "neck": np.array([0.0, 0.50, 0.0]),
        "head": head,
        "nose": head + HEAD_RADIUS * np.array([0.0, -0.08, 0.99]),
    }
    offsets = [np.asarray(o) for o in jitter]
    for i, (name, side) in enumerate(SIDES):
        limbs = (pose.upper_arms, pose.forearms, pose.thighs, pose.shins)
        angles = [np.asarray(limb[i], dtype=float) + offsets[2 * k + i] for k, limb in enumerate(limbs)]
        directions = [_direction(side, *pair) for pair in angles]
        joints |= {f"{name} {joint}": at for joint, at in _side_joints(head, side, directions)}
    return joints


def _side_joints(head: Vec, side: float, directions: Sequence[Vec]) -> Iterator[tuple[str, Vec]]:
    """Joints of one side; directions: of upper arm, forearm, thigh and shin."""
    upper_arm, forearm, thigh, shin = directions
    shoulder, hip = np.array([0.20 * side, 0.46, 0.0]), np.array([0.105 * side, -0.02, 0.0])
    elbow, knee = shoulder + 0.29 * upper_arm, hip + 0.40 * thigh
    ankle = knee + 0.39 * shin
    yield "eye", head + HEAD_RADIUS * np.array([0.36 * side, 0.26, 0.895])
    yield "ear", head + HEAD_RADIUS * np.array([0.96 * side, 0.05, 0.05])
    yield from (("shoulder", shoulder), ("elbow", elbow), ("wrist", elbow + 0.25 * forearm))
    yield "hand", elbow + 0.30 * forearm
    yield "chest", np.array([0.085 * side, 0.38, 0.0])
    yield "waist", np.array([0.085 * side, 0.0, 0.0])
    yield from (("hip", hip), ("knee", knee), ("ankle", ankle))
    yield "toe", ankle + np.array([0.03 * side, -0.02, 0.14])
