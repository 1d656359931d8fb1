"""Example images: photographs, and scenes of the demo world with their exact hints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..controlnet_core.errors import ValueRangeError
from ..preprocessors import process

# The demo world and its hints are imported where they are used: a list of names does not need them.
if TYPE_CHECKING:
    from ..controlnet_core.training.demo_world import RenderedScene

STEREO = "stereo pair"
"""A photograph beside a copy whose lower half is shifted, as if it were nearer to the camera."""
Z_PASS_SKY = 65504.0
"""Distance of the sky: the largest number of a 16-bit float, which renderers write for infinity."""
SCENES: Mapping[str, int] = {f"demo scene {i + 1}": 1_000_000 + i for i in range(12)}
"""Name -> seed of a scene. The demo model was not trained on these seeds."""
CAPTIONS: Mapping[str, str] = {
    "astronaut": "a photo of an astronaut in an orange suit in front of a flag",
    "cat": "a photo of the face of a cat",
    "coffee": "a photo of a cup of coffee on a wooden table",
    "coins": "a photo of ancient coins on dark cloth",
    "rocket": "a photo of a rocket taking off from its launch pad",
}


def load_photo(path: Path, view: str, size: int) -> tuple[Tensor, str]:
    """IMAGE (1, size, size, 3) of a photograph, and its caption. A stereo pair is twice as wide.

    view: "picture" or STEREO. Raises ValueRangeError for other views.
    """
    from PIL import Image

    from ..preprocessors.examples import SAMPLES

    if view not in ("picture", STEREO):
        raise ValueRangeError(
            f"{path.stem} is a photograph and has no exact {view} hint: choose a demo scene, or make the hint with "
            "Preprocess"
        )
    with Image.open(path) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # The largest square in the middle: the demo model was trained on squares.
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        pixels = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
    if view == STEREO:
        pixels = SAMPLES["stereo"](pixels)
    caption = CAPTIONS.get(path.stem, path.stem.replace("_", " "))
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[None], caption


def render_scene(name: str, view: str, size: int) -> tuple[Tensor, str]:
    """IMAGE (1, size, size, 3) of a demo scene, and its caption. view: a key of VIEWS."""
    if view not in VIEWS:
        raise ValueRangeError(f"{name} has no {view}: choose one of {', '.join(VIEWS)}, or a photograph")
    from ..controlnet_core.training.demo_world import render_seed

    rendered = render_seed(SCENES[name], size)
    return torch.from_numpy(np.ascontiguousarray(VIEWS[view](rendered), np.float32))[None], rendered.caption


def _edges(kind: str, rendered: RenderedScene) -> np.ndarray:
    return process(kind, np.clip(rendered.image, 0.0, 1.0)[None])[0]


def _z_pass(rendered: RenderedScene) -> np.ndarray:
    """Distances in metres, as a renderer writes them."""
    return np.repeat(np.where(np.isfinite(rendered.depth), rendered.depth, Z_PASS_SKY)[..., None], 3, axis=-1)


def _openpose(rendered: RenderedScene) -> np.ndarray:
    from ..preprocessors.pose.draw import draw_poses

    height, width = rendered.depth.shape
    scale = height / 128
    return draw_poses(
        rendered.keypoints, height, width, limb_half_width=1.75 * scale, joint_radius=max(1, round(2 * scale))
    )


def _depth(rendered: RenderedScene) -> np.ndarray:
    from ..preprocessors.depth import depth_to_hint

    return depth_to_hint(rendered.depth)


def _normal(rendered: RenderedScene) -> np.ndarray:
    from ..preprocessors.normals import encode

    # The sky has no surface: it faces the viewer, as the estimators draw it.
    normals = np.where(np.isfinite(rendered.depth)[..., None], rendered.normal, np.array((0.0, 0.0, 1.0), np.float32))
    return np.asarray(encode(normals))


def _segmentation(rendered: RenderedScene) -> np.ndarray:
    from ..controlnet_core.training.demo_world import ADE_CLASS
    from ..preprocessors.palettes import labels_to_hint

    return labels_to_hint(np.array([ADE_CLASS[name] for name in rendered.classes])[rendered.labels])


VIEWS: Mapping[str, Callable[[RenderedScene], np.ndarray]] = {
    "picture": lambda rendered: np.clip(rendered.image, 0.0, 1.0),
    "canny": lambda rendered: _edges("canny", rendered),
    # Thick strokes along the soft edges, as a person would draw them.
    "scribble": lambda rendered: (_edges("soft_edge", rendered) > 0.5).astype(np.float32),
    "depth": _depth,
    "openpose": _openpose,
    "segmentation": _segmentation,
    "z-pass": _z_pass,
    "soft_edge": lambda rendered: _edges("soft_edge", rendered),
    "lines": lambda rendered: _edges("lines", rendered),
    "lineart": lambda rendered: _edges("lineart", rendered),
    "normal": _normal,
}
"""Views of a rendered scene: each returns (H, W, 3) in [0, 1], or distances in metres for z-pass."""
