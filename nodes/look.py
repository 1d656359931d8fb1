"""Looking at results with numbers: does the picture keep to its hint?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import preprocessors
from ..controlnet_core.control.hint import fit_hint
from .headless import hint_of
from .host import Node
from .preprocess import as_core_error

EDGE_KINDS = ("canny", "lines", "scribble", "lineart", "soft_edge")


class ControlFidelity(Node):
    """How well a picture follows the edges of its hint."""

    DISPLAY_NAME = "Control Fidelity"
    CATEGORY = "ControlNet Core/look"
    DESCRIPTION = (
        "Measures how well a picture follows the edges of a hint: it looks for the same kind of edges in the picture "
        "and compares both, with a tolerance in pixels. 1 is all of them, 0 none."
    )
    SEARCH_ALIASES = ["f1", "score", "measure", "quality"]
    OUTPUT_NODE = True
    RETURN_TYPES = ("FLOAT", "STRING")
    RETURN_NAMES = ("f1", "text")
    OUTPUT_TOOLTIPS = ("Mean F1 over the batch, 0 to 1.", "The same in words.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "picture": ("IMAGE", {"tooltip": "The finished picture."}),
                "hint": ("IMAGE", {"tooltip": "The hint that it was to follow."}),
                "kind": (list(EDGE_KINDS), {"default": "canny", "tooltip": "The preprocessor that made the hint."}),
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
            }
        }

    def run(self, picture: Tensor, hint: Tensor, kind: str, tolerance: float) -> dict[str, Any]:
        """-> F1, its words."""
        from ..controlnet_core.analysis.fidelity import edge_f1

        height, width = picture.shape[1:3]
        wanted = fit_hint(hint_of(hint), height, width).amax(dim=1).numpy() > 0.5
        try:
            found = preprocessors.process(kind, picture).amax(dim=-1).numpy() > 0.5
        except preprocessors.PreprocessorError as error:
            raise as_core_error(error) from error
        scores = [edge_f1(wanted[i % len(wanted)], found[i], tolerance) for i in range(len(found))]
        mean = sum(scores) / len(scores)
        text = f"the picture follows the {kind} hint with F1 {mean:.2f} at {tolerance:g} pixels"
        return {"ui": {"text": [text]}, "result": (mean, text)}
