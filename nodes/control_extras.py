"""Nodes for what few units need: a strength schedule, rarely used options, and hints for ControlNet Union."""

from __future__ import annotations

from torch import Tensor

from ..controlnet_core.control.curve import EXAMPLE, StrengthCurve, read_curve
from ..controlnet_core.control.easing import EASINGS
from ..controlnet_core.control.hint import FITS
from ..controlnet_core.models.union import UNION_CHOICES
from .control import CATEGORY, HINTS, OPTIONS, SCHEDULE, read_numbers
from .fields import Output, choice, factor, image, optional, socket, switch, text
from .node import Node
from .values import HintSpec, UnitOptions

UNSET = "not said"
"""The choice of no hint type; saved workflows contain these words."""


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
    )
    OUTPUTS = (Output(SCHEDULE, "schedule", "The schedule. The strength of the unit is multiplied by it."),)

    def run(self, keyframes: str, easing: str) -> tuple[StrengthCurve]:
        """-> the schedule."""
        return (read_curve(keyframes, easing),)


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
