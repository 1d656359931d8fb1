"""The demo world: scenes in plain colours, with a caption and exact ground truth for every kind of control.

`sample_scene(seed)` draws a scene. `render(scene, size)` returns its picture, depth, normals, labels and keypoints.
"""

from __future__ import annotations

from .captions import vocabulary
from .colours import srgb_to_lab
from .rendering import RenderedScene, render, render_many, render_seed
from .sampling import sample_scene
from .scene import ADE_CLASS
from .scene_files import write_scenes

__all__ = [
    "ADE_CLASS", "RenderedScene", "render", "render_many", "render_seed", "sample_scene", "srgb_to_lab", "vocabulary",
    "write_scenes",
]  # fmt: skip
