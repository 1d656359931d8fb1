"""The node that makes sampling faster at the price of exactness, so that a workflow can store these settings."""

from __future__ import annotations

from typing import Any

from ..controlnet_core.engine.run import Shortcuts
from ..controlnet_core.errors import ValueRangeError
from .fields import Field, Output, integer, model, number, optional, share, switch
from .node import Node, with_text


def every(name: str, tooltip: str) -> Field:
    """A number of steps in which something is computed once."""
    return integer(name, 1, 1, 100, tooltip)


class ShortcutsNode(Node):
    """Skips work during sampling, so the image changes a little. What is skipped is extrapolated from the steps before.
    All shortcuts are off at first. This node replaces the settings of a Shortcuts node before it. The errors given for
    each field are errors of the latent with the demo model: the mean (and the largest) of twelve scenes in 20 steps.
    Times are in benchmarks/README.md. Inside ComfyUI, shortcuts act on ControlNets that this pack loaded, and on the
    UNet where Accelerate is on the same model. Where a shortcut has no effect, the log and the text on the node say so.
    """

    DISPLAY_NAME = "Shortcuts (faster, not exact)"
    CATEGORY = "ControlNet Core/sample"
    SEARCH_ALIASES = ["speed", "fast", "cache", "deepcache", "teacache", "easycache", "guidance interval", "reuse"]
    INPUTS = (
        model("model", "The model. LoRA and Accelerate may stand before or after this node."),
        every(
            "reuse_every",
            "Run the ControlNets once in this many steps; 1 is every step. 2: in 11 of 20 steps, error 0.5 % (1.8 %) "
            "with one ControlNet, 0.6 % (1.2 %) with three. 3: in 8 of 20 steps, 0.9 % (1.8 %) and 0.9 % (1.4 %).",
        ),
        number(
            "reuse_tolerance",
            0.0,
            0.0,
            10.0,
            "Run the ControlNets when the latent has changed by this fraction since they last ran; 0 is every step. "
            "They run often at the start and rarely at the end. 0.1: error 0.8 % (2.0 %) with one ControlNet, 0.9 % "
            "(2.5 %) with three. Together with reuse_every, they run when one of the two conditions is met.",
        ),
        every(
            "deep_every",
            "Run the ControlNets and the lower levels of the UNet once in this many steps; the top level runs in "
            "every step. 2: in 11 of 20 steps, error 1.1 % (2.8 %) with one ControlNet, 1.3 % (3.6 %) with three. 3: "
            "in 8 of 20 steps, 1.8 % (3.5 %) and 1.9 % (4.3 %). Inside ComfyUI it needs Accelerate.",
        ),
        every(
            "encoder_every",
            "Run the ControlNets and the encoder of the UNet once in this many steps; 1 is every step. Cannot be "
            "combined with deep_every. 2: in 11 of 20 steps, error 1.7 % (7.9 %) with one ControlNet, 1.0 % (3.4 %) "
            "with three. Inside ComfyUI it needs Accelerate.",
        ),
        share(
            "guidance_start",
            0.0,
            "Where guidance by the negative prompt starts: 0 is pure noise, 1 is the finished image. Without guidance "
            "a step takes half the time. 0.1 to 0.8: error 12 % (52 %) with one ControlNet, 8.5 % (20 %) with three.",
        ),
        share("guidance_end", 1.0, "Where guidance by the negative prompt ends."),
        *optional(
            switch(
                "careful",
                False,
                "For the fields whose names end in every: computes every step until 30 % of the sampling, where the "
                "layout is decided, and at least every second step until 50 %. With deep_every 3: in 11 of 20 steps, "
                "error 1.1 % (4.6 %) with one ControlNet, 0.8 % (1.0 %) with three.",
            )
        ),
    )
    HIDDEN = ("unique_id",)
    OUTPUTS = (
        Output("MODEL", "model", "The model, for any sampler."),
        Output("STRING", "report", "What will be skipped."),
    )

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        encoder_every: int | None = None,
        deep_every: int | None = None,
        guidance_start: float | None = None,
        guidance_end: float | None = None,
    ) -> bool | str:
        """True, or a message about fields that contradict each other. A linked field is None."""
        # ComfyUI passes only the inputs that are named here, so **fields would receive nothing.
        fields = {
            "encoder_every": encoder_every, "deep_every": deep_every, "guidance_start": guidance_start,
            "guidance_end": guidance_end,
        }  # fmt: skip
        try:
            Shortcuts(**{name: value for name, value in fields.items() if value is not None})  # type: ignore[arg-type]
        except ValueRangeError as error:
            return str(error)
        return True

    def run(self, model: Any, unique_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """-> MODEL, what will be skipped. Raises ValueRangeError for fields that contradict each other."""
        result, text = self.host.shorten(model, Shortcuts(**fields), unique_id)
        return with_text(text, result, text)
