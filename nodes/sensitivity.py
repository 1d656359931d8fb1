"""The node that measures which blocks of a ControlNet an image depends on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..controlnet_core.control.modes import block_names
from ..controlnet_core.control.weights import BlockWeights
from .control import WEIGHTS
from .fields import MAX_SEED, Output, conditioning, integer, latent, model, unit_number
from .node import Node, with_text
from .pictures import show_images, to_image
from .step_information import information_of_unit
from .values import Conditioning, Latent, SamplerInputs


class BlockSensitivity(Node):
    """Measures which blocks of a ControlNet the output of the model depends on: the Fisher information about the
    strength of each block, at some steps of a run. Proposes weights from it: link them to Apply ControlNet. Also
    proposes a window of the steps that keep 95 % of the information about the strength of the whole ControlNet. Takes
    two predictions for each block and step, so measuring SD1.5 at 4 steps takes as long as about 50 sampling steps.
    """

    DISPLAY_NAME = "Block Sensitivity"
    CATEGORY = "ControlNet Core/look"
    SEARCH_ALIASES = ["fisher information", "block weights", "ablation", "layer importance"]
    OUTPUT_NODE = True
    INPUTS = (
        model("model", "The model that is controlled."),
        conditioning("positive", "The encoded prompt, with control."),
        latent("latent", "A finished latent of that prompt, from Sample or VAE Encode."),
        unit_number(),
        integer("steps", 20, 1, 1000, "Number of steps of the run that is measured."),
        integer("samples", 4, 1, 100, "Number of these steps that are measured, evenly spaced."),
        integer("seed", 0, 0, MAX_SEED, "Seed of the noise that is added to the latent."),
    )
    OUTPUTS = (
        Output(
            WEIGHTS,
            "block_weights",
            "The proposed weights: the square root of the information, scaled so that the most informative block has "
            "weight 1.",
        ),
        Output("STRING", "text", "Information and weights as a table."),
        Output("IMAGE", "picture", "Information as bars, and at each step as a heat map."),
        Output("FLOAT", "start_percent", "Start of the proposed window: enter it in Apply ControlNet."),
        Output("FLOAT", "end_percent", "End of the proposed window."),
    )

    def run(
        self, model: Any, positive: Conditioning, latent: Latent, unit: int, steps: int, samples: int, seed: int
    ) -> dict[str, Any]:
        """-> CNCORE_WEIGHTS, the table, IMAGE (1, H, W, 3), start and end of the window.

        Raises ValueRangeError for a unit that does not exist.
        """
        from ..controlnet_core.analysis import information
        from ..controlnet_core.analysis.charts import draw_sensitivity
        from ..controlnet_core.analysis.sensitivity import describe, measure, sampled_steps
        from ..controlnet_core.run_options import DEFAULTS
        from ..controlnet_core.sample import SampleSettings

        controlled = self.host.controlled(model, positive)
        chosen = controlled.unit(unit)
        x0 = latent["samples"]
        names = block_names(len(chosen.weights(controlled.config.unet, x0.shape[-2])))
        measured = sampled_steps(steps, samples)
        # cfg 1 skips the negative prompt: control of it does not change the prediction that is measured.
        settings = SampleSettings(seed, steps, cfg=1.0, sampler="euler", scheduler="normal", leftover_noise=False)
        # Outside of a noise mask the result is the input, which does not depend on the ControlNet.
        plain = {key: value for key, value in latent.items() if key != "noise_mask"}

        def predict(point: int, factors: tuple[float, ...]) -> Tensor:
            # One Euler step down to sigma 0 returns the prediction of x0, under every host.
            one_step = replace(settings, start_step=measured[point], end_step=measured[point] + 1)
            weighed = self.host.reweigh(model, positive, unit - 1, factors)
            # A record of its own keeps these single steps out of the host's reports.
            inputs = SamplerInputs(model, weighed, weighed, plain, one_step)
            return self.host.sample(inputs, DEFAULTS.with_recorder("one step"))["samples"]

        points = [str(step + 1) for step in measured]
        result = measure(predict, x0, len(names), points, on_block=self.host.progress)
        by_step = information_of_unit(self.host, model, positive, plain, unit, settings, samples)
        window = by_step.window()
        text = "\n\n".join([describe(result, names), information.describe(chosen.name, by_step)])
        image = to_image(draw_sensitivity(result, names, chosen.name, by_step))
        weights = BlockWeights(custom=result.weights)
        return with_text(text, weights, text, image, window.start, window.end, **show_images(self.host, image))
