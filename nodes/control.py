"""Nodes that apply ControlNets to prompts: one net or a stack of them, and what a unit may have besides its hint."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..controlnet_core.control.curve import EXAMPLE, Keyframe, StrengthCurve, read_curve
from ..controlnet_core.control.easing import EASINGS
from ..controlnet_core.control.hint import FITS
from ..controlnet_core.control.keyframes import UnitKeyframe
from ..controlnet_core.control.modes import MODES
from ..controlnet_core.control.points import read_points
from ..controlnet_core.control.weights import PRESETS, BlockWeights
from ..controlnet_core.errors import ValueRangeError
from ..controlnet_core.models.union_types import UNION_CHOICES
from .fields import (
    Field,
    Output,
    choice,
    control_net,
    factor,
    image,
    mask,
    optional,
    prompts,
    share,
    socket,
    switch,
    text,
    window,
)
from .node import Node
from .values import Conditioning, ControlSpec, Halves, HintSpec, SpecStack, UnitOptions, mask_batch

CATEGORY = "ControlNet Core/control"
# Other packs have sockets called STACK or WEIGHTS with other contents: ours need names that nobody else uses.
STACK = "CNCORE_STACK"
WEIGHTS = "CNCORE_WEIGHTS"
SCHEDULE = "CNCORE_SCHEDULE"
OPTIONS = "CNCORE_OPTIONS"
HINTS = "CNCORE_HINTS"
CONSTANT = StrengthCurve((Keyframe(0.0, 1.0),))
BY_SLIDERS = "by the sliders"
UNSET = "not said"
"""The choices of no preset and of no hint type; saved workflows contain these words."""

MODE_TIP = (
    "balanced: the prompt and the hint have equal influence. prompt: favours the prompt. control: favours the hint. "
    "cfg-rw: resolution weighting from the ControlNet paper, for short or empty prompts. cfg-rw-literal: the same "
    "with the paper's constant 64 at every size. mid-only: only the middle block."
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


class ApplyControlNet(Node):
    """Makes the generated image follow a hint. Link it between the prompt and the sampler. Several nodes in a row add
    up. For many ControlNets, Control Unit and Apply Control Stack keep the graph tidy.
    """

    DISPLAY_NAME = "Apply ControlNet (ControlNet Core)"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["controlnet", "control", "guess mode", "apply"]
    INPUTS = (*prompts(), *UNIT, *UNIT_OPTIONAL, *UNIT_ADDED)
    OUTPUTS = CONTROLLED

    def run(self, positive: Conditioning, negative: Conditioning, **unit: Any) -> Halves:
        """-> CONDITIONING, CONDITIONING."""
        return self.host.apply_control(positive, negative, [ControlSpec(**unit)])


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
        return ((*(stack or ()), ControlSpec(**unit)),)


class ApplyControlStack(Node):
    """Makes the generated image follow all hints of a stack. The order of the units does not matter."""

    DISPLAY_NAME = "Apply Control Stack"
    CATEGORY = CATEGORY
    INPUTS = (*prompts(), socket(STACK, "stack", "The units, from Control Unit."))
    OUTPUTS = CONTROLLED

    def run(self, positive: Conditioning, negative: Conditioning, stack: SpecStack) -> Halves:
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


class StrengthScheduleNode(Node):
    """Changes the strength of a ControlNet during sampling. Keyframes are positions from 0 (pure noise) to 1 (the
    finished image) and do not depend on the sampler or the number of steps. Control Plan shows the result.
    """

    DISPLAY_NAME = "Strength Schedule"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["timestep keyframe", "strength curve", "weight schedule", "easing"]
    INPUTS = (
        text(
            "keyframes",
            "position: strength, one per line or separated by commas. An easing for one keyframe may follow its "
            "strength, such as 0.5: 0.4 ease-in.",
            EXAMPLE,
            multiline=True,
        ),
        choice(
            "easing",
            list(EASINGS),
            "How the strength changes from one keyframe to the next. hold keeps it until the next keyframe.",
            "linear",
        ),
        *optional(
            # A socket also in releases of the editor that have a widget for curves: the keyframes are the default.
            Field(
                "curve", "CURVE", "A curve from Curve Editor, instead of the keyframes: from left to right the "
                "position, upwards the strength.", force_input=True,
            )
        ),
    )  # fmt: skip
    OUTPUTS = (Output(SCHEDULE, "schedule", "The schedule. The strength of the unit is multiplied by it."),)

    def run(self, keyframes: str, easing: str, curve: Any = None) -> tuple[StrengthCurve]:
        """-> the schedule."""
        if curve is None:
            return (read_curve(keyframes, easing),)
        return (replace(CONSTANT, shape=read_points(curve)),)


class ScheduleKeyframe(Node):
    """Changes the mask and the block weights of a ControlNet from a position of the sampling on, until a later keyframe
    changes them again. They are multiplied with the mask and the weights of the unit itself. Chain as many as needed,
    after a Strength Schedule or alone.
    """

    DISPLAY_NAME = "Schedule Keyframe"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["timestep keyframe", "mask schedule", "attention mask over time", "block weights over time"]
    INPUTS = (
        share("position", 0.5, "Where the keyframe begins: 0 is pure noise, 1 is the finished image.", step=0.001),
        *optional(
            mask("mask", "From here on control acts where the mask is white. Without a mask, the one before it stays."),
            socket(WEIGHTS, "block_weights", "From here on, from Block Weights. Without them, those before it stay."),
            socket(SCHEDULE, "schedule", "The schedule before this keyframe; the strength is constant without one."),
        ),
    )
    OUTPUTS = (Output(SCHEDULE, "schedule", "The schedule with this keyframe."),)

    def run(
        self, position: float, mask: Tensor | None = None, block_weights: BlockWeights | None = None,
        schedule: StrengthCurve | None = None,
    ) -> tuple[StrengthCurve]:  # fmt: skip
        """-> the schedule. Raises ValueRangeError where a keyframe of the chain has the same position."""
        before = schedule or CONSTANT
        frames = (*before.unit_keyframes, UnitKeyframe(position, mask_batch(mask), block_weights))
        return (replace(before, unit_keyframes=tuple(sorted(frames, key=lambda frame: frame.position))),)


class ControlOptions(Node):
    """Further settings of a unit: how a hint of another size is resized, what the hint shows (for ControlNet Union),
    separate factors for the prompt, the negative prompt and each image of a batch, and averaging for the shuffle
    ControlNet.
    """

    DISPLAY_NAME = "Control Options"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["resize mode", "union type", "uncond multiplier", "shuffle", "global average pooling"]
    INPUTS = (
        choice(
            "hint_fit",
            list(FITS),
            "How a hint of another size is resized. crop: crop at the centre, nearest pixel, as ComfyUI does. "
            "inner-fit: crop at the centre, smooth. pad: keep all of the hint and add a border. pixel-perfect: raise "
            "an error instead of resizing.",
            "crop",
        ),
        choice(
            "hint_type",
            [UNSET, *UNION_CHOICES],
            "What the hint shows, for a ControlNet Union. Other ControlNets ignore it.",
            UNSET,
        ),
        factor("positive_factor", tooltip="Multiplies the strength for the prompt. 0: no control there."),
        factor(
            "negative_factor",
            tooltip="Multiplies the strength for the negative prompt. 0: no control there. Modes that control only "
            "the prompt ignore it.",
        ),
        text(
            "per_picture",
            "A factor for each image of a batch, separated by commas, such as 1, 0.5, 0. Repeated to fill the batch. "
            "Empty: 1 for all.",
        ),
        switch(
            "average_over_picture",
            False,
            "For the shuffle ControlNet: averages each residual over the image and adds it for the prompt only. Its "
            "file does not say that it needs this, unless there is a config.json.",
        ),
    )
    OUTPUTS = (Output(OPTIONS, "options", "The options: link them to Apply ControlNet or Control Unit."),)

    def run(
        self, hint_fit: str, hint_type: str, positive_factor: float, negative_factor: float, per_picture: str,
        average_over_picture: bool,
    ) -> tuple[UnitOptions]:  # fmt: skip
        """-> the options."""
        # Without a kind the engine uses the one that SetUnionControlNetType set on the ControlNet.
        kind = "" if hint_type == UNSET else hint_type
        items = read_numbers(per_picture)
        return (UnitOptions(hint_fit, kind, positive_factor, negative_factor, items, average_over_picture),)


class MoreHints(Node):
    """One more hint for a ControlNet Union, which can follow several hints at once. Chain as many as needed. The first
    hint is the one of the unit itself; Control Options sets its type.
    """

    DISPLAY_NAME = "More Hints"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["union", "promax", "multi control"]
    INPUTS = (
        image("image", "The hint."),
        choice("hint_type", list(UNION_CHOICES), "What the hint shows."),
        *optional(socket(HINTS, "more_hints", "The hints before this one; leave it empty for the first.")),
    )
    OUTPUTS = (Output(HINTS, "more_hints", "The hints, with this one at the end."),)

    def run(self, image: Tensor, hint_type: str, more_hints: tuple[HintSpec, ...] = ()) -> tuple[tuple[HintSpec, ...]]:
        """-> the hints."""
        # A new tuple: the list that came in may be linked to other nodes as well.
        return ((*more_hints, HintSpec(image, hint_type)),)
