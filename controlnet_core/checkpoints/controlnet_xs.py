"""ControlNet-XS's files, in diffusers' layout and in the authors'.

Our zero convolutions have a running number: `to_control.{n}` reads what base block n puts out, `to_base.{n}` is added
to it (the last one to the middle's output), `to_decoder.{n}` is added in front of decoder block n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import gcd
from typing import Any

from ..config import ControlNetXSConfig, UNetConfig
from ..errors import CheckpointError
from ..models.controlnet_xs import count_groups
from . import diffusers, ldm, structure
from .fileconfig import check_arithmetic
from .keymap import Rule, add_prefix
from .layouts import rename_shapes
from .structure import Shapes, Sketch

KIND = "controlnet-xs"
ORIGINAL = "original"
"""The authors' layout."""
INNER = "control_model."
"""Where it has encoder, middle and timestep embedding."""
DROP = ("scale_list", f"{INNER}label_emb.{{rest}}")
"""A list of ones; and the base's embedding of the label, which the authors' code reads from the base."""
SHARED = ("controlnet_cond_embedding.", "conv_in.", "time_embedding.", "down_blocks.")
"""What diffusers names as in a ControlNet."""
ORDER = "conditioning_channel_order"
HEAD_WIDTHS: Mapping[int, int] = {1024: 8, 2048: 64}
"""Most channels of an attention head in the released nets for SD2 and SDXL, by the width of the text."""
HEADS = 8
"""In the released nets for SD1.x."""


def rules(config: UNetConfig, hint_layers: int, layout: str) -> tuple[Rule, ...]:
    """Names without a prefix. config: has the right number of levels and residual blocks."""
    blocks = len(config.widths) * (config.res_blocks + 1)
    return _original_rules(blocks, hint_layers) if layout == ORIGINAL else _diffusers_rules(config, hint_layers)


def _zero_conv(theirs: str, ours: str) -> Rule:
    return Rule(f"{theirs}.{{p}}", f"{ours}.conv.{{p}}")


def _diffusers_rules(config: UNetConfig, hint_layers: int) -> tuple[Rule, ...]:
    base = diffusers.controlnet_rules(config, hint_layers)
    found = [rule for rule in base if rule.theirs.startswith(SHARED) and ".downsamplers." not in rule.theirs]
    middle_rules = (rule for rule in base if rule.theirs.startswith("mid_block."))
    found += [replace(rule, theirs=rule.theirs.replace("mid_block.", "mid_block.midblock.")) for rule in middle_rules]
    found.append(_zero_conv("control_to_base_for_conv_in", "to_base.0"))
    per_level, last = config.res_blocks + 1, len(config.widths) - 1
    for level in range(last + 1):
        theirs, first = f"down_blocks.{level}", 1 + level * per_level
        # A halving is the last block of a level; the lowest level has none.
        for number in range(first, first + per_level - (level == last)):
            place = number - first
            found.append(_zero_conv(f"{theirs}.ctrl_to_base.{place}", f"to_base.{number}"))
            found.append(_zero_conv(f"{theirs}.base_to_ctrl.{place}", f"to_control.{number - 1}"))
        if level != last:
            halving = f"encoder.blocks.{first + config.res_blocks}.conv"
            found.append(Rule(f"{theirs}.downsamplers.conv.{{p}}", f"{halving}.{{p}}"))
        for place in range(per_level):
            number = level * per_level + place
            found.append(_zero_conv(f"up_connections.{level}.ctrl_to_base.{place}", f"to_decoder.{number}"))
    middle = (last + 1) * per_level
    found.append(_zero_conv("mid_block.ctrl_to_base", f"to_base.{middle}"))
    found.append(_zero_conv("mid_block.base_to_ctrl", f"to_control.{middle - 1}"))
    return tuple(found)


def _original_rules(blocks: int, hint_layers: int) -> tuple[Rule, ...]:
    inner = (*ldm.encoder_rules(), *ldm.middle_rules(UNetConfig()))
    return (
        *add_prefix((rule for rule in inner if not rule.theirs.startswith("label_emb")), INNER),
        *(Rule(f"input_hint_block.{2 * i}.{{p}}", f"hint.convs.{i}.{{p}}") for i in range(hint_layers)),
        _zero_conv("enc_zero_convs_in.{n}.0", "to_control.{n}"),
        _zero_conv("middle_block_out.0", f"to_base.{blocks}"),
        *(_zero_conv(f"enc_zero_convs_out.{n}.0", f"to_base.{n}") for n in range(blocks)),
        _zero_conv("dec_zero_convs_out.{n}.0", "to_decoder.{n}"),
    )


def sketch(keys: Iterable[str], layout: str) -> Sketch:
    """The model of these keys, which have no prefix."""
    if layout != ORIGINAL:
        return diffusers.sketch(keys)
    return ldm.sketch(key.removeprefix(INNER) for key in keys)


def read_config(shapes: Shapes, layout: str, entries: Mapping[str, Any]) -> ControlNetXSConfig:
    """Config from shapes under the file's names, and from its config.json where it has one.

    Raises CheckpointError for weights that are missing, and for arithmetic that this package does not have.
    """
    check_arithmetic({f"controlnet_{ORDER}": entries.get(ORDER, "rgb")})
    found = sketch(shapes, layout)
    config = structure.controlnet_xs_config(rename_shapes(shapes, rules(found.unet, found.hint_layers, layout)))
    most = int(entries.get("max_norm_num_groups", config.max_groups))
    width, base_width = config.widths[-1], config.base_widths[-1]
    # diffusers gives all norms of the middle the groups that divide both widths; the authors each its own.
    first = width + base_width if layout == ORIGINAL else gcd(width, base_width)
    others = width if layout == ORIGINAL else gcd(width, base_width)
    return replace(
        config,
        heads=_heads(config, entries.get("num_attention_heads")),
        time_mix=None if config.time_mix is None else float(entries.get("time_embedding_mix", config.time_mix)),
        max_groups=most,
        middle_groups=(count_groups(first, most), count_groups(others, most)),
    )


def _heads(config: ControlNetXSConfig, entry: Any) -> tuple[int, ...]:
    """Attention heads of each level: what the file's config says, else those of the released nets."""
    if isinstance(entry, int):
        return (entry,) * len(config.widths)
    if isinstance(entry, list):
        if len(entry) != len(config.widths) or not all(type(count) is int and count > 0 for count in entry):
            raise CheckpointError(f"its config says that it has {entry} attention heads, expected one number per level")
        return tuple(entry)
    if config.context_dim not in HEAD_WIDTHS:
        return (HEADS,) * len(config.widths)
    return tuple(width // count_groups(width, HEAD_WIDTHS[config.context_dim]) for width in config.widths)
