"""What runs when: the plan of a run, step by step and block by block, before it is run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..controlnet_core.analysis.charts import SeenHint, draw_plan
from ..controlnet_core.control.hint import check_hint_channels, fit_hint
from ..controlnet_core.control.plan import RunPlan, describe, make_plan
from ..controlnet_core.control.unit import ControlUnit
from ..controlnet_core.diffusion.samplers import SAMPLERS
from ..controlnet_core.diffusion.schedule import SCHEDULERS
from ..controlnet_core.engine.run import EXACT
from ..controlnet_core.pipeline import SampleSettings, cut_sigmas
from .host import Node
from .pictures import shown, to_image
from .values import Conditioning, Controlled, Latent


class ControlPlan(Node):
    """Shows which net acts at which step, how strongly, and its hint as it sees it."""

    DISPLAY_NAME = "Control Plan"
    CATEGORY = "ControlNet Core/control"
    DESCRIPTION = (
        "Shows before the run which ControlNet acts at which step and how strongly each of its blocks is heard, what "
        "is skipped and why, and each hint as the net will see it. Give it the settings of your sampler."
    )
    SEARCH_ALIASES = ["debug", "preview control", "timestep"]
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "IMAGE", "IMAGE")
    RETURN_NAMES = ("plan", "hints", "picture")
    OUTPUT_TOOLTIPS = (
        "The plan as tables.",
        "The hints at the size at which the nets see them.",
        "The plan as a picture: for each net its hint, and its weight at each step and block.",
    )

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
        """-> the table, IMAGE (units, H, W, 3), IMAGE (1, H, W, 3)."""
        controlled = self.host.controlled(model, positive)
        height, width = latent["samples"].shape[-2:]
        wanted = SampleSettings(**settings)
        plan = plan_of(controlled, wanted, height)
        memory = self.host.memory(model, positive, latent, wanted)
        text = "\n\n".join(part for part in (describe(plan), self._left_out(model), memory) if part)
        hints = hints_as_seen(controlled, height, width)
        picture = to_image(draw_plan(plan, seen(controlled, height, width)))
        return {"ui": {"text": [text], **shown(self.host, picture)}, "result": (text, hints, picture)}

    def _left_out(self, model: Any) -> str:
        """What shortcuts make of the plan, in words; empty without them."""
        shortcuts = self.host.shortcuts_of(model)
        if shortcuts == EXACT:
            return ""
        return f"shortcuts on this model: {shortcuts.words}. The plan shows what is added; not all of it is computed"


def plan_of(controlled: Controlled, settings: SampleSettings, latent_height: int) -> RunPlan:
    """The plan of a run with these settings."""
    sigmas = cut_sigmas(controlled.schedule, settings)
    title = f"{settings.sampler} / {settings.scheduler}"
    base, schedule = controlled.config.unet, controlled.schedule
    return make_plan(controlled.units, base, schedule, settings.sampler, sigmas, latent_height, title)


def hints_as_seen(controlled: Controlled, height: int, width: int) -> Tensor:
    """IMAGE (n, H, W, 3): the hints of all units, at the size of the picture; one black picture for none."""
    hints = [hint for unit in controlled.units for hint in _fitted(unit, controlled, height, width)]
    if not hints:
        factor = controlled.config.vae.factor
        return torch.zeros(1, height * factor, width * factor, 3)
    return torch.cat([hint[:, :3].cpu() for hint in hints]).movedim(1, -1)


def seen(controlled: Controlled, height: int, width: int) -> list[SeenHint]:
    """The first hint and mask of each unit, with words on how the hint came to its size."""
    return [
        SeenHint(
            pixels=_fitted(unit, controlled, height, width)[0][0, :3].movedim(0, -1).cpu().numpy(),
            words=_resized(unit, height * controlled.config.vae.factor, width * controlled.config.vae.factor),
            mask=None if unit.mask is None else unit.mask[0].cpu().numpy(),
        )
        for unit in controlled.units
    ]


def _fitted(unit: ControlUnit, controlled: Controlled, height: int, width: int) -> list[Tensor]:
    """The hints of a unit at the picture's size, (B, C, H, W), as the net reads them."""
    factor, channels = controlled.config.vae.factor, unit.net.hint_channels
    pictures = (check_hint_channels(hint.picture, channels) for hint in unit.hints)
    return [fit_hint(picture, height * factor, width * factor, unit.fit) for picture in pictures]


def _resized(unit: ControlUnit, height: int, width: int) -> str:
    """What became of a hint, such as "128x128, from 640x480: cropped at the centre, resized"."""
    old_height, old_width = unit.hint.shape[-2:]
    more = "" if not unit.more_hints else f"; {len(unit.more_hints)} more hints"
    if (old_height, old_width) == (height, width):
        return f"{width}x{height}, as it came{more}"
    cropped = abs(old_width * height - width * old_height) > max(old_width, old_height)
    done = f"fit {unit.fit}" if unit.fit != "crop" else "cropped at the centre, resized" if cropped else "resized"
    return f"{width}x{height}, from {old_width}x{old_height}: {done}{more}"
