"""What runs when: the plan of a run, step by step and block by block, before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..controlnet_core.control.hint import check_hint_channels, fit_hint
from ..controlnet_core.control.unit import ControlUnit
from ..controlnet_core.diffusion.samplers import SAMPLERS
from ..controlnet_core.diffusion.schedule import SCHEDULERS
from ..controlnet_core.pipeline import SampleSettings, cut_sigmas
from .host import Node
from .values import Conditioning, Controlled, Latent


class ControlPlan(Node):
    """Shows which net acts at which step, how strongly, and its hint as it sees it."""

    DISPLAY_NAME = "Control Plan"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = (
        "Shows which ControlNet acts at which step and how strongly each of its blocks is heard, and each hint as "
        "the net will see it. Give it the settings of your sampler."
    )
    SEARCH_ALIASES = ["debug", "preview control", "timestep"]
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("plan", "hints")
    OUTPUT_TOOLTIPS = ("The plan as a table.", "The hints at the size at which the nets see them.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that will be sampled."}),
                "positive": ("CONDITIONING", {"tooltip": "The prompt with its control."}),
                "latent": ("LATENT", {"tooltip": "The latent that will be sampled: its size counts."}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000, "tooltip": "As in the sampler."}),
                "sampler": (list(SAMPLERS), {"default": "euler", "tooltip": "As in the sampler."}),
                "scheduler": (list(SCHEDULERS), {"default": "normal", "tooltip": "As in the sampler."}),
                "denoise": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "As in the sampler."},
                ),
            }
        }

    def run(self, model: Any, positive: Conditioning, latent: Latent, **settings: Any) -> dict[str, Any]:
        """-> the table, IMAGE (units, H, W, 3)."""
        controlled = self.host.controlled(model, positive)
        height, width = latent["samples"].shape[-2:]
        text = describe(controlled, SampleSettings(**settings), height)
        hints = hints_as_seen(controlled, height, width)
        return {"ui": {"text": [text]}, "result": (text, hints)}


def describe(controlled: Controlled, settings: SampleSettings, latent_height: int) -> str:
    """The plan as lines of text."""
    units = controlled.units
    sigmas = cut_sigmas(controlled.schedule, settings)[:-1].tolist()
    head = f"{len(sigmas)} steps of {settings.sampler} / {settings.scheduler}, {len(units)} ControlNet"
    lines = [head + ("" if len(units) == 1 else "s")]
    lines += [f"  {i}: {_unit(unit, controlled, latent_height)}" for i, unit in enumerate(units, 1)]
    lines.append("step    sigma     t" + "".join(f"{i:>7}" for i in range(1, len(units) + 1)))
    for step, sigma in enumerate(sigmas, 1):
        timestep = float(controlled.schedule.timestep(torch.tensor(sigma)))
        cells = (f"{_strength(u, sigma, controlled):>7}" for u in units)
        lines.append(f"{step:>4}  {sigma:7.3f}  {timestep:4.0f}" + "".join(cells))
    return "\n".join(lines)


def _unit(unit: ControlUnit, controlled: Controlled, latent_height: int) -> str:
    half = "conditional half" if unit.conditional_only else "both halves"
    where = "" if unit.mask is None else ", masked"
    weights = " ".join(f"{w:.2f}" for w in unit.weights(unit.net.config.unet, latent_height))
    window = f"{unit.start:.0%} to {unit.end:.0%}"
    return f"{unit.name}, strength {unit.strength:g}, {window}, {unit.mode}, {half}{where}; blocks {weights}"


def _strength(unit: ControlUnit, sigma: float, controlled: Controlled) -> str:
    active = unit.strength != 0.0 and unit.is_active(sigma, controlled.schedule)
    return f"{unit.strength:.2f}" if active else "-"


def hints_as_seen(controlled: Controlled, height: int, width: int) -> Tensor:
    """IMAGE (n, H, W, 3): the hints of all units, at the size of the picture; one black picture for none."""
    factor = controlled.config.vae.factor
    size = (height * factor, width * factor)
    hints: Sequence[Tensor] = [
        fit_hint(check_hint_channels(unit.hint, unit.net.config.hint_channels), *size) for unit in controlled.units
    ]
    if not hints:
        return torch.zeros(1, *size, 3)
    return torch.cat([hint[:, :3].cpu() for hint in hints]).movedim(1, -1)
