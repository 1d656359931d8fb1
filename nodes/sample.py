"""From prompt to latent: the node that encodes a prompt, the sampler, and one that also reports what ran."""

from __future__ import annotations

from typing import Any

from .fields import Output, cfg, clip, conditioning, denoise, latent, model, prompt, sampler, scheduler, seed, steps
from .node import Node, with_text
from .pictures import show_images, to_image
from .values import Conditioning, Halves, Latent, SamplerInputs

# The inputs of a sampler in groups: nodes that sample too put inputs of their own between them.
GUIDED_MODEL = (
    model("model", "The diffusion model."),
    conditioning("positive", "The encoded prompt, with control."),
    conditioning("negative", "The encoded negative prompt, with control."),
)
LATENT = latent("latent", "An empty latent, or an encoded image to start from.")
SETTINGS = (
    seed(tooltip="Seed of the initial noise. Another seed gives another image."),
    steps("Number of sampling steps. More steps take longer."),
    cfg(
        default=7.0,
        tooltip="Guidance scale: how strongly the image follows the prompt rather than the negative prompt. 1 "
        "turns guidance off.",
    ),
    sampler("sampler", "The algorithm that takes the steps.", "euler"),
    scheduler("How the noise levels of the steps are spaced.", "normal"),
)
"""Fields of `SampleSettings`, without the denoise."""
DENOISE = denoise("Fraction of the noise schedule to run. 1 starts from pure noise, 0.5 keeps the layout of the input.")


class EncodePrompt(Node):
    """Encodes a prompt and a negative prompt. (words:1.3) increases the weight of words, (words:0.7) decreases it. Long
    prompts are encoded in parts of 75 tokens.
    """

    DISPLAY_NAME = "Encode Prompt"
    CATEGORY = "ControlNet Core/prompt"
    SEARCH_ALIASES = ["text", "clip text encode", "negative prompt"]
    INPUTS = (
        clip("clip", "The text encoder of the checkpoint."),
        prompt("prompt", "What the image should show.", ""),
        prompt("negative_prompt", "What the image should not show; may be empty.", ""),
    )
    OUTPUTS = (
        Output("CONDITIONING", "positive", "The encoded prompt."),
        Output("CONDITIONING", "negative", "The encoded negative prompt."),
    )

    def run(self, clip: Any, prompt: str, negative_prompt: str) -> Halves:
        """-> CONDITIONING of the prompt, CONDITIONING of the negative prompt."""
        return self.host.encode_prompt(clip, prompt), self.host.encode_prompt(clip, negative_prompt)


class Sample(Node):
    """Generates a latent: removes noise step by step, guided by the prompts and by the control applied to them. The
    same seed gives the same image here and in the native sampler.
    """

    DISPLAY_NAME = "Sample (ControlNet Core)"
    CATEGORY = "ControlNet Core/sample"
    SEARCH_ALIASES = ["ksampler", "sampler", "generate"]
    INPUTS = (*GUIDED_MODEL, LATENT, *SETTINGS, DENOISE)
    OUTPUTS = (Output("LATENT", "latent", "The generated latent: link it to VAE Decode."),)

    def run(
        self, model: Any, positive: Conditioning, negative: Conditioning, latent: Latent, **settings: Any
    ) -> tuple[Latent]:
        """-> LATENT."""
        from ..controlnet_core.sample import SampleSettings

        return (self.host.sample(SamplerInputs(model, positive, negative, latent, SampleSettings(**settings))),)


class ControlReport(Node):
    """Samples the same latent as Sample, and reports what ran: the number of steps and of model evaluations, how often
    and how long each ControlNet ran, what was converted to another precision, and how much each block added at each
    step. Recording takes some time; use Sample where no report is needed.
    """

    DISPLAY_NAME = "Control Report"
    CATEGORY = "ControlNet Core/look"
    SEARCH_ALIASES = ["debug", "profile", "residual norms", "statistics"]
    OUTPUT_NODE = True
    # The same inputs, so that one node can be replaced by the other in a workflow.
    INPUTS = Sample.INPUTS
    OUTPUTS = (
        Output("LATENT", "latent", "The generated latent, the same as from Sample."),
        Output("STRING", "report", "The report as tables."),
        Output("IMAGE", "picture", "A heat map for each ControlNet: what its blocks added at each step."),
    )

    def run(
        self, model: Any, positive: Conditioning, negative: Conditioning, latent: Latent, **settings: Any
    ) -> dict[str, Any]:
        """-> LATENT, the report, IMAGE (1, H, W, 3)."""
        from ..controlnet_core.analysis.charts import draw_report
        from ..controlnet_core.control.report import describe
        from ..controlnet_core.run_options import DEFAULTS
        from ..controlnet_core.sample import SampleSettings

        wanted = SampleSettings(**settings)
        # Observing computes the norm of every residual in each step, so Sample does without it.
        options = DEFAULTS.with_recorder(wanted.title, observe=True)
        result = self.host.sample(SamplerInputs(model, positive, negative, latent, wanted), options)
        report = options.report()
        text, image = describe(report), to_image(draw_report(report))
        return with_text(text, result, text, image, **show_images(self.host, image))
