"""Control inside the attentions, in ComfyUI's own UNet; a scenario for `comfyui_host.py`.

What ComfyUI's sampler makes with our control is compared with the same sampler on a UNet whose layers carry hooks
that follow the published description (`support/lllite_reference.py`).
"""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import lllite_reference

PLACES = {
    "input_blocks_1_1_transformer_blocks_0": (64, 8),
    "middle_block_1_transformer_blocks_0": (96, 16),
    "output_blocks_2_1_transformer_blocks_0": (64, 8),
    "output_blocks_3_1_transformer_blocks_0": (64, 8),
}
"""Every transformer block of the random demo of `test_comfyui.py`."""
FILES = {"lllite.safetensors": 1, "lllite2.safetensors": 2}
"""File -> seed of its weights."""
UNITS: dict[str, tuple[dict[str, Any], ...]] = {
    "one": ({"control_net": "lllite.safetensors"},),
    "positive half": ({"control_net": "lllite.safetensors", "negative_factor": 0.0},),
    "with a ControlNet": ({"control_net": "lllite.safetensors"}, {}),
    "two and a ControlNet": (
        {"control_net": "lllite.safetensors"}, {}, {"control_net": "lllite2.safetensors", "upside_down": True},
    ),
    "window": ({"control_net": "lllite.safetensors", "start_percent": 0.5},),
}  # fmt: skip
PARITY = ("one", "with a ControlNet", "two and a ControlNet")
"""Cases that hooks can follow: they act in every call, on all rows."""


def unit_of(node: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a unit for an apply node of any home."""
    unit = dict(settings)
    if "control_net" in unit:
        (unit["control_net"],) = node("CNCore_LoadControlNet", control_net=unit["control_net"])
    if "negative_factor" in unit:
        options = {
            "hint_fit": "crop", "hint_type": "not said", "positive_factor": 1.0, "per_picture": "",
            "average_over_picture": False, "negative_factor": unit.pop("negative_factor"),
        }  # fmt: skip
        (unit["options"],) = node("CNCore_ControlOptions", **options)
    return unit


def applied(home: Any, units: tuple[dict[str, Any], ...]) -> Any:
    """Both prompts of a home with these units."""
    conditioning = home.prompts
    for settings in units:
        conditioning = home.controlled(conditioning, **unit_of(home.node, settings))
    return conditioning


def states() -> dict[str, dict[str, Tensor]]:
    """The weights of both files."""
    return {name: lllite_reference.random_file(PLACES, seed) for name, seed in FILES.items()}


def find_layer(unet: nn.Module) -> Any:
    """The layer of ComfyUI's UNet by its public name with underscores."""
    names = {name.replace(".", "_"): layer for name, layer in unet.named_modules()}
    return names.__getitem__


def attention_control(session: Any) -> None:
    """Every case by ComfyUI's sampler, and what hooks on the same UNet give."""
    module = importlib.import_module("comfyui_host")
    files = states()
    for name, units in UNITS.items():
        session.tensors[f"attention.{name}"] = session.ksampler(applied(session, units))
    for name in PARITY:
        nets = tuple(unit for unit in UNITS[name] if "control_net" not in unit)
        with ExitStack() as hooks:
            for unit in UNITS[name]:
                if "control_net" in unit:
                    picture = module.hint().flip(1) if unit.get("upside_down") else module.hint()
                    find = find_layer(session.model.model.diffusion_model)
                    hint = picture.movedim(-1, 1)
                    hooks.enter_context(lllite_reference.hooked(find, files[unit["control_net"]], hint, 0.8))
            session.tensors[f"hooks.{name}"] = session.ksampler(applied(session, nets))
    session.tensors["attention.none"] = session.ksampler(session.prompts)
    model = session.model
    session.model = session.node("CNCore_Accelerate", model=model, weights="shared")["result"][0]
    session.tensors["attention.accelerated"] = session.ksampler(applied(session, UNITS["with a ControlNet"]))
    session.model = model
    session.facts["attention left"] = sorted(model.model_options.get("transformer_options", {}))
