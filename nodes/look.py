"""Looking at results with numbers: does the picture keep to its hint?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import preprocessors
from ..controlnet_core.analysis import fidelity
from ..controlnet_core.analysis.charts import draw_comparison
from ..controlnet_core.analysis.fidelity import Agreement
from ..controlnet_core.control.hint import fit_hint
from .host import Node
from .pictures import shown, to_image
from .preprocess import as_core_error
from .units import hint_of

EDGE_KINDS = ("canny", "lines", "scribble", "lineart", "soft_edge")
FINDERS: Mapping[str, str] = MappingProxyType(
    {**{kind: kind for kind in EDGE_KINDS}, "depth": "depth_anything_v2", "normal": "normal_bae"}
)
"""The preprocessor that finds in a picture what a hint of this kind shows; segments are told by colour."""


class ControlFidelity(Node):
    """How well a picture keeps to its hint."""

    DISPLAY_NAME = "Control Fidelity"
    CATEGORY = "ControlNet Core/look"
    DESCRIPTION = (
        "Measures how well a picture keeps to its hint, from 0 to 1: edges by F1 with a tolerance in pixels, segments "
        "by intersection over union, depth and normals by the share of pixels that are right, with the mean error "
        "beside it. The picture shows hits, what is missed, and what is there without being asked for."
    )
    SEARCH_ALIASES = ["f1", "score", "measure", "quality", "iou"]
    OUTPUT_NODE = True
    RETURN_TYPES = ("FLOAT", "STRING", "IMAGE")
    RETURN_NAMES = ("f1", "text", "picture")
    OUTPUT_TOOLTIPS = (
        "Mean score over the batch, 0 to 1: F1 for edges, IoU for segments, share of right pixels for the others.",
        "The same in words.",
        "Hint, picture, and the picture with hits and misses in colours, side by side.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "picture": ("IMAGE", {"tooltip": "The finished picture."}),
                "hint": ("IMAGE", {"tooltip": "The hint that it was to follow."}),
                "kind": (
                    [*EDGE_KINDS, "segmentation", "depth", "normal"],
                    {
                        "default": "canny",
                        "tooltip": "What the hint shows. Edges are found in the picture without weights, segments by "
                        "their colours; depth and normal need the network of that preprocessor, or a map linked to "
                        "found.",
                    },
                ),
                "tolerance": (
                    "FLOAT",
                    {
                        "default": 2.0,
                        "min": 0.0,
                        "max": 64.0,
                        "step": 0.5,
                        "tooltip": "How far apart, in pixels, two edges may lie and still count as the same.",
                    },
                ),
            },
            "optional": {
                "found": (
                    "IMAGE",
                    {
                        "tooltip": "The same kind of map, made from the finished picture by a preprocessor of your "
                        "choice; without it one is made."
                    },
                )
            },
        }

    def run(
        self, picture: Tensor, hint: Tensor, kind: str, tolerance: float, found: Tensor | None = None
    ) -> dict[str, Any]:
        """-> score, its words, IMAGE (B, H, W, 3)."""
        height, width = picture.shape[1:3]
        wanted = fit_hint(hint_of(hint), height, width).movedim(1, -1).cpu().numpy()
        maps = self._found(picture, kind, found)
        results, drawings = [], []
        for i, pixels in enumerate(picture[..., :3].cpu().numpy()):
            expected, there = wanted[i % len(wanted)], None if maps is None else maps[i % len(maps)]
            results.append(agreement(kind, expected, pixels, there, tolerance))
            drawings.append(draw_comparison(expected, pixels, results[-1]))
        mean = sum(result.score for result in results) / len(results)
        text = "\n".join([headline(kind, mean, tolerance), *(f"  {result.words}" for result in results)])
        image = torch.cat([to_image(drawing) for drawing in drawings])
        return {"ui": {"text": [text], **shown(self.host, image)}, "result": (mean, text, image)}

    def _found(self, picture: Tensor, kind: str, found: Tensor | None) -> np.ndarray | None:
        """(B, H, W, 3): what the pictures show, as maps of the hint's kind; None for segments told by colour."""
        if found is not None:
            return fit_hint(hint_of(found), picture.shape[1], picture.shape[2]).movedim(1, -1).cpu().numpy()
        if kind not in FINDERS:
            return None
        try:
            entry = preprocessors.get(FINDERS[kind])
            library = self.host.library() if entry.weights else None
            return entry.process(picture[..., :3].cpu().numpy(), library=library)
        except preprocessors.PreprocessorError as error:
            raise as_core_error(error) from error


def agreement(kind: str, hint: np.ndarray, picture: np.ndarray, found: np.ndarray | None, pixels: float) -> Agreement:
    """One picture (H, W, 3) and its hint (H, W, C), compared as the kind asks for; `found` as the hint."""
    if found is None:
        return fidelity.compare_segments_by_colour(_rgb(hint), picture)
    if kind in EDGE_KINDS:
        return fidelity.compare_edges(hint.max(axis=-1) > 0.5, found.max(axis=-1) > 0.5, pixels)
    compare, form = DENSE[kind]
    return compare(form(hint), form(found))


def _rgb(hint: np.ndarray) -> np.ndarray:
    return np.repeat(hint, 3, axis=-1) if hint.shape[-1] == 1 else hint[..., :3]


def _gray(hint: np.ndarray) -> np.ndarray:
    return hint[..., :3].mean(axis=-1)


DENSE: Mapping[str, tuple[Callable[..., Agreement], Callable[[np.ndarray], np.ndarray]]] = MappingProxyType(
    {
        "segmentation": (fidelity.compare_segments, _rgb),
        "depth": (fidelity.compare_depth, _gray),
        "normal": (fidelity.compare_normals, _rgb),
    }
)


def headline(kind: str, score: float, tolerance: float) -> str:
    """The score in words."""
    measures = {
        "segmentation": f"mean IoU {score:.2f}",
        "depth": f"{score:.0%} of the pixels within 0.05 of the range",
        "normal": f"{score:.0%} of the pixels within {fidelity.STEEP_DEGREES} degrees",
    }
    measure = measures.get(kind, f"F1 {score:.2f} at {tolerance:g} pixels")
    return f"the picture keeps to the {kind} hint with {measure}"
