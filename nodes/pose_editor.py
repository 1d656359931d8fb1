"""The node that edits poses in the browser. Here it reads what the editor saved, and draws it."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..preprocessors import PictureError
from ..preprocessors import pose as poses
from .fields import Output, image, number, optional, socket, text
from .node import Node
from .pictures import show_images
from .pose import TEMPLATE_SIDE
from .preprocess import CATEGORY, core_errors

WIDGET = "CNCORE_POSE"
"""The editor's name in `web/pose_editor.js`."""
BACKGROUND_SIDE = 1024
"""Longest side in pixels of the copy of the linked image that the editor shows behind the pose."""
MAX_SENT = 2**20
"""Characters of linked keypoints that are sent to the editor. Of a longer film it gets the first frame."""


class PoseEditor(Node):
    """Draw and change poses by hand: drag the joints of bodies, hands and faces with the mouse, a finger or the
    keyboard. The pose is saved in the workflow, which gives the same picture without the editor.
    """

    DISPLAY_NAME = "Pose Editor"
    CATEGORY = f"{CATEGORY}/pose"
    SEARCH_ALIASES = ["openpose", "skeleton", "keypoints", "stick figure", "draw pose"]
    INPUTS = (
        text(
            "pose",
            "The pose as the editor saves it: OpenPose JSON with coordinates in pixels of its canvas. Empty: the "
            "linked keypoints, else one standing person.",
            widget_type=WIDGET,
        ),
        number("stroke", 1.0, 0.1, 10.0, "Thickness of the lines; pose ControlNets were trained with 1.", step=0.05),
        *optional(
            image("image", "An image to show behind the pose. As long as nothing is edited, its size is the canvas."),
            socket(
                "POSE_KEYPOINT",
                "pose_keypoint",
                "Keypoints of another node to start from. An edited pose is used in their place.",
            ),
        ),
    )
    OUTPUTS = (
        Output("IMAGE", "hint", "The drawn pose: link it to Apply ControlNet, or preview it."),
        Output("POSE_KEYPOINT", "pose_keypoint", "The pose as keypoints, in pixels of the hint."),
        Output("STRING", "json", "The pose as OpenPose JSON. A hidden joint has confidence 0."),
    )
    OUTPUT_NODE = True  # so that it can be run alone, to see a linked image or pose in the editor

    def run(self, pose: str, stroke: float, image: Tensor | None = None, pose_keypoint: Any = None) -> dict[str, Any]:
        """-> IMAGE (frames, H, W, 3), POSE_KEYPOINT, JSON text; to the editor: the linked image and keypoints.

        Raises ValueRangeError for a pose that cannot be read or is too large.
        """
        size = None if image is None else (int(image.shape[1]), int(image.shape[2]))
        with core_errors():
            linked = None if pose_keypoint is None else read(pose_keypoint, size)
            frames = read(pose, size) if pose.strip() else linked or start(size)
            hint = torch.from_numpy(poses.render(frames, strokes=poses.Strokes().times(stroke)))
        keypoints = poses.write_poses(frames)
        sent: dict[str, Any] = {} if linked is None else {"linked_pose": [for_editor(linked)]}
        if image is not None:
            sent["background"] = background(self.host, image)
        return {"ui": sent, "result": (hint, keypoints, as_json(keypoints))}


def read(data: Any, size: tuple[int, int] | None) -> tuple[poses.Pose, ...]:
    """The frames of JSON text or POSE_KEYPOINT. size: height and width of the canvas where the data have none."""
    height, width = size or (None, None)
    frames = poses.read_poses(data, height=height, width=width)
    if not frames:
        raise PictureError("the pose is an empty list: give at least one frame")
    return frames


def start(size: tuple[int, int] | None) -> tuple[poses.Pose, ...]:
    """What a new node shows: one standing person."""
    return (poses.template_pose(poses.TEMPLATES[0], *(size or (TEMPLATE_SIDE, TEMPLATE_SIDE))),)


def as_json(frames: list[dict[str, Any]]) -> str:
    """POSE_KEYPOINT as text: a mapping for one frame, as most tools write it, else a list."""
    return json.dumps(frames[0] if len(frames) == 1 else frames)


def for_editor(frames: tuple[poses.Pose, ...]) -> str:
    """Linked keypoints as text for the editor."""
    whole = as_json(poses.write_poses(frames))
    return whole if len(whole) <= MAX_SENT else as_json(poses.write_poses(frames[:1]))


def background(host: Any, image: Tensor) -> list[dict[str, Any]]:
    """The first picture of IMAGE as a temporary file, reduced, with its full height and width."""
    height, width = image.shape[1:3]
    factor = math.ceil(max(height, width) / BACKGROUND_SIDE)
    small = image[:1]
    if factor > 1:
        small = F.avg_pool2d(small.movedim(-1, 1).float(), factor, ceil_mode=True).movedim(1, -1)
    (file,) = show_images(host, small, "pose_editor")["images"]
    return [{**file, "height": int(height), "width": int(width)}]
