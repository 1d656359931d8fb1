"""The node that draws poses as hints: from keypoints of other nodes, OpenPose JSON, or a template."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..preprocessors import pose
from .fields import Output, choice, image, number, optional, side, socket, switch, text
from .node import Node, with_text
from .preprocess import CATEGORY, MAX_RESOLUTION, core_errors

TEMPLATE_SIDE = 512
AUTOMATIC = "0 takes it from the keypoints (512 for a template)."


class PoseRender(Node):
    """Draws poses with bodies, hands and faces as pose ControlNets read them: from keypoints of another node, from
    OpenPose JSON, or from a template. To find people in an image, use Human Pose, which needs a network.
    """

    DISPLAY_NAME = "Pose Render"
    CATEGORY = f"{CATEGORY}/pose"
    SEARCH_ALIASES = ["openpose", "skeleton", "keypoints", "json"]
    INPUTS = (
        text("json", "OpenPose JSON: one frame, or a list of frames. Empty: the template is used.", multiline=True),
        choice("template", list(pose.TEMPLATES), "A pose of one person, used without keypoints.", pose.TEMPLATES[0]),
        side("width", 0, 0, MAX_RESOLUTION, tooltip=f"Width of the hint in pixels; {AUTOMATIC}"),
        side("height", 0, 0, MAX_RESOLUTION, tooltip=f"Height of the hint in pixels; {AUTOMATIC}"),
        switch("body", True, "Draw limbs and joints."),
        switch("hands", True, "Draw hands, where there are keypoints for them."),
        switch("face", True, "Draw faces, where there are keypoints for them."),
        number("stroke", 1.0, 0.1, 10.0, "Thickness of the lines; pose ControlNets were trained with 1.", step=0.05),
        *optional(
            socket("POSE_KEYPOINT", "pose_keypoint", "Keypoints of another node, used instead of JSON and template."),
            image("image", "The image that the keypoints belong to: its size is used for JSON without a canvas size."),
        ),
    )
    OUTPUTS = (
        Output("IMAGE", "hint", "The drawn pose: link it to Apply ControlNet, or preview it."),
        Output("POSE_KEYPOINT", "pose_keypoint", "The same pose as keypoints, in pixels of the hint."),
        Output("STRING", "text", "What was drawn, and where it came from."),
    )

    def run(
        self, json: str, template: str, width: int, height: int, body: bool, hands: bool, face: bool, stroke: float,
        pose_keypoint: Any = None, image: Tensor | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """-> IMAGE (frames, H, W, 3), POSE_KEYPOINT, what was drawn. Raises ValueRangeError."""
        with core_errors():
            # The keypoints are in pixels of their own image, whatever the size of the hint is.
            canvas = (height, width) if image is None else (image.shape[1], image.shape[2])
            source, poses = _poses(json, template, *canvas, pose_keypoint)
            # Keypoints of another node may be in pixels of another image, or in fractions.
            sized = [frame.resized(height or frame.height, width or frame.width) for frame in poses]
            strokes = pose.Strokes().times(stroke)
            hint = torch.from_numpy(pose.render(sized, strokes=strokes, body=body, hands=hands, face=face))
        text = _report(source, sized, hint)
        return with_text(text, hint, pose.write_poses(sized), text)


def _poses(json: str, template: str, height: int, width: int, pose_keypoint: Any) -> tuple[str, tuple[pose.Pose, ...]]:
    """The source in words, and one pose for each frame."""
    # A linked input is chosen on purpose, while text fields may contain what was typed before.
    if pose_keypoint is not None:
        return "keypoints", pose.read_poses(pose_keypoint, height=height or None, width=width or None)
    if json.strip():
        return "JSON", pose.read_poses(json, height=height or None, width=width or None)
    return f"template {template}", (pose.template_pose(template, height or TEMPLATE_SIDE, width or TEMPLATE_SIDE),)


def _report(source: str, poses: list[pose.Pose], hint: Tensor) -> str:
    people = [person for frame in poses for person in frame.people]
    hands = sum(hand is not None for person in people for hand in (person.left_hand, person.right_hand))
    faces = sum(person.face is not None for person in people)
    frames, height, width = hint.shape[:3]
    notes = "".join(f"; {note}" for note in dict.fromkeys(note for frame in poses for note in frame.notes))
    return (
        f"pose from {source}: {len(people)} bodies, {hands} hands, {faces} faces in {frames} frames of "
        f"{width}x{height}; coloured limbs on black{notes}"
    )
