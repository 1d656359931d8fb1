"""From noise to a latent."""

from __future__ import annotations

from typing import Any

from ..controlnet_core.analysis.charts import draw_report
from ..controlnet_core.control.report import Recorder, describe
from ..controlnet_core.diffusion.samplers import SAMPLERS
from ..controlnet_core.diffusion.schedule import SCHEDULERS
from ..controlnet_core.pipeline import SampleSettings
from .host import Node
from .pictures import shown, to_image
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


class ControlReport(Node):
    """The sampler, telling what ran."""

    DISPLAY_NAME = "Control Report"
    CATEGORY = "ControlNet Core/look"
    DESCRIPTION = (
        "Samples as Sample does, to the same picture, and tells what ran: steps and evaluations, which ControlNet ran "
        "in how many of them and for how long, what was cast to another precision, and how much each of its blocks "
        "added at each step. Watching costs some time; Sample does without."
    )
    SEARCH_ALIASES = ["debug", "profile", "residual norms", "statistics"]
    OUTPUT_NODE = True
    RETURN_TYPES = ("LATENT", "STRING", "IMAGE")
    RETURN_NAMES = ("latent", "report", "picture")
    OUTPUT_TOOLTIPS = (
        "The finished latent, the same as from Sample.",
        "The report as tables.",
        "For each net a heat map of what its blocks added at each step.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return Sample.INPUT_TYPES()

    def run(
        self, model: Any, positive: Conditioning, negative: Conditioning, latent: Latent, **settings: Any
    ) -> dict[str, Any]:
        """-> LATENT, the report, IMAGE (1, H, W, 3)."""
        wanted = SampleSettings(**settings)
        recorder = Recorder(wanted.title, observe=True)
        result = self.host.sample(model, positive, negative, latent, wanted, recorder)
        report = recorder.report()
        text, image = describe(report), to_image(draw_report(report))
        return {"ui": {"text": [text], **shown(self.host, image)}, "result": (result, text, image)}
