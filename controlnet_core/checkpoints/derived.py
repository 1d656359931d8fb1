"""Files that are complete only with their base: difference files and Control-LoRAs.

Both are in the original layout. A difference file has a key `difference`, a Control-LoRA a key `lora_controlnet` and
pairs `NAME.up`, `NAME.down` for the weight `NAME.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..config import UNetConfig
from ..errors import CheckpointError
from ..models.derived import ControlDifference, ControlLora, DerivedControlNet
from . import ldm
from .fileconfig import CONFIG_KEY, FAMILY_KEY, config_to_json
from .files import Header
from .io import check_dtype, write_safetensors
from .keymap import KeyMap, matcher

SHOWN_KEYS = 4
MARKER = "lora_controlnet"
"""The key that names a Control-LoRA; it holds no weight."""
LOW_RANK = (".up", ".down")
NOTE = "__"
"""Part of the keys of notes that tools leave beside the weights. ComfyUI ignores them too."""


DERIVED: Mapping[str, type[DerivedControlNet]] = {
    "controlnet-difference": ControlDifference,
    "control-lora": ControlLora,
}
"""Model of each kind."""
# The key that names the kind is no weight. A difference file may also hold its training's locked base.
_DROP = {"controlnet-difference": ("difference", *ldm.CONTROL_DROP), "control-lora": (MARKER,)}


def rename(keys: Iterable[str]) -> dict[str, str]:
    """Our name for each key, without its prefix; keys of no weight are left out."""
    # the halves of a low-rank pair are renamed as the weight that they stand for
    weights = {key: next((key.removesuffix(e) + ".weight" for e in LOW_RANK if key.endswith(e)), key) for key in keys}
    sketch = ldm.sketch(weights.values())
    keymap = KeyMap(ldm.controlnet_rules(sketch.unet, sketch.hint_layers))
    names = {}
    for key, weight in weights.items():
        ours = keymap.to_ours(weight)
        if ours is not None:
            names[key] = ours if key == weight else ours.removesuffix(".weight") + key[key.rindex(".") :]
    return names


def names_in(header: Header, kind: str, prefix: str) -> dict[str, str]:
    """Our name for each key of the file, prefix included. Raises CheckpointError for keys that are left over."""
    dropped = matcher(_DROP[kind])
    keys = [key for key in header.tensors if not dropped.find(key) and NOTE not in key]
    below = {key[len(prefix) :]: key for key in keys if key.startswith(prefix)}
    ours = rename(below)
    leftover = [key for key in keys if key.removeprefix(prefix) not in ours]
    # A pair without its other half would be taken for a whole weight of the wrong shape.
    halves = {name.rpartition(".")[0] for name in ours.values() if name.endswith(LOW_RANK)}
    single = [half for half in sorted(halves) if not {half + end for end in LOW_RANK} <= set(ours.values())]
    for fault, found in (("left over", leftover), ("without its other half", single)):
        if found:
            raise CheckpointError(
                f"{header.path.name} has keys {fault}: {', '.join(found[:SHOWN_KEYS])}: it is incomplete or a variant "
                "that this version does not know; download it again",
                header.path,
            )
    return {below[key]: name for key, name in ours.items()}


def save_control_lora(
    path: str | Path,
    lora: ControlLora,
    unet: UNetConfig,
    *,
    family: str = "",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a Control-LoRA as one safetensors file in the released layout, which ComfyUI reads too.

    unet: the shape of the base that it is made for, family: its name. dtype: float32, float16, bfloat16, or None for
    the weights' own. Raises CheckpointError when the file cannot be written; no half-written file is left.
    """
    check_dtype(dtype)
    keymap = KeyMap(ldm.controlnet_rules(unet, 2 * len(lora.config.hint_widths)))
    tensors = {MARKER: torch.zeros(0)}
    for name, tensor in lora.weights.items():
        stem, _, end = name.rpartition(".")
        key = keymap.to_theirs(f"{stem}.weight" if f".{end}" in LOW_RANK else name)
        if key is None:
            raise CheckpointError(f"the layout of Control-LoRAs has no name for the weight {name}")
        tensors[key.removesuffix("weight") + end if f".{end}" in LOW_RANK else key] = tensor
    own = {"format": "pt", CONFIG_KEY: config_to_json(lora.config), **({FAMILY_KEY: family} if family else {})}
    dtypes = {key: dtype or tensor.dtype for key, tensor in tensors.items()}
    write_safetensors(path, tensors, {**(metadata or {}), **own}, dtypes)
