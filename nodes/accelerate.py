"""Our engine under native samplers."""

from __future__ import annotations

from typing import Any

from .host import Node

WEIGHTS = ("shared", "packed")


class Accelerate(Node):
    """MODEL -> MODEL."""

    DISPLAY_NAME = "Accelerate (ControlNet Core)"
    CATEGORY = "ControlNet Core/sample"
    DESCRIPTION = (
        "Runs this pack's engine inside any sampler: what does not change from step to step is computed once. The "
        "picture stays the same. Where something else works on the model (patches, hooks, other packs), the editor's "
        "own way is taken; the text on the node says so after each run, and why."
    )
    SEARCH_ALIASES = ["speed", "fast", "optimize"]
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = ("The model, for any sampler.", "Whether the engine can run on this model and, if not, why.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A Stable Diffusion model. LoRA may stand in front or behind."}),
                "weights": (
                    list(WEIGHTS),
                    {
                        "default": "shared",
                        "tooltip": "shared: uses the model's own weights, copies nothing. packed: keeps a second copy "
                        "of them in the processor's own layout; faster on a CPU, takes as much memory again.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, model: Any, weights: str, unique_id: str | None = None) -> dict[str, Any]:
        """-> MODEL, what to expect."""
        result, text = self.host.accelerate(model, weights, unique_id)
        return {"ui": {"text": [text]}, "result": (result, text)}
