"""Runs ComfyUI's UNet on a reference and records what Reference asks for, through ComfyUI's own patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...controlnet_core.config import UNetConfig
from ...controlnet_core.models.control import Place
from ...controlnet_core.models.reference import Recorded, Reference, adain_places, moments

STACKS = {"input": "encoder", "middle": "middle", "output": "decoder"}
"""ComfyUI's names of the parts of a UNet, and ours."""
PASSED_ON = ("cond_or_uncond", "sigmas", "sample_sigmas", "uuids")
"""Options of a call that other code in ComfyUI's blocks may read. Patches of other packs act on the picture only."""


def record(
    net: Reference, base: UNetConfig, run: Callable[[dict[str, Any]], Any], options: Mapping[str, Any]
) -> Recorded:
    """Run the UNet on a reference and record. run: calls ComfyUI's UNet on it with these options."""
    recorded = Recorded()
    places = adain_places(base) if net.uses_adain else {}

    def record_moments(place: Place, h: Tensor) -> None:
        if place in places:
            recorded.moments[place] = moments(h)

    def tokens(query: Tensor, key: Tensor, value: Tensor, own: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        recorded.tokens[place_of(own)] = query
        return query, key, value

    def after_input(h: Tensor, own: Mapping[str, Any]) -> Tensor:
        record_moments(Place("encoder", own["block"][1], 0), h)
        return h

    def before_output(h: Tensor, skip: Tensor, own: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        record_moments(place_before(own["block"][1]), h)
        return h, skip

    patches: dict[str, list[Any]] = {}
    if net.uses_attention:
        patches["attn1_patch"] = [tokens]
    if net.uses_adain:
        patches |= {"input_block_patch": [after_input], "output_block_patch": [before_output]}
    run({**{name: options[name] for name in PASSED_ON if name in options}, "patches": patches})
    return recorded


def place_of(options: Mapping[str, Any]) -> Place:
    """The transformer block that runs now. ComfyUI numbers the blocks of the UNet's parts as we do."""
    part, number = options["block"]
    return Place(STACKS[part], number, options.get("block_index", 0))


def place_before(number: int) -> Place:
    """The block whose output a block of the decoder reads."""
    return Place("middle", 0, 0) if number == 0 else Place("decoder", number - 1, 0)
