"""The node that shows before a run which ControlNet acts at which step, and how strongly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..controlnet_core.control.hint import check_hint_channels, fit_hint
from .control import CATEGORY
from .fields import Output, conditioning, denoise, latent, model, optional, sampler, scheduler, steps
from .node import Node, with_text
from .pictures import show_images, to_image
from .speed import describe_skipped
from .step_information import information_of_unit
from .values import Conditioning, Controlled, Latent, SamplerInputs

if TYPE_CHECKING:
    from ..controlnet_core.analysis.charts import SeenHint
    from ..controlnet_core.analysis.information import StepInformation
    from ..controlnet_core.control.plan import RunPlan
    from ..controlnet_core.control.unit import ControlUnit
    from ..controlnet_core.sample import SampleSettings

SAME = "The same as in the sampler."


class ControlPlan(Node):
    """Shows before the run which ControlNet acts at which step, the weight of each of its blocks, what is skipped and
    why, and each hint as the ControlNet will see it. Use the same settings as in the sampler. With a finished latent it
    also measures at which steps each hint matters, and proposes a window that keeps 95 % of the information.
    """

    DISPLAY_NAME = "Control Plan"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["debug", "preview control", "timestep"]
    OUTPUT_NODE = True
    INPUTS = (
        model("model", "The model that will be sampled."),
        conditioning("positive", "The encoded prompt, with control."),
        latent("latent", "The latent that will be sampled; only its size matters."),
        steps(SAME),
        sampler("sampler", SAME, "euler"),
        scheduler(SAME, "normal"),
        denoise(SAME),
        *optional(
            latent(
                "finished",
                "A latent that was sampled with this control. With it, the information about the strength of each "
                "ControlNet is measured at up to 16 steps, with three predictions for each.",
            )
        ),
    )
    OUTPUTS = (
        Output("STRING", "plan", "The plan as tables."),
        Output("IMAGE", "hints", "The hints at the size at which the ControlNets see them."),
        Output("IMAGE", "picture", "The plan as an image: each hint, and the weight at each step and block."),
    )

    def run(
        self, model: Any, positive: Conditioning, latent: Latent, finished: Latent | None = None, **settings: Any
    ) -> dict[str, Any]:
        """-> the tables, IMAGE (units, H, W, 3), IMAGE (1, H, W, 3)."""
        from ..controlnet_core.analysis import information
        from ..controlnet_core.analysis.charts import draw_plan
        from ..controlnet_core.control.plan import describe
        from ..controlnet_core.sample import SampleSettings

        controlled = self.host.controlled(model, positive)
        height, width = latent["samples"].shape[-2:]
        wanted = SampleSettings(**settings)
        plan = plan_of(controlled, wanted, height)
        # ComfyUI manages memory itself, so inside ComfyUI this text is empty. The negative half, which is not linked
        # here, is assumed to need as much as the positive one.
        memory = self.host.memory(SamplerInputs(model, positive, positive, latent, wanted))
        skipped = describe_skipped(self.host.options_of(model))
        measured = {} if finished is None else self._information(model, positive, finished, wanted)
        found = [information.describe(name, by_step) for name, by_step in measured.items()]
        text = "\n\n".join(part for part in (describe(plan), *found, skipped, memory) if part)
        # At the size of the image, so that the hints of all units make one batch.
        factor = controlled.config.vae.factor
        size = (height * factor, width * factor)
        fitted = [fitted_hints(unit, *size) for unit in controlled.units]
        batch = [hint[:, :3].cpu() for hints in fitted for hint in hints] or [torch.zeros(1, 3, *size)]
        drawn = [seen_hint(unit, hints[0]) for unit, hints in zip(controlled.units, fitted, strict=True)]
        picture = to_image(draw_plan(plan, drawn, measured))
        return with_text(text, text, torch.cat(batch).movedim(1, -1), picture, **show_images(self.host, picture))

    def _information(
        self, model: Any, positive: Conditioning, finished: Latent, settings: SampleSettings
    ) -> dict[str, StepInformation]:
        """The information of each unit, by its number and name."""
        units = self.host.controlled(model, positive).units
        return {
            f"{number}  {unit.name or 'a ControlNet'}": information_of_unit(
                self.host, model, positive, finished, number, settings
            )
            for number, unit in enumerate(units, 1)
        }


def plan_of(controlled: Controlled, settings: SampleSettings, latent_height: int) -> RunPlan:
    """The plan of a run with these settings. latent_height: in latent cells."""
    from ..controlnet_core.control.plan import make_plan
    from ..controlnet_core.sample import cut_sigmas

    # The same function that the sampler uses, so the plan lists exactly the steps that will run.
    sigmas = cut_sigmas(controlled.schedule, settings)
    title = f"{settings.sampler} / {settings.scheduler}"
    # It makes a step shorter where its error is large, which only the run itself shows.
    if settings.sampler == "dpm_adaptive":
        title += ": an example, since this sampler chooses its steps by the picture"
    base, schedule = controlled.config.unet, controlled.schedule
    return make_plan(controlled.units, base, schedule, settings.sampler, sigmas, latent_height, title)


def fitted_hints(unit: ControlUnit, height: int, width: int) -> list[Tensor]:
    """The hints of a unit at this size in pixels, (B, C, H, W), as its ControlNet reads them."""
    pictures = (check_hint_channels(hint.picture, unit.net.hint_channels) for hint in unit.hints)
    return [fit_hint(picture, height, width, unit.fit) for picture in pictures]


def seen_hint(unit: ControlUnit, fitted: Tensor) -> SeenHint:
    """The first hint of a unit as its ControlNet reads it, (B, C, H, W), with its mask and how it was resized."""
    from ..controlnet_core.analysis.charts import SeenHint

    return SeenHint(
        pixels=fitted[0, :3].movedim(0, -1).cpu().numpy(),
        words=_describe_resizing(unit, *fitted.shape[-2:]),
        mask=None if unit.mask is None else unit.mask[0].cpu().numpy(),
    )


def _describe_resizing(unit: ControlUnit, height: int, width: int) -> str:
    """Such as "128x128, from 640x480: cropped at the centre, resized"."""
    old_height, old_width = unit.hint.shape[-2:]
    more = "" if not unit.more_hints else f"; {len(unit.more_hints)} more hints"
    if (old_height, old_width) == (height, width):
        return f"{width}x{height}, not resized{more}"
    # Equal aspects up to one pixel, without division: w_old * h and w * h_old differ by less than the longer side.
    cropped = abs(old_width * height - width * old_height) > max(old_width, old_height)
    done = f"fit {unit.fit}" if unit.fit != "crop" else "cropped at the centre, resized" if cropped else "resized"
    return f"{width}x{height}, from {old_width}x{old_height}: {done}{more}"
