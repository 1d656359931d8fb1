"""Nodes for what few units need: strength along the sampling, options, further hints."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..controlnet_core.control.curve import EXAMPLE, StrengthCurve, read_curve
from ..controlnet_core.control.easing import EASINGS
from ..controlnet_core.control.hint import FITS
from ..controlnet_core.models.union import UNION_CHOICES
from .control import HINTS, OPTIONS, SCHEDULE, read_numbers
from .host import Node
from .values import HintSpec, UnitOptions

NOT_SAID = "not said"


class StrengthScheduleNode(Node):
    """Strength along the sampling."""

    DISPLAY_NAME = "Strength Schedule"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = (
        "Lets the strength of a ControlNet rise and fall during the sampling. Keyframes stand at positions from 0 "
        "(pure noise) to 1 (the finished picture), whatever the sampler and its steps; Control Plan shows what "
        "comes of them."
    )
    SEARCH_ALIASES = ["timestep keyframe", "strength curve", "weight schedule", "easing"]
    RETURN_TYPES = (SCHEDULE,)
    RETURN_NAMES = ("schedule",)
    OUTPUT_TOOLTIPS = ("The schedule; it multiplies the unit's strength.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "keyframes": (
                    "STRING",
                    {
                        "default": EXAMPLE,
                        "multiline": True,
                        "tooltip": "position: strength, in lines or separated by commas; a keyframe may name its own "
                        "easing behind its strength, such as 0.5: 0.4 ease-in.",
                    },
                ),
                "easing": (
                    list(EASINGS),
                    {
                        "default": "linear",
                        "tooltip": "How strength goes from one keyframe to the next; hold stays until the next.",
                    },
                ),
            }
        }

    def run(self, keyframes: str, easing: str) -> tuple[StrengthCurve]:
        """-> the schedule."""
        return (read_curve(keyframes, easing),)


class ControlOptions(Node):
    """What few units need."""

    DISPLAY_NAME = "Control Options"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = (
        "Further settings of a unit: how a hint of another size is fitted, what it shows (for ControlNet Union), how "
        "strongly each half of the guidance and each picture of a batch is controlled, pooling for the shuffle net."
    )
    SEARCH_ALIASES = ["resize mode", "union type", "uncond multiplier", "shuffle", "global average pooling"]
    RETURN_TYPES = (OPTIONS,)
    RETURN_NAMES = ("options",)
    OUTPUT_TOOLTIPS = ("The options: link them to Apply ControlNet or Control Unit.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def factor(tip: str) -> tuple[str, dict[str, Any]]:
            return ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01, "tooltip": tip})

        return {
            "required": {
                "hint_fit": (
                    list(FITS),
                    {
                        "default": "crop",
                        "tooltip": "How a hint of another size becomes the picture's. crop: cut at its middle, nearest "
                        "pixel, as the editor does. inner-fit: the same, scaled smoothly. pad: all of it, with a "
                        "border. pixel-perfect: an error instead of scaling.",
                    },
                ),
                "hint_type": (
                    [NOT_SAID, *UNION_CHOICES],
                    {"default": NOT_SAID, "tooltip": "What the hint shows, for a ControlNet Union; others ignore it."},
                ),
                "positive_factor": factor("Strength in the half of the prompt; 0 leaves it alone."),
                "negative_factor": factor(
                    "Strength in the half of the negative prompt; 0 leaves it alone. Modes that act on the "
                    "prompt's half alone ignore it."
                ),
                "per_picture": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "A factor for each picture of a batch, separated by commas, such as 1, 0.5, 0; "
                        "repeated to fill the batch. Empty: all alike.",
                    },
                ),
                "average_over_picture": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "For the shuffle net: what it adds is the same everywhere, in the prompt's half "
                        "alone. Its file does not say so; only one with a config.json does.",
                    },
                ),
            }
        }

    def run(
        self,
        hint_fit: str,
        hint_type: str,
        positive_factor: float,
        negative_factor: float,
        per_picture: str,
        average_over_picture: bool,
    ) -> tuple[UnitOptions]:
        """-> the options."""
        kind = "" if hint_type == NOT_SAID else hint_type
        items = read_numbers(per_picture)
        return (UnitOptions(hint_fit, kind, positive_factor, negative_factor, items, average_over_picture),)


class MoreHints(Node):
    """A further hint for a net that reads several at once."""

    DISPLAY_NAME = "More Hints"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = (
        "A further hint for a ControlNet Union, which follows several at once. Chain as many as you like; the first "
        "hint is the unit's own, whose type Control Options says."
    )
    SEARCH_ALIASES = ["union", "promax", "multi control"]
    RETURN_TYPES = (HINTS,)
    RETURN_NAMES = ("more_hints",)
    OUTPUT_TOOLTIPS = ("The hints with this one at their end.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The hint."}),
                "hint_type": (list(UNION_CHOICES), {"tooltip": "What the hint shows."}),
            },
            "optional": {"more_hints": (HINTS, {"tooltip": "Hints before this one; leave it open for the first."})},
        }

    def run(
        self, image: Tensor, hint_type: str, more_hints: tuple[HintSpec, ...] = ()
    ) -> tuple[tuple[HintSpec, ...]]:
        """-> the hints."""
        return ((*more_hints, HintSpec(image, hint_type)),)
