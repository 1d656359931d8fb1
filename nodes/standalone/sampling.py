"""ComfyUI's samplers: all settings on one node, or noise, guidance, sampler and sigmas from nodes of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.diffusion.guidance import Weights
from ...controlnet_core.diffusion.schedule import make_sigmas
from ...controlnet_core.diffusion.steps import Step
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.vae import unscale_latent
from ...controlnet_core.run_options import RunOptions
from ...controlnet_core.sample import SampleSettings
from ..fields import (
    Field,
    cfg,
    choice,
    conditioning,
    denoise,
    integer,
    latent,
    model,
    sampler,
    scheduler,
    seed,
    socket,
    steps,
)
from ..fields import switch as toggle
from ..node import Node
from ..speed import check_whole_guidance
from ..values import Conditioning, Latent, SamplerInputs
from .values import Model

MAX_STEPS = 10000
INPUTS = (
    cfg(), sampler(), scheduler(), conditioning("positive"), conditioning("negative"), latent("latent_image"),
)  # fmt: skip


def switch(name: str, default: str, other: str) -> Field:
    """A choice of two words, as in older nodes of ComfyUI."""
    return choice(name, [default, other])


class SamplerNode(Node):
    """Base of the samplers."""

    CATEGORY = "sampling"
    RETURN_TYPES = ("LATENT",)


class KSampler(SamplerNode):
    """Removes noise from a latent, guided by the prompt and the negative prompt."""

    INPUTS = (model("model"), seed(), steps(), *INPUTS, denoise())

    def run(
        self, model: Model, positive: Conditioning, negative: Conditioning, latent_image: Latent, sampler_name: str,
        **settings: Any,
    ) -> tuple[Latent]:  # fmt: skip
        """-> LATENT."""
        wanted = SampleSettings(sampler=sampler_name, **settings)
        return (self.host.sample(SamplerInputs(model, positive, negative, latent_image, wanted)),)


class KSamplerAdvanced(SamplerNode):
    """Runs some of the sampling steps, so that several samplers can share one image."""

    INPUTS = (
        model("model"),
        switch("add_noise", "enable", "disable"),
        seed("noise_seed"),
        steps(),
        *INPUTS,
        integer("start_at_step", 0, 0, MAX_STEPS),
        integer("end_at_step", MAX_STEPS, 0, MAX_STEPS),
        switch("return_with_leftover_noise", "disable", "enable"),
    )

    def run(
        self, model: Model, add_noise: str, noise_seed: int, sampler_name: str, positive: Conditioning,
        negative: Conditioning, latent_image: Latent, start_at_step: int, end_at_step: int,
        return_with_leftover_noise: str, **settings: Any,
    ) -> tuple[Latent]:  # fmt: skip
        """-> LATENT."""
        wanted = SampleSettings(
            noise_seed,
            sampler=sampler_name,
            add_noise=add_noise == "enable",
            start_step=start_at_step,
            end_step=end_at_step,
            leftover_noise=return_with_leftover_noise == "enable",
            **settings,
        )
        return (self.host.sample(SamplerInputs(model, positive, negative, latent_image, wanted)),)


# ---- a sampling from parts


@dataclass(frozen=True)
class Noise:
    """A NOISE. is_added: False where the latent is noisy already."""

    seed: int
    is_added: bool = True


@dataclass(frozen=True, eq=False)
class Guider:
    """A GUIDER: the model, both halves of its guidance, and the scale."""

    model: Model
    positive: Conditioning
    negative: Conditioning
    cfg: float = 1.0


class RandomNoise(Node):
    """The noise that sampling starts from."""

    CATEGORY = "sampling/custom_sampling/noise"
    RETURN_TYPES = ("NOISE",)
    INPUTS = (seed("noise_seed"),)

    def run(self, noise_seed: int) -> tuple[Noise]:
        """-> NOISE."""
        return (Noise(noise_seed),)


class DisableNoise(Node):
    """Adds no noise, for a latent that is noisy already."""

    CATEGORY = "sampling/custom_sampling/noise"
    RETURN_TYPES = ("NOISE",)

    def run(self) -> tuple[Noise]:
        """-> NOISE."""
        return (Noise(0, is_added=False),)


class KSamplerSelect(Node):
    """Selects a sampler."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    INPUTS = (sampler(),)

    def run(self, sampler_name: str) -> tuple[str]:
        """-> SAMPLER."""
        return (sampler_name,)


