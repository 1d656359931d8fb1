"""Native nodes that hand over a sampling's parts one by one: noise, guidance, sampler and sigmas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...controlnet_core.diffusion.guidance import Weights
from ...controlnet_core.diffusion.samplers import SAMPLERS
from ...controlnet_core.diffusion.schedule import SCHEDULERS, make_sigmas
from ...controlnet_core.diffusion.steps import Step
from ...controlnet_core.errors import UnfitError
from ...controlnet_core.models.vae import unscale_latent
from ...controlnet_core.pipeline import SampleSettings
from ..host import Node
from ..values import Conditioning, Latent, Model
from .sampling import CFG, SEED, STEPS

GUIDERS = "sampling/custom_sampling/guiders"


@dataclass(frozen=True)
class Noise:
    """A headless NOISE. there: whether any is added."""

    seed: int
    there: bool = True


@dataclass(frozen=True, eq=False)
class Guider:
    """A headless GUIDER: a model, the two halves of its guidance, and the scale."""

    model: Model
    positive: Conditioning
    negative: Conditioning
    cfg: float = 1.0


class RandomNoise(Node):
    """Noise by a seed."""

    CATEGORY = "sampling/custom_sampling/noise"
    DESCRIPTION = "The noise that a sampling begins with."
    RETURN_TYPES = ("NOISE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"noise_seed": SEED}}

    def run(self, noise_seed: int) -> tuple[Noise]:
        """-> NOISE."""
        return (Noise(noise_seed),)


class DisableNoise(Node):
    """No noise."""

    CATEGORY = "sampling/custom_sampling/noise"
    DESCRIPTION = "Adds no noise: the latent that comes in is noisy already."
    RETURN_TYPES = ("NOISE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[Noise]:
        """-> NOISE."""
        return (Noise(0, there=False),)


class KSamplerSelect(Node):
    """A sampler by its name."""

    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "The sampler."
    RETURN_TYPES = ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sampler_name": (list(SAMPLERS),)}}

    def run(self, sampler_name: str) -> tuple[str]:
        """-> SAMPLER."""
        return (sampler_name,)


class BasicScheduler(Node):
    """The sigmas of a scheduler."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    DESCRIPTION = "The noise levels that a sampling walks down."
    RETURN_TYPES = ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        denoise = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {
            "required": {"model": ("MODEL",), "scheduler": (list(SCHEDULERS),), "steps": STEPS, "denoise": denoise}
        }

    def run(self, model: Model, scheduler: str, steps: int, denoise: float) -> tuple[Tensor]:
        """-> SIGMAS (steps + 1,)."""
        return (make_sigmas(model.base.schedule, scheduler, steps, denoise=denoise),)


