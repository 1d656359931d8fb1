"""Key table of ControlNet-LLLite files: the name of a layer of the base, with underscores, then a weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..errors import CheckpointError
from .keymap import Pairs, Rule, nest

KIND = "controlnet-lllite"
FAMILIES: Mapping[str, str] = {
    "_transformer_blocks_1_": "sdxl",
    "^lllite_unet_input_blocks_1_1_": "sd15",
    "^lllite_unet_input_blocks_2_1_": "sd15",
}
"""Parts of keys by which the base is known: only SDXL has several transformer blocks at a place, and none at the first
level."""
STACKS: Mapping[str, str] = {"input_blocks": "encoder", "output_blocks": "decoder"}
NUMBER = r"(0|[1-9]\d?)"
NAME = re.compile(
    rf"lllite_unet_(?:(input_blocks|output_blocks)_{NUMBER}|middle_block)_1"
    rf"_transformer_blocks_{NUMBER}_(attn[12])_to_([qkv])"
)
PARTS: Pairs = (
    *((f"conditioning1.{2 * n}", f"hint.{n}") for n in range(4)),  # an activation stands between two convolutions
    ("down.0", "down"), ("mid.0", "mid"), ("up.0", "up"),
)  # fmt: skip
"""The parts of one network: convolutions of the hint, and three layers."""


def rules(keys: Iterable[str]) -> tuple[Rule, ...]:
    """The table for a file with these keys. Raises CheckpointError for a layer that cannot be changed."""
    names = dict.fromkeys(key.split(".")[0] for key in keys)
    return tuple(rule for name in names for rule in nest(name, f"layers.{our_name(name)}", PARTS))


def our_name(name: str) -> str:
    """The name of a network in our module, such as "encoder_4_0_attn1_q"; see `models.lllite.layer_name`."""
    found = NAME.fullmatch(name)
    if found is None or (found[4] == "attn2" and found[5] != "q"):
        raise CheckpointError(
            f"it changes the layer {name.removeprefix('lllite_unet_')}, and this version does not: it changes queries, "
            "keys and values of the self attention and queries of the cross attention, by the names of the original "
            "release"
        )
    stack, block, depth, attention, layer = found.groups()
    place = f"{STACKS[stack]}_{block}" if stack else "middle_0"
    return f"{place}_{depth}_{attention}_{layer}"
