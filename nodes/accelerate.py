"""The node that runs this pack's engine under native samplers."""

from __future__ import annotations

from typing import Any

from .fields import Output, choice, model
from .node import Node, with_text

WEIGHTS = ("shared", "packed")


class Accelerate(Node):
    """Runs this pack's engine inside any sampler. What does not change from step to step is computed once; the image
    stays the same. Where other nodes change the model (patches, hooks, other packs), ComfyUI's own code runs instead;
    after each run the text on the node says so and gives the reason.
    """

    DISPLAY_NAME = "Accelerate (ControlNet Core)"
    CATEGORY = "ControlNet Core/sample"
    SEARCH_ALIASES = ["speed", "fast", "optimize"]
    INPUTS = (
        model("model", "A Stable Diffusion model. LoRA nodes may stand before or after this node."),
        choice(
            "weights",
            WEIGHTS,
            "shared: uses the weights of the model without copying them. packed: keeps a second copy in a layout for "
            "the CPU, which is faster there and takes as much memory again.",
            "shared",
        ),
    )
    HIDDEN = ("unique_id",)
    OUTPUTS = (
        Output("MODEL", "model", "The model, for any sampler."),
        Output("STRING", "report", "Whether the engine can run this model, or the reason why it cannot."),
    )

    def run(self, model: Any, weights: str, unique_id: str | None = None) -> dict[str, Any]:
        """-> MODEL, what to expect."""
        result, text = self.host.accelerate(model, weights, unique_id)
        return with_text(text, result, text)
