"""Native CONTROL_NET objects, of any architecture ComfyUI loads, under our apply nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.controlnet
import torch
from torch import Tensor

from ...controlnet_core.checkpoints.detect import Identity
from ...controlnet_core.errors import CheckpointError, ValueRangeError
from ..values import ControlSpec
from .masked_control import MaskedControl

PLAIN = ControlSpec(None, torch.zeros(0))
NEEDED = ("copy", "set_cond_hint", "set_previous_controlnet", "get_control")


def load(path: Path, identity: Identity) -> Any:
    """ComfyUI's own object for a file that we do not read. Raises CheckpointError when it reads it neither."""
    likely = identity.kind == "unknown" or identity.kind.startswith(("controlnet", "t2i-adapter"))
    found = comfy.controlnet.load_controlnet(str(path)) if likely else None
    if found is None:
        raise CheckpointError(
            f"{path.name} is {identity.summary}; expected a ControlNet. Choose a file from models/controlnet that "
            "was made for your checkpoint",
            path,
        )
    return found


def is_control(net: Any) -> bool:
    """Whether an object offers what ComfyUI asks of a CONTROL_NET."""
    return all(callable(getattr(net, name, None)) for name in NEEDED)


def make(spec: ControlSpec, hint: Tensor) -> Any:
    """A native control object with what the spec says.

    Raises ValueRangeError for what a native net cannot do.
    """
    net, name = spec.control_net, spec.name or type(spec.control_net).__name__
    for what in requests(spec).values():
        raise ValueRangeError(
            f"{name} was loaded by ComfyUI, which knows strength, window and mask, but no {what}: load it with "
            "Load ControlNet (ControlNet Core) if it is one for Stable Diffusion, or leave that out"
        )
    if getattr(net, "latent_format", None) is not None:
        raise ValueRangeError(
            f"{name} reads its hint through a VAE, which Apply ControlNet does not have: use the native Apply "
            "ControlNet node and link the VAE there"
        )
    control = net.copy().set_cond_hint(hint, spec.strength, (spec.start_percent, spec.end_percent))
    return control if spec.mask is None else MaskedControl(control, spec.mask)


def requests(spec: ControlSpec) -> dict[str, str]:
    """What a spec asks for besides strength, window and mask: field of the spec or of its options -> words for it."""
    options = spec.options
    known = {
        "mode": f"mode {spec.mode}",
        "block_weights": "block weights",
        "schedule": "strength schedule",
        "keyframes": "masks or block weights in a schedule",
        "more_hints": "further hints",
        "fit": f"hint fit {options.fit}",
        "kind": "hint type here (it has a node of its own, SetUnionControlNetType)",
        "positive": "factor for the prompt",
        "negative": "factor for the negative prompt",
        "items": "factor for each picture",
        "pool": "averaging over the picture",
    }
    frames = () if spec.schedule is None else spec.schedule.unit_keyframes
    given = {**vars(spec), **vars(options), "keyframes": frames}
    plain = {**vars(PLAIN), **vars(PLAIN.options), "keyframes": ()}
    return {name: words for name, words in known.items() if given[name] != plain[name]}
