"""Poses as hints: from keypoints of other nodes, from OpenPose JSON, or from a template."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..preprocessors import PreprocessorError, pose
from .host import Node
from .preprocess import as_core_error

TEMPLATE_SIDE = 512


class PoseRender(Node):
    """Keypoints in, a drawn pose out."""

    DISPLAY_NAME = "Pose Render"
    CATEGORY = "ControlNet Core/preprocess/pose"
    DESCRIPTION = (
        "Draws poses as pose ControlNets read them, with bodies, hands and faces: keypoints of another node, OpenPose "
        "JSON, or a template. It finds nobody in a picture; Human Pose does, with a network."
    )
    SEARCH_ALIASES = ["openpose", "skeleton", "keypoints", "json"]
    RETURN_TYPES = ("IMAGE", "POSE_KEYPOINT", "STRING")
    RETURN_NAMES = ("hint", "pose_keypoint", "text")
    OUTPUT_TOOLTIPS = (
        "The drawn pose: link it to Apply ControlNet, or preview it.",
        "The same pose as keypoints in pixels of the hint.",
        "What was drawn, and from what.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 0, "min": 0, "max": 8192, "step": 8}
        own = "0 takes it from the keypoints (512 for a template)."
        return {
            "required": {
                "json": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "OpenPose JSON: one frame, or a list of frames. Empty takes the template.",
                    },
                ),
                "template": (
                    list(pose.TEMPLATES),
                    {"default": pose.TEMPLATES[0], "tooltip": "One person, where no keypoints are given."},
                ),
                "width": ("INT", {**side, "tooltip": f"Width of the hint in pixels; {own}"}),
                "height": ("INT", {**side, "tooltip": f"Height of the hint in pixels; {own}"}),
                "body": ("BOOLEAN", {"default": True, "tooltip": "Draw limbs and joints."}),
                "hands": ("BOOLEAN", {"default": True, "tooltip": "Draw hands, where there are keypoints for them."}),
                "face": ("BOOLEAN", {"default": True, "tooltip": "Draw faces, where there are keypoints for them."}),
                "stroke": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.1,
                        "max": 10.0,
                        "step": 0.05,
                        "tooltip": "Thickness of all strokes; 1 is what the nets were trained on.",
                    },
                ),
            },
            "optional": {
                "pose_keypoint": (
                    "POSE_KEYPOINT",
                    {"tooltip": "Keypoints of another node; they go before JSON and template."},
                )
            },
        }

    def run(
        self,
        json: str,
        template: str,
        width: int,
        height: int,
        body: bool,
        hands: bool,
        face: bool,
        stroke: float,
        pose_keypoint: Any = None,
    ) -> dict[str, Any]:
        """-> IMAGE (frames, H, W, 3), POSE_KEYPOINT, what was drawn. Raises ValueRangeError."""
        try:
            source, poses = _poses(json, template, width, height, pose_keypoint)
            sized = [frame.resized(height or frame.height, width or frame.width) for frame in poses]
            strokes = pose.Strokes().times(stroke)
            hint = torch.from_numpy(pose.render(sized, strokes=strokes, body=body, hands=hands, face=face))
        except PreprocessorError as error:
            raise as_core_error(error) from error
        text = _report(source, sized, hint)
        return {"ui": {"text": [text]}, "result": (hint, pose.write_poses(sized), text)}


def _poses(
    json: str, template: str, width: int, height: int, pose_keypoint: Any
) -> tuple[str, tuple[pose.Pose, ...]]:
    """Where the poses came from, and a pose per frame."""
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
    return (
        f"pose from {source}: {len(people)} bodies, {hands} hands, {faces} faces in {frames} frames of "
        f"{width}x{height}; coloured limbs on black"
    )
