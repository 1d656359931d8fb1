"""CtrLoRA's files: a base ControlNet without hint encoder, and LoRAs for it.

Both are in the original layout. A base may hold the LoRA of one of its training's conditions, which is left out. A LoRA
holds `NAME.lora_layer.down` and `.up` for linear layers, all zero convolutions, and the norms with "norm" in their
name, whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..config import UNetConfig
from . import ldm
from .keymap import KeyMap, Rule

BASE, LORA = "ctrlora-base", "ctrlora"
LAYER = ".lora_layer."
"""Before the halves of a LoRA, in the name of the layer that they change."""


def rules(config: UNetConfig) -> tuple[Rule, ...]:
    """Names of the original layout, without a prefix."""
    return ldm.controlnet_rules(config, 0)


def rename(keys: Iterable[str]) -> dict[str, str]:
    """Our name for each key of a base, without its prefix; keys of no weight are left out."""
    kept = [key for key in keys if LAYER not in key]
    keymap = KeyMap(rules(ldm.sketch(kept).unet))
    return {key: ours for key in kept if (ours := keymap.to_ours(key)) is not None}
