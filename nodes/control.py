"""Nodes of control: one net, or a stack of them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..controlnet_core.control.curve import StrengthCurve
from ..controlnet_core.control.modes import MODES
from ..controlnet_core.control.weights import PRESETS
from ..controlnet_core.errors import ValueRangeError
from .host import Node
from .values import BlockWeights, Conditioning, ControlSpec, HintSpec, SpecStack, UnitOptions

STACK = "CNCORE_STACK"
WEIGHTS = "CNCORE_WEIGHTS"
SCHEDULE = "CNCORE_SCHEDULE"
OPTIONS = "CNCORE_OPTIONS"
HINTS = "CNCORE_HINTS"
BY_SLIDERS = "by the sliders"

MODE_TIP = (
    "balanced: prompt and hint count alike. prompt: the prompt leads where both disagree. control: the hint leads. "
    "cfg-rw: the paper's resolution weighting, for short or empty prompts. cfg-rw-literal: the same with the "
    "paper's 64 at any size. mid-only: the middle block alone."
)


def unit_inputs() -> dict[str, Any]:
    """The widgets that describe a unit, in the order of the native apply node."""
    part = {"min": 0.0, "max": 1.0, "step": 0.001}
    return {
        "control_net": ("CONTROL_NET", {"tooltip": "The net, from Load ControlNet or a native loader."}),
        "image": ("IMAGE", {"tooltip": "The hint, of the kind that the net was trained to read."}),
        "strength": (
            "FLOAT",
            {
                "default": 1.0,
                "min": 0.0,
                "max": 10.0,
                "step": 0.01,
                "tooltip": "How strongly the hint is followed; 0 switches it off and costs nothing.",
            },
        ),
        "start_percent": (
            "FLOAT",
            {"default": 0.0, **part, "tooltip": "Where control begins: 0 is pure noise, 1 the finished picture."},
        ),
        "end_percent": (
            "FLOAT",
            {"default": 1.0, **part, "tooltip": "Where control ends. The layout is decided early, details late."},
        ),
        "mode": (list(MODES), {"default": "balanced", "tooltip": MODE_TIP}),
    }


def optional_inputs() -> dict[str, Any]:
    """What a unit may have besides."""
    return {
        "mask": ("MASK", {"tooltip": "Control acts where the mask is white; without one, everywhere."}),
        "block_weights": (WEIGHTS, {"tooltip": "A weight for each block, from Block Weights."}),
    }


def new_inputs() -> dict[str, Any]:
    """What came later, and therefore stands last wherever it is asked for."""
    return {
        "schedule": (SCHEDULE, {"tooltip": "Strength along the sampling, from Strength Schedule."}),
        "options": (OPTIONS, {"tooltip": "What few units need, from Control Options."}),
        "more_hints": (HINTS, {"tooltip": "Further hints for a ControlNet Union, from More Hints."}),
    }


def make_spec(
    control_net: Any,
    image: Tensor,
    strength: float,
    start_percent: float,
    end_percent: float,
    mode: str,
    mask: Tensor | None = None,
    block_weights: BlockWeights | None = None,
    schedule: StrengthCurve | None = None,
    options: UnitOptions | None = None,
    more_hints: tuple[HintSpec, ...] = (),
) -> ControlSpec:
    """The unit that these inputs describe. Raises ValueRangeError for a window that ends before it starts."""
    if start_percent > end_percent:
        raise ValueRangeError(
            f"start_percent is {start_percent:g} and end_percent {end_percent:g}: control would end before it "
            "begins, swap them"
        )
    return ControlSpec(
        control_net, image, strength, start_percent, end_percent, mode, mask, block_weights,
        schedule=schedule, options=options or UnitOptions(), hints=tuple(more_hints),
    )  # fmt: skip


class ApplyControlNet(Node):
    """One net on both halves."""

    DISPLAY_NAME = "Apply ControlNet (ControlNet Core)"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = (
        "Makes a picture follow a hint. Link it between the prompt and the sampler; several in a row add up. "
        "For many nets, Control Unit and Apply Control Stack keep the graph tidy."
    )
    SEARCH_ALIASES = ["controlnet", "control", "guess mode", "apply"]
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("The prompt, controlled.", "The negative prompt, controlled as the mode says.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": ("CONDITIONING", {"tooltip": "The encoded prompt."}),
                "negative": ("CONDITIONING", {"tooltip": "The encoded negative prompt."}),
                **unit_inputs(),
            },
            "optional": {**optional_inputs(), **new_inputs()},
        }

    def run(self, positive: Conditioning, negative: Conditioning, **unit: Any) -> tuple[Conditioning, Conditioning]:
        """-> CONDITIONING, CONDITIONING."""
        return self.host.apply_control(positive, negative, [make_spec(**unit)])


class ControlUnitNode(Node):
    """One unit of a stack."""

    DISPLAY_NAME = "Control Unit"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = "One net with its hint, as part of a stack. Chain as many as you like, then apply the stack."
    SEARCH_ALIASES = ["multi controlnet", "control net stacker"]
    RETURN_TYPES = (STACK,)
    RETURN_NAMES = ("stack",)
    OUTPUT_TOOLTIPS = ("The stack with this unit at its end.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        stack = (STACK, {"tooltip": "Units before this one; leave it open for the first."})
        return {"required": unit_inputs(), "optional": {**optional_inputs(), "stack": stack, **new_inputs()}}

    def run(self, stack: SpecStack | None = None, **unit: Any) -> tuple[SpecStack]:
        """-> the stack."""
        return ((*(stack or ()), make_spec(**unit)),)


class ApplyControlStack(Node):
    """All units of a stack on both halves."""

    DISPLAY_NAME = "Apply Control Stack"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = "Makes a picture follow all hints of a stack at once; their order does not matter."
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ApplyControlNet.OUTPUT_TOOLTIPS

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": ("CONDITIONING", {"tooltip": "The encoded prompt."}),
                "negative": ("CONDITIONING", {"tooltip": "The encoded negative prompt."}),
                "stack": (STACK, {"tooltip": "Units from Control Unit."}),
            }
        }

    def run(
        self, positive: Conditioning, negative: Conditioning, stack: SpecStack
    ) -> tuple[Conditioning, Conditioning]:
        """-> CONDITIONING, CONDITIONING."""
        return self.host.apply_control(positive, negative, stack)


class BlockWeightsNode(Node):
    """How strongly each part of the net is heard."""

    DISPLAY_NAME = "Block Weights"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = (
        "Weighs the parts of a ControlNet: what it adds at high resolution decides details, at low resolution the "
        "layout. Link it to Apply ControlNet or Control Unit."
    )
    SEARCH_ALIASES = ["soft weights", "custom controlnet weights", "layer weights"]
    RETURN_TYPES = (WEIGHTS,)
    RETURN_NAMES = ("block_weights",)
    OUTPUT_TOOLTIPS = ("A weight for each block.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def slider(tip: str) -> tuple[str, dict[str, Any]]:
            return end(1.0, tip)

        def end(default: float, tip: str) -> tuple[str, dict[str, Any]]:
            return ("FLOAT", {"default": default, "min": 0.0, "max": 10.0, "step": 0.01, "tooltip": tip})

        return {
            "required": {
                "full": slider("Blocks at the latent's own resolution: fine detail (0 to 2 in SD1.5)."),
                "half": slider("Blocks at half resolution (3 to 5)."),
                "quarter": slider("Blocks at a quarter: layout (6 to 8)."),
                "eighth": slider("Blocks at an eighth (9 to 11); nets with fewer resolutions have none."),
                "middle": slider("The middle block: the meaning of the whole (12)."),
            },
            "optional": {
                "custom": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "A number for each block instead, separated by commas: the skips first to last, "
                        "then the middle (13 in SD1.5).",
                    },
                ),
                "preset": (
                    [BY_SLIDERS, *PRESETS],
                    {
                        "default": BY_SLIDERS,
                        "tooltip": "A formula instead of the sliders. soft: 0.825 to the power of the distance to the "
                        "middle; soft-webui and soft-diffusers: as those two have it; linear and ease-...: from "
                        "preset_first at the first block to preset_last at the middle.",
                    },
                ),
                "preset_first": end(0.0, "Weight of the first block under linear and ease-..."),
                "preset_last": end(1.0, "Weight of the middle block under linear and ease-..."),
            },
        }

    def run(
        self,
        full: float,
        half: float,
        quarter: float,
        eighth: float,
        middle: float,
        custom: str = "",
        preset: str = BY_SLIDERS,
        preset_first: float = 0.0,
        preset_last: float = 1.0,
    ) -> tuple[BlockWeights]:
        """-> the weights."""
        named = "" if preset == BY_SLIDERS else preset
        levels = (full, half, quarter, eighth)
        return (BlockWeights(levels, middle, read_numbers(custom), named, preset_first, preset_last),)


def read_numbers(text: str) -> tuple[float, ...]:
    """ "1, 0.5" -> (1.0, 0.5). Raises ValueRangeError for anything that is no finite number."""
    try:
        numbers = tuple(float(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueRangeError(f"custom weights {text!r}: expected numbers separated by commas, such as 1, 0.8, 0.5")
    return numbers