class BasicScheduler(Node):
    """Computes the noise levels of the sampling steps."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES = ("SIGMAS",)
    INPUTS = (model("model"), scheduler(), steps(), denoise())

    def run(self, model: Model, scheduler: str, steps: int, denoise: float) -> tuple[Tensor]:
        """-> SIGMAS (steps + 1,)."""
        return (make_sigmas(model.base.schedule, scheduler, steps, denoise=denoise),)


class GuiderNode(Node):
    """Base of the nodes that return a GUIDER."""

    CATEGORY = "sampling/custom_sampling/guiders"
    RETURN_TYPES = ("GUIDER",)


class BasicGuider(GuiderNode):
    """Follows one prompt, without guidance."""

    INPUTS = (model("model"), conditioning("conditioning"))

    def run(self, model: Model, conditioning: Conditioning) -> tuple[Guider]:
        """-> GUIDER."""
        return (Guider(model, conditioning, conditioning),)


class CFGGuider(GuiderNode):
    """Classifier-free guidance, as in the samplers."""

    INPUTS = (model("model"), conditioning("positive"), conditioning("negative"), cfg())

    def run(self, model: Model, positive: Conditioning, negative: Conditioning, cfg: float) -> tuple[Guider]:
        """-> GUIDER."""
        return (Guider(model, positive, negative, cfg),)


class DualCFGGuider(GuiderNode):
    """Guidance with two scales. For InstructPix2Pix: cond1 is the prompt with the image, cond2 the empty prompt with
    the image, negative the empty prompt without it. cfg_conds is the scale of the text, cfg_cond2_negative the scale of
    the image.
    """

    INPUTS = (
        model("model"), conditioning("cond1"), conditioning("cond2"), conditioning("negative"), cfg("cfg_conds"),
        cfg("cfg_cond2_negative"), choice("style", ["regular", "nested"]),
    )  # fmt: skip

    def run(
        self, model: Model, cond1: Conditioning, cond2: Conditioning, negative: Conditioning, cfg_conds: float,
        cfg_cond2_negative: float, style: str = "regular",
    ) -> tuple[Guider]:  # fmt: skip
        """-> GUIDER.

        Raises UnfitError for prompts with masks, areas or time ranges, for a model with RescaleCFG, and for guidance
        that is limited to an interval.
        """
        if model.rescale:
            raise UnfitError("RescaleCFG works with one scale: remove it from the model, or use CFGGuider")
        check_whole_guidance(self.host.options_of(model))
        # Both scales together are one guided prediction whose negative half mixes two prompts.
        weights = Weights.of(cfg_conds, cfg_cond2_negative, nested=style == "nested")
        middle, rest = weights.within_negative()
        half = [*scale_strengths(cond2, middle), *scale_strengths(negative, rest)]
        return (Guider(model, cond1, half, weights.positive),)


LOCAL_OPTIONS = ("mask", "area", "start_percent", "end_percent")
"""Options that limit a prompt to a part of the image or of the sampling."""


def scale_strengths(conditioning: Conditioning, weight: float) -> Conditioning:
    """The same prompts with strengths that add up to `weight`. Raises UnfitError for prompts that act locally."""
    for name in LOCAL_OPTIONS:
        if any(name in options for _, options in conditioning):
            raise UnfitError(f"DualCFGGuider weighs whole images, and a prompt has the option {name}: remove it")
    total = sum(options.get("strength", 1.0) for _, options in conditioning)
    if total == 0.0:
        raise UnfitError("the strengths of DualCFGGuider's prompts add up to 0: give one of them a strength")
    return [
        [text, {**options, "strength": options.get("strength", 1.0) / total * weight}] for text, options in conditioning
    ]


class SamplerCustomAdvanced(Node):
    """Removes noise from a latent, with noise, guidance, sampler and sigmas from other nodes."""

    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    INPUTS = (
        socket("NOISE", "noise"), socket("GUIDER", "guider"), socket("SAMPLER", "sampler"),
        socket("SIGMAS", "sigmas"), latent("latent_image"),
    )  # fmt: skip

    def run(
        self, noise: Noise, guider: Guider, sampler: str, sigmas: Tensor, latent_image: Latent
    ) -> tuple[Latent, Latent]:
        """-> the LATENT (noisy where the sigmas do not end in 0), and the last prediction of it without noise."""
        return sample_from_parts(self.host, noise, guider, sampler, sigmas, latent_image)


def sample_from_parts(
    host: Any, noise: Noise, guider: Guider, sampler: str, sigmas: Tensor, latent_image: Latent
) -> tuple[Latent, Latent]:
    """The sampled LATENT, and the last prediction of it without noise."""
    settings = SampleSettings(
        # An empty table of sigmas is allowed and returns the latent; the settings need at least one step.
        noise.seed, max(1, len(sigmas) - 1), guider.cfg, sampler, "custom", add_noise=noise.is_added,
        sigmas=tuple(sigmas.tolist()),
    )  # fmt: skip
    predictions: list[Tensor] = []

    def watch(step: Step) -> None:
        # Only the last prediction is returned, so only one is kept.
        predictions[:] = [step.denoised]

    inputs = SamplerInputs(guider.model, guider.positive, guider.negative, latent_image, settings)
    made = host.sample(inputs, RunOptions(on_step=watch))
    if not predictions:
        return made, made
    last = unscale_latent(predictions[0].to(torch.float32).cpu(), guider.model.base.config.vae)
    return made, {**made, "samples": last}


class SamplerCustom(SamplerNode):
    """Removes noise from a latent with a sampler and sigmas from other nodes."""

    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES = SamplerCustomAdvanced.RETURN_TYPES
    RETURN_NAMES = SamplerCustomAdvanced.RETURN_NAMES
    INPUTS = (
        model("model"), toggle("add_noise", True), seed("noise_seed"), cfg(), conditioning("positive"),
        conditioning("negative"), socket("SAMPLER", "sampler"), socket("SIGMAS", "sigmas"), latent("latent_image"),
    )  # fmt: skip

    def run(
        self, model: Model, add_noise: bool, noise_seed: int, cfg: float, positive: Conditioning,
        negative: Conditioning, sampler: str, sigmas: Tensor, latent_image: Latent,
    ) -> tuple[Latent, Latent]:  # fmt: skip
        """-> the LATENT (noisy where the sigmas do not end in 0), and the last prediction of it without noise."""
        guider = Guider(model, positive, negative, cfg)
        return sample_from_parts(self.host, Noise(noise_seed, add_noise), guider, sampler, sigmas, latent_image)
