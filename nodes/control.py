"""Nodes that apply ControlNets to prompts: one net, or a stack of them, with optional block weights."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..controlnet_core.control.curve import StrengthCurve
from ..controlnet_core.control.modes import MODES
from ..controlnet_core.control.weights import PRESETS
from ..controlnet_core.errors import ValueRangeError
from .fields import Output, choice, conditioning, control_net, factor, image, mask, optional, socket, text, window
from .node import Node
from .values import BlockWeights, Conditioning, ControlSpec, HintSpec, SpecStack, UnitOptions

CATEGORY = "ControlNet Core/control"
# Other packs have sockets called STACK or WEIGHTS with other contents: ours need names that nobody else uses.
STACK = "CNCORE_STACK"
WEIGHTS = "CNCORE_WEIGHTS"
SCHEDULE = "CNCORE_SCHEDULE"
OPTIONS = "CNCORE_OPTIONS"
HINTS = "CNCORE_HINTS"
BY_SLIDERS = "by the sliders"

MODE_TIP = (
    "balanced: the prompt and the hint have equal influence. prompt: favours the prompt. control: favours the hint. "
    "cfg-rw: resolution weighting from the ControlNet paper, for short or empty prompts. cfg-rw-literal: the same "
    "with the paper's constant 64 at every size. mid-only: only the middle block."
)
PROMPTS = (
    conditioning("positive", "The encoded prompt."),
    conditioning("negative", "The encoded negative prompt."),
)
# The order of ComfyUI's own apply node: the editor saves the values of widgets by position.
UNIT = (
    control_net("control_net", "The ControlNet, from Load ControlNet or from a native loader."),
    image("image", "The hint, of the kind that the ControlNet was trained on."),
    factor("strength", tooltip="How strongly the image follows the hint. 0 turns the ControlNet off at no cost."),
    *window(
        "Where control starts: 0 is pure noise, 1 is the finished image.",
        "Where control ends. Early steps decide the layout, late steps the details.",
    ),
    choice("mode", list(MODES), MODE_TIP, "balanced"),
)
UNIT_OPTIONAL = optional(
    mask("mask", "Control acts where the mask is white; without a mask it acts everywhere."),
    socket(WEIGHTS, "block_weights", "A weight for each block, from Block Weights."),
)
# Saved workflows store links by position, so inputs that were added later stay at the end.
UNIT_ADDED = optional(
    socket(SCHEDULE, "schedule", "The strength during sampling, from Strength Schedule."),
    socket(OPTIONS, "options", "Rarely needed settings, from Control Options."),
    socket(HINTS, "more_hints", "More hints for a ControlNet Union, from More Hints."),
)
CONTROLLED = (
    Output("CONDITIONING", "positive", "The prompt with control."),
    Output("CONDITIONING", "negative", "The negative prompt, with control where the mode applies it."),
)


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
    """The unit that these inputs describe. Raises ValueRangeError where start_percent is above end_percent."""
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
    """Makes the generated image follow a hint. Link it between the prompt and the sampler. Several nodes in a row add
    up. For many ControlNets, Control Unit and Apply Control Stack keep the graph tidy.
    """

    DISPLAY_NAME = "Apply ControlNet (ControlNet Core)"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["controlnet", "control", "guess mode", "apply"]
    INPUTS = (*PROMPTS, *UNIT, *UNIT_OPTIONAL, *UNIT_ADDED)
    OUTPUTS = CONTROLLED

    def run(self, positive: Conditioning, negative: Conditioning, **unit: Any) -> tuple[Conditioning, Conditioning]:
        """-> CONDITIONING, CONDITIONING."""
        return self.host.apply_control(positive, negative, [make_spec(**unit)])


class ControlUnitNode(Node):
    """One ControlNet with its hint, as part of a stack. Chain as many units as needed, then link the last one to Apply
    Control Stack.
    """

    DISPLAY_NAME = "Control Unit"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["multi controlnet", "control net stacker"]
    INPUTS = (
        *UNIT,
        *UNIT_OPTIONAL,
        *optional(socket(STACK, "stack", "The units before this one; leave it empty for the first unit.")),
        *UNIT_ADDED,
    )
    OUTPUTS = (Output(STACK, "stack", "The stack, with this unit at the end."),)

    def run(self, stack: SpecStack | None = None, **unit: Any) -> tuple[SpecStack]:
        """-> the stack."""
        return ((*(stack or ()), make_spec(**unit)),)


class ApplyControlStack(Node):
    """Makes the generated image follow all hints of a stack. The order of the units does not matter."""

    DISPLAY_NAME = "Apply Control Stack"
    CATEGORY = CATEGORY
    INPUTS = (*PROMPTS, socket(STACK, "stack", "The units, from Control Unit."))
    OUTPUTS = CONTROLLED

    def run(
        self, positive: Conditioning, negative: Conditioning, stack: SpecStack
    ) -> tuple[Conditioning, Conditioning]:
        """-> CONDITIONING, CONDITIONING."""
        return self.host.apply_control(positive, negative, stack)


class BlockWeightsNode(Node):
    """Weights for the blocks of a ControlNet. Blocks at high resolution control details, blocks at low resolution
    control the layout. Link it to Apply ControlNet or Control Unit.
    """

    DISPLAY_NAME = "Block Weights"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["soft weights", "custom controlnet weights", "layer weights"]
    INPUTS = (
        factor("full", tooltip="Blocks at the full resolution of the latent: fine details (0 to 2 in SD1.5)."),
        factor("half", tooltip="Blocks at 1/2 of the resolution (3 to 5)."),
        factor("quarter", tooltip="Blocks at 1/4 of the resolution: layout (6 to 8)."),
        factor("eighth", tooltip="Blocks at 1/8 of the resolution (9 to 11). Models with fewer levels ignore it."),
        factor("middle", tooltip="The middle block: the content of the whole image (12)."),
        *optional(
            text(
                "custom",
                "One number for each block, separated by commas, instead of the sliders: the skip connections from "
                "first to last, then the middle block (13 numbers in SD1.5).",
            ),
            choice(
                "preset",
                [BY_SLIDERS, *PRESETS],
                "A formula instead of the sliders. soft: 0.825 to the power of the distance to the middle block. "
                "soft-webui, soft-diffusers: the formulas of those two programs. linear, ease-...: from preset_first "
                "at the first block to preset_last at the middle block.",
                BY_SLIDERS,
            ),
            factor("preset_first", 0.0, "Weight of the first block for linear and ease-..."),
            factor("preset_last", 1.0, "Weight of the middle block for linear and ease-..."),
        ),
    )
    OUTPUTS = (Output(WEIGHTS, "block_weights", "The weight of each block."),)

    def run(
        self, full: float, half: float, quarter: float, eighth: float, middle: float, custom: str = "",
        preset: str = BY_SLIDERS, preset_first: float = 0.0, preset_last: float = 1.0,
    ) -> tuple[BlockWeights]:  # fmt: skip
        """-> the weights."""
        # One value for "no preset" in the engine, whatever the node calls it.
        name = "" if preset == BY_SLIDERS else preset
        levels = (full, half, quarter, eighth)
        return (BlockWeights(levels, middle, read_numbers(custom), name, preset_first, preset_last),)


def read_numbers(text: str) -> tuple[float, ...]:
    """ "1, 0.5" -> (1.0, 0.5). Raises ValueRangeError for text that is not a list of finite numbers."""
    try:
        # float() also accepts nan and inf, which would spread over the whole image.
        numbers = tuple(float(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueRangeError(f"custom weights {text!r}: expected numbers separated by commas, such as 1, 0.8, 0.5")
    return numbers
