"""On which blocks of a ControlNet does a picture depend?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..controlnet_core.analysis.charts import draw_sensitivity
from ..controlnet_core.analysis.sensitivity import Sensitivity, describe, measure, sampled_steps
from ..controlnet_core.control.modes import block_names
from ..controlnet_core.control.report import Recorder
from ..controlnet_core.control.weights import BlockWeights
from ..controlnet_core.errors import ValueRangeError
from ..controlnet_core.pipeline import SampleSettings
from .control import WEIGHTS
from .host import Node
from .pictures import shown, to_image
from .values import Conditioning, Latent


class BlockSensitivity(Node):
    """Which blocks are worth their strength."""

    DISPLAY_NAME = "Block Sensitivity"
    CATEGORY = "ControlNet Core/look"
    DESCRIPTION = (
        "Measures on which blocks of a ControlNet the model's output depends: the Fisher information about each "
        "block's strength, at some steps of a run. Weights are proposed from it: link them to Apply ControlNet. "
        "Two predictions are made for each block and step, so a full run of SD1.5 with 4 steps takes as long as "
        "about 50 steps of sampling."
    )
    SEARCH_ALIASES = ["fisher information", "block weights", "ablation", "layer importance"]
    OUTPUT_NODE = True
    RETURN_TYPES = (WEIGHTS, "STRING", "IMAGE")
    RETURN_NAMES = ("block_weights", "text", "picture")
    OUTPUT_TOOLTIPS = (
        "The proposed weights: square root of a block's information, 1 for the most telling block.",
        "Information and weights as a table.",
        "Information as bars, and by step as a heat map.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def count(default: int, low: int, high: int, tip: str) -> tuple[str, dict[str, Any]]:
            return ("INT", {"default": default, "min": low, "max": high, "tooltip": tip})

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that is controlled."}),
                "positive": ("CONDITIONING", {"tooltip": "The prompt with its control."}),
                "latent": ("LATENT", {"tooltip": "A finished latent of that prompt, from Sample or VAE Encode."}),
                "unit": count(1, 1, 64, "Which ControlNet on the prompt, the first applied is 1."),
                "steps": count(20, 1, 1000, "Steps of the run from which some are taken."),
                "samples": count(4, 1, 100, "At how many of them is measured, spread evenly."),
                "seed": count(0, 0, 0xFFFFFFFFFFFFFFFF, "The noise that is added to the latent."),
            }
        }

    def run(
        self, model: Any, positive: Conditioning, latent: Latent, unit: int, steps: int, samples: int, seed: int
    ) -> dict[str, Any]:
        """-> CNCORE_WEIGHTS, the table, IMAGE (1, H, W, 3). Raises ValueRangeError for a unit that is not there."""
        controlled = self.host.controlled(model, positive)
        if unit > len(controlled.units):
            raise ValueRangeError(
                f"unit is {unit}, on this prompt are {len(controlled.units)} ControlNets: link a prompt with control, "
                "and count from 1"
            )
        chosen = controlled.units[unit - 1]
        x0 = latent["samples"]
        names = block_names(len(chosen.weights(controlled.config.unet, x0.shape[-2])))
        measured = sampled_steps(steps, samples)
        settings = SampleSettings(seed, steps, cfg=1.0, sampler="euler", scheduler="normal", leftover_noise=False)
        plain = {key: value for key, value in latent.items() if key != "noise_mask"}

        def predict(point: int, factors: tuple[float, ...]) -> Tensor:
            # one Euler step to sigma 0 ends at the prediction of x0, in every home; with a recorder of its own
            # it is no run that anybody is told of
            at = replace(settings, start_step=measured[point], end_step=measured[point] + 1)
            weighed = self.host.reweigh(model, positive, unit - 1, factors)
            return self.host.sample(model, weighed, weighed, plain, at, Recorder())["samples"]

        points = [str(step + 1) for step in measured]
        result = measure(predict, x0, len(names), points, on_block=self.host.progress)
        return self._shown(result, names, chosen.name)

    def _shown(self, result: Sensitivity, names: tuple[str, ...], title: str) -> dict[str, Any]:
        text, image = describe(result, names), to_image(draw_sensitivity(result, names, title))
        weights = BlockWeights(custom=result.weights)
        return {"ui": {"text": [text], **shown(self.host, image)}, "result": (weights, text, image)}
