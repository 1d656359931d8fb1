"""ComfyUI's nodes for texts at places of the image (GLIGEN), and the units of control that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...controlnet_core.conditioning.condition import Condition
from ...controlnet_core.control.unit import ControlUnit
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.gligen import Gligen, GligenControl, TextBox
from ...controlnet_core.models.text_encoder import TextEncoder
from ..fields import clip, conditioning, files, prompt, side, socket
from ..node import Node
from ..values import Conditioning

KEY = "gligen"
"""Option of a CONDITIONING, as ComfyUI has it: ("position", weights, [(text, height, width, top, left), ...])."""


class GLIGENLoader(Node):
    """Loads GLIGEN's text boxes."""

    CATEGORY = "loaders"
    RETURN_TYPES = ("GLIGEN",)
    INPUTS = (files("gligen_name", "gligen"),)

    def run(self, gligen_name: str) -> tuple[Gligen]:
        """-> GLIGEN."""
        return (self.host.load_gligen(self.host.find("gligen", gligen_name)),)


class GLIGENTextBoxApply(Node):
    """Puts a text into a rectangle of the image, in pixels. Several of these nodes in a row add their boxes."""

    CATEGORY = "conditioning/gligen"
    RETURN_TYPES = ("CONDITIONING",)
    INPUTS = (
        conditioning("conditioning_to"), clip("clip"), socket("GLIGEN", "gligen_textbox_model"), prompt("text"),
        side("width", 64, 8), side("height", 64, 8), side("x", 0), side("y", 0),
    )  # fmt: skip

    def run(
        self, conditioning_to: Conditioning, clip: Any, gligen_textbox_model: Gligen, text: str, width: int,
        height: int, x: int, y: int,
    ) -> tuple[Conditioning]:  # fmt: skip
        """-> CONDITIONING. Raises UnfitError for a text encoder of another model than SD1.x."""
        if not isinstance(clip, TextEncoder) or clip.model.projection is not None:
            raise UnfitError("the text boxes of GLIGEN read the text encoder of SD1.x: link one")
        pooled = self.host.encode_prompt(clip, text)[0][1]["pooled_output"]
        box = (pooled, height // 8, width // 8, y // 8, x // 8)
        return (
            [
                [own, {**old, KEY: ("position", gligen_textbox_model, [*(old[KEY][2] if KEY in old else ()), box])}]
                for own, old in conditioning_to
            ],
        )


def add_text_boxes(
    positive: Sequence[Condition], negative: Sequence[Condition], options: tuple[Conditioning, Conditioning]
) -> tuple[list[Condition], list[Condition]]:
    """Return both halves of the guidance with the units of their boxes. options: the CONDITIONING of each condition.

    As in ComfyUI, boxes of a prompt for the whole image count for a negative prompt without boxes, too.
    """
    units = [[_unit(own) for _, own in half] for half in options]
    plain = [index for index, condition in enumerate(negative) if condition.area is None]
    if plain and not any(units[1][index] for index in plain):
        given = [unit for unit, condition in zip(units[0], positive, strict=True) if unit and condition.area is None]
        for number, unit in enumerate(given):
            units[1][plain[number % len(plain)]] = unit
    return _with_units(positive, units[0]), _with_units(negative, units[1])


def _with_units(half: Sequence[Condition], units: Sequence[ControlUnit | None]) -> list[Condition]:
    pairs = zip(half, units, strict=True)
    return [
        condition if unit is None else replace(condition, units=(*condition.units, unit)) for condition, unit in pairs
    ]


def _unit(options: dict[str, Any]) -> ControlUnit | None:
    if KEY not in options:
        return None
    _, weights, boxes = options[KEY]
    net = GligenControl(
        weights, [TextBox(text, (height, width, top, left)) for text, height, width, top, left in boxes]
    )
    # A hint that is not read, of a shade that no one takes for an empty one.
    return ControlUnit(net=net, hint=torch.full((1, 1, 8, 8), 0.5), name="GLIGEN text boxes")
