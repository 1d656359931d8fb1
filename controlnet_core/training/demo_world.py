"""The demo world: scenes in plain colours with a caption and exact ground truth for every condition.

`sample_scene(seed)` draws a scene, `render(scene, size)` its picture, depth, normals, labels, keypoints.
"""

from __future__ import annotations

from .demo_render import Rendered, render, render_many, render_seed
from .demo_scene import (
    ADE_CLASS,
    GROUND_COLOURS,
    KEYPOINTS,
    MANNEQUIN_COLOUR,
    MANNEQUIN_RGB,
    OBJECT_COLOURS,
    POSES,
    SKIES,
    SOLID_KINDS,
    Camera,
    Mannequin,
    Scene,
    Solid,
    caption_words,
    sample_scene,
    srgb_to_lab,
    vocabulary,
)

__all__ = [
    "ADE_CLASS",
    "GROUND_COLOURS",
    "KEYPOINTS",
    "MANNEQUIN_COLOUR",
    "MANNEQUIN_RGB",
    "OBJECT_COLOURS",
    "POSES",
    "SKIES",
    "SOLID_KINDS",
    "Camera",
    "Mannequin",
    "Rendered",
    "Scene",
    "Solid",
    "caption_words",
    "render",
    "render_many",
    "render_seed",
    "sample_scene",
    "srgb_to_lab",
    "vocabulary",
]
