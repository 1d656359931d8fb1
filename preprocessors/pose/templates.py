"""A few poses to start from, drawn by hand in a box of 1 x 1 (x to the right, y down)."""

from __future__ import annotations

import numpy as np

from ..errors import ParameterError
from .people import Person, Pose, fit_to_box

# fmt: off
# nose, neck, then shoulder, elbow, wrist (right, left), hip, knee, ankle (right, left), eyes, ears.
_STANDING = (
    (50, 8), (50, 18), (38, 19), (34, 34), (32, 48), (62, 19), (66, 34), (68, 48), (43, 50), (42, 73),
    (42, 96), (57, 50), (58, 73), (58, 96), (47.5, 6), (52.5, 6), (44, 7.5), (56, 7.5),
)

# What differs from standing, by keypoint number.
_CHANGES: dict[str, dict[int, tuple[float, float]]] = {
    "standing": {},
    "t_pose": {3: (22, 19), 4: (6, 19), 6: (78, 19), 7: (94, 19)},
    "arms_up": {3: (30, 6), 4: (28, -10), 6: (70, 6), 7: (72, -10)},
    "waving": {6: (74, 12), 7: (76, -4)},
    "walking": {3: (31, 33), 4: (40, 44), 6: (68, 33), 7: (76, 44), 9: (34, 71), 10: (25, 92), 12: (64, 72),
                13: (70, 96)},
    "running": {3: (26, 31), 4: (40, 38), 6: (70, 32), 7: (82, 24), 9: (30, 62), 10: (46, 70), 12: (66, 72),
                13: (78, 94)},
    "sitting": {3: (34, 33), 4: (40, 45), 6: (66, 33), 7: (60, 45), 8: (43, 50), 9: (36, 58), 10: (37, 82),
                11: (57, 50), 12: (64, 58), 13: (63, 82)},
    "hands_on_hips": {3: (26, 33), 4: (41, 46), 6: (74, 33), 7: (59, 46)},
}
# fmt: on

TEMPLATES = tuple(_CHANGES)


def template(name: str) -> Person:
    """A person in the pose called `name`, body only, coordinates in parts of a 1 x 1 box."""
    if name not in _CHANGES:
        raise ParameterError(f"there is no pose {name!r}: choose one of {', '.join(TEMPLATES)}")
    points = np.array(_STANDING, np.float64) / 100
    for index, place in _CHANGES[name].items():
        points[index] = np.array(place) / 100
    return Person(np.concatenate([points, np.ones((18, 1))], axis=1))


def template_pose(name: str, height: int, width: int, *, box: tuple[float, float, float, float] | None = None) -> Pose:
    """One person on a canvas, in a box (left, top, right, bottom) in pixels, by default all but a margin."""
    margin = 0.06 * min(height, width)
    inside = (margin, margin, width - margin, height - margin) if box is None else box
    return Pose((fit_to_box(template(name), inside),), height, width)
