"""The sampler that corrects the strength of a ControlNet while it samples."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..controlnet_core.errors import ValueRangeError
from .auto_strength import TARGET_INPUTS, TargetNode
from .fields import Output, integer, number
from .look import agreements, mean_score
from .node import with_text
from .pictures import show_images, to_image
from .values import Conditioning, Latent, SamplerInputs

if TYPE_CHECKING:
    from ..controlnet_core.diffusion.samplers import Step


class SampleToTarget(TargetNode):
    """Samples, and corrects the strength of a ControlNet on the way, so that the image follows its hint as well as
    asked: every few steps the prediction of the finished image is decoded, its fidelity to the hint is measured, and
    the strength is raised or lowered (a proportional-integral rule). Takes one run, and a decoding and a preprocessor
    for each measurement. Auto Strength takes several runs and hits the target more closely.
    """

    DISPLAY_NAME = "Sample to Target"
    SEARCH_ALIASES = ["closed loop", "feedback", "pi controller", "target fidelity", "adaptive strength"]
    INPUTS = (
        *TARGET_INPUTS,
        integer("every", 1, 1, 1000, "Number of steps from one measurement to the next."),
        number("proportional", 0.5, 0.0, 100.0, "By how much the strength rises for a fidelity that is too low by 1."),
        number("integral", 12.0, 0.0, 100.0, "The same for a fidelity that was too low by 1 during the whole run."),
        number("highest", 1.5, 0.01, 10.0, "The strength is never higher than this."),
    )
    OUTPUTS = (
        Output("LATENT", "latent", "The generated latent."),
        Output("FLOAT", "strength", "The mean strength of the run."),
        Output("STRING", "text", "The fidelity that was reached, and all measurements."),
        Output("IMAGE", "picture", "Fidelity and strength over the steps as a plot."),
    )

    def run(
        self, model: Any, positive: Conditioning, negative: Conditioning, latent: Latent, vae: Any, hint: Tensor,
        kind: str, target: float, tolerance: float, unit: int, every: int, proportional: float, integral: float,
        highest: float, **settings: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """-> LATENT, the mean strength, text, IMAGE (1, H, W, 3). Raises ValueRangeError for values out of range."""
        from ..controlnet_core.analysis.charts import draw_closed_loop
        from ..controlnet_core.analysis.closed_loop import StrengthLoop, describe
        from ..controlnet_core.run_options import DEFAULTS
        from ..controlnet_core.sample import SampleSettings

        controlled = self.host.controlled(model, positive)
        own = controlled.unit(unit)
        if own.strength == 0.0:
            raise ValueRangeError("the strength in Apply ControlNet is 0: set the one to begin with, such as 0.6")
        loop = StrengthLoop(target, own.strength, every, proportional, integral, highest)
        positive, negative = self.host.with_curve(model, positive, negative, unit - 1, loop)

        def fidelity(pixels: Tensor) -> float:
            return mean_score(agreements(self.host, pixels, hint, kind, tolerance))

        def on_step(step: Step) -> None:
            if loop.is_due(step.index):
                position = controlled.schedule.sigma_to_percent(float(step.sigma))
                loop.observe(step.index, position, fidelity(self.host.decode_prediction(model, vae, step.denoised)))

        inputs = SamplerInputs(model, positive, negative, latent, SampleSettings(**settings))
        made = self.host.sample(inputs, replace(DEFAULTS, on_step=on_step))
        reached = fidelity(self.host.decode(vae, made["samples"]))
        text = describe(loop, own.name or "a ControlNet", reached)
        plot = to_image(draw_closed_loop(loop, reached, kind))
        return with_text(text, made, loop.mean_strength, text, plot, **show_images(self.host, plot))