class BasicGuider(Node):
    """No guidance."""

    CATEGORY = GUIDERS
    DESCRIPTION = "Follows one prompt, without guidance."
    RETURN_TYPES = ("GUIDER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "conditioning": ("CONDITIONING",)}}

    def run(self, model: Model, conditioning: Conditioning) -> tuple[Guider]:
        """-> GUIDER."""
        return (Guider(model, conditioning, conditioning),)


class CFGGuider(Node):
    """Guidance from one prompt to another."""

    CATEGORY = GUIDERS
    DESCRIPTION = "Classifier-free guidance, as samplers do it."
    RETURN_TYPES = ("GUIDER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        halves = {"positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        return {"required": {"model": ("MODEL",), **halves, "cfg": CFG}}

    def run(self, model: Model, positive: Conditioning, negative: Conditioning, cfg: float) -> tuple[Guider]:
        """-> GUIDER."""
        return (Guider(model, positive, negative, cfg),)


class DualCFGGuider(Node):
    """Guidance by two scales: the text's and the picture's, for models that edit pictures."""

    CATEGORY = GUIDERS
    DESCRIPTION = (
        "Guidance by two scales. For InstructPix2Pix: cond1 is the prompt with the picture, cond2 the empty prompt "
        "with it, negative the empty prompt without it; cfg_conds is the scale of the text, cfg_cond2_negative that of "
        "the picture."
    )
    RETURN_TYPES = ("GUIDER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prompts = dict.fromkeys(("cond1", "cond2", "negative"), ("CONDITIONING",))
        scales = {"cfg_conds": CFG, "cfg_cond2_negative": CFG}
        return {"required": {"model": ("MODEL",), **prompts, **scales, "style": (["regular", "nested"],)}}

    def run(
        self,
        model: Model,
        cond1: Conditioning,
        cond2: Conditioning,
        negative: Conditioning,
        cfg_conds: float,
        cfg_cond2_negative: float,
        style: str = "regular",
    ) -> tuple[Guider]:
        """-> GUIDER. Raises UnfitError for prompts with masks, areas or windows, and for a model that is rescaled or
        guided in an interval only."""
        if model.rescale:
            raise UnfitError("RescaleCFG is defined for one scale: take it off the model, or use CFGGuider")
        if self.host.shortcuts_of(model).limits_guidance:
            raise UnfitError(
                "guidance in an interval is defined for one scale: set guidance_start 0 and guidance_end 1 in the node "
                "Shortcuts (or leave out --guidance), or use CFGGuider"
            )
        weights = Weights.of(cfg_conds, cfg_cond2_negative, nested=style == "nested")
        middle, rest = weights.within_negative()
        half = [*weighed(cond2, middle), *weighed(negative, rest)]
        return (Guider(model, cond1, half, weights.positive),)


PLACED = ("mask", "area", "start_percent", "end_percent")
"""What confines a prompt to a part of the picture or of the run."""


def weighed(conditioning: Conditioning, weight: float) -> Conditioning:
    """The prompts, with strengths that add up to `weight`. Raises UnfitError where they do not act everywhere."""
    for name in PLACED:
        if any(name in options for _, options in conditioning):
            raise UnfitError(f"a prompt with {name} came to DualCFGGuider, which weighs whole pictures: leave that out")
    total = sum(options.get("strength", 1.0) for _, options in conditioning)
    if total == 0.0:
        raise UnfitError("the strengths of DualCFGGuider's prompts add up to 0: give one of them a strength")
    return [
        [text, {**options, "strength": options.get("strength", 1.0) / total * weight}] for text, options in conditioning
    ]


class SamplerCustomAdvanced(Node):
    """The sampling of these parts."""

    CATEGORY = "sampling/custom_sampling"
    DESCRIPTION = "Removes noise from a latent, with the noise, guidance, sampler and sigmas of other nodes."
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS"}
        return {"required": {**{name: (kind,) for name, kind in names.items()}, "latent_image": ("LATENT",)}}

    def run(
        self, noise: Noise, guider: Guider, sampler: str, sigmas: Tensor, latent_image: Latent
    ) -> tuple[Latent, Latent]:
        """-> the LATENT, noisy where the sigmas do not end in 0, and the last prediction of it without noise."""
        settings = SampleSettings(
            noise.seed, max(1, len(sigmas) - 1), guider.cfg, sampler, "custom", add_noise=noise.there,
            sigmas=tuple(sigmas.tolist()),
        )  # fmt: skip
        seen: list[Tensor] = []

        def watch(step: Step) -> None:
            seen[:] = [step.denoised]

        halves = (guider.positive, guider.negative)
        made = self.host.sample(guider.model, *halves, latent_image, settings, watch=watch)
        if not seen:
            return made, made
        last = unscale_latent(seen[0].to(torch.float32).cpu(), guider.model.base.config.vae)
        return made, {**made, "samples": last}


NODES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        RandomNoise, DisableNoise, KSamplerSelect, BasicScheduler, BasicGuider, CFGGuider, DualCFGGuider,
        SamplerCustomAdvanced,
    )
}  # fmt: skip
