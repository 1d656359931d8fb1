"""From noise to a latent."""

from __future__ import annotations

from typing import Any

from ..controlnet_core.diffusion.samplers import SAMPLERS
from ..controlnet_core.diffusion.schedule import SCHEDULERS
from ..controlnet_core.pipeline import SampleSettings
from .host import Node
from .values import Conditioning, Latent


class Sample(Node):
    """The sampler."""

    DISPLAY_NAME = "Sample (ControlNet Core)"
    CATEGORY = "ControlNet Core/sample"
    DESCRIPTION = (
        "Paints: removes noise step by step, guided by the prompt and by the control on it. The same seed gives "
        "the same picture, here and in the native sampler."
    )
    SEARCH_ALIASES = ["ksampler", "sampler", "generate"]
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The finished latent: link it to VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that removes noise."}),
                "positive": ("CONDITIONING", {"tooltip": "What the picture should show, with its control."}),
                "negative": ("CONDITIONING", {"tooltip": "What it should keep away from."}),
                "latent": ("LATENT", {"tooltip": "An empty latent, or an encoded picture to start from."}),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 0xFFFFFFFFFFFFFFFF,
                        "control_after_generate": True,
                        "tooltip": "The noise to start from; another number gives another picture.",
                    },
                ),
                "steps": (
                    "INT",
                    {"default": 20, "min": 1, "max": 10000, "tooltip": "How many steps; more take longer."},
                ),
                "cfg": (
                    "FLOAT",
                    {
                        "default": 7.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.1,
                        "round": 0.01,
                        "tooltip": "How much the prompt counts against the negative one; 1 leaves that out.",
                    },
                ),
                "sampler": (list(SAMPLERS), {"default": "euler", "tooltip": "How a step is taken."}),
                "scheduler": (list(SCHEDULERS), {"default": "normal", "tooltip": "How the steps are spread."}),
                "denoise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "How much of the latent is repainted: 1 all of it, 0.5 keeps its layout.",
                    },
                ),
            }
        }

    def run(
        self, model: Any, positive: Conditioning, negative: Conditioning, latent: Latent, **settings: Any
    ) -> tuple[Latent]:
        """-> LATENT."""
        return (self.host.sample(model, positive, negative, latent, SampleSettings(**settings)),)
