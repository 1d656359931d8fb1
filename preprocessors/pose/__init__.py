"""Poses: keypoints as data, and the pictures that the pose ControlNets read."""

from __future__ import annotations

from .draw import Strokes, draw_poses, render
from .keypoint_json import read_poses, write_poses
from .people import Person, Pose, body_from_coco17, fit_to_box, person_from_whole_body
from .templates import TEMPLATES, template, template_pose

__all__ = [
    "TEMPLATES",
    "Person",
    "Pose",
    "Strokes",
    "body_from_coco17",
    "draw_poses",
    "fit_to_box",
    "person_from_whole_body",
    "read_poses",
    "render",
    "template",
    "template_pose",
    "write_poses",
]
