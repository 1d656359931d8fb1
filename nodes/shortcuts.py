"""What sampling may leave out, as a node, so that a workflow carries it."""

from __future__ import annotations

from typing import Any

from ..controlnet_core.engine.run import Shortcuts
from ..controlnet_core.errors import ValueRangeError
from .host import Node

SELDOM = {"default": 1, "min": 1, "max": 100}
SHARE = {"min": 0.0, "max": 1.0, "step": 0.01}


class ShortcutsNode(Node):
    """MODEL -> MODEL."""

    DISPLAY_NAME = "Shortcuts (faster, not exact)"
    CATEGORY = "ControlNet Core/sample"
    DESCRIPTION = (
        "Leaves work out while the model is sampled, at a price: the picture comes out a little different. What is "
        "left out is continued from the steps before. As it is placed, everything is off. It replaces what a Shortcuts "
        "node in front of it says. Errors in the fields are of the latent of the demo model, mean (largest) of twelve "
        "scenes in 20 steps; times are in benchmarks/README.md. In the editor it acts on ControlNets loaded with this "
        "pack, and on the UNet where Accelerate is on the same model; where it cannot act, the log and the text on the "
        "node say so."
    )
    SEARCH_ALIASES = ["speed", "fast", "cache", "deepcache", "teacache", "easycache", "guidance interval", "reuse"]
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = ("The model, for any sampler.", "What will be left out.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model. LoRA and Accelerate may stand in front or behind."}),
                "reuse_every": (
                    "INT",
                    {
                        **SELDOM,
                        "tooltip": "ControlNets run once in so many steps; 1: at each. 2: in 11 of 20 steps, error "
                        "0.5 % (1.8 %) with one net, 0.6 % (1.2 %) with three. 3: in 8 of 20, 0.9 % (1.8 %) and 0.9 % "
                        "(1.4 %).",
                    },
                ),
                "reuse_tolerance": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.01,
                        "tooltip": "ControlNets run when the latent has changed by this share since they ran; 0: at "
                        "each step. Often at the start, seldom for details. 0.1: error 0.8 % (2.0 %) with one net, "
                        "0.9 % (2.5 %) with three. With reuse_every above 1 they run when either says so.",
                    },
                ),
                "deep_every": (
                    "INT",
                    {
                        **SELDOM,
                        "tooltip": "ControlNets and all of the UNet but its top level run once in so many steps; 1: at "
                        "each. 2: in 11 of 20 steps, error 1.1 % (2.8 %) with one net, 1.3 % (3.6 %) with three. 3: in "
                        "8 of 20, 1.8 % (3.5 %) and 1.9 % (4.3 %). In the editor it needs Accelerate.",
                    },
                ),
                "encoder_every": (
                    "INT",
                    {
                        **SELDOM,
                        "tooltip": "ControlNets and the UNet's encoder run once in so many steps; 1: at each. Not with "
                        "deep_every. 2: in 11 of 20 steps, error 1.7 % (7.9 %) with one net, 1.0 % (3.4 %) with three. "
                        "In the editor it needs Accelerate.",
                    },
                ),
                "guidance_start": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        **SHARE,
                        "tooltip": "Where the negative prompt begins to count: 0 is pure noise, 1 the finished "
                        "picture. Outside, a step takes half the time. 0.1 to 0.8: error 12 % (52 %) with one net, "
                        "8.5 % (20 %) with three.",
                    },
                ),
                "guidance_end": (
                    "FLOAT",
                    {"default": 1.0, **SHARE, "tooltip": "Where the negative prompt ceases to count."},
                ),
            },
            "optional": {
                "careful": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "With the fields called every: nothing is left out in the first 30 % of the way, "
                        "where the layout is made, and less up to the half. With deep_every 3: in 11 of 20 steps, "
                        "error 1.1 % (4.6 %) with one net, 0.8 % (1.0 %) with three.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        encoder_every: int | None = None,
        deep_every: int | None = None,
        guidance_start: float | None = None,
        guidance_end: float | None = None,
    ) -> bool | str:
        """Fields that contradict each other are told before anything runs; None for one that is linked."""
        told = {
            "encoder_every": encoder_every, "deep_every": deep_every, "guidance_start": guidance_start,
            "guidance_end": guidance_end,
        }  # fmt: skip
        try:
            Shortcuts(**{name: value for name, value in told.items() if value is not None})  # type: ignore[arg-type]
        except ValueRangeError as error:
            return str(error)
        return True

    def run(self, model: Any, unique_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """-> MODEL, what will be left out. Raises ValueRangeError for fields that contradict each other."""
        result, text = self.host.shorten(model, Shortcuts(**fields), unique_id)
        return {"ui": {"text": [text]}, "result": (result, text)}
