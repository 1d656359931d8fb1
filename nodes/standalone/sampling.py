"""Native samplers."""

from __future__ import annotations

from typing import Any

from ...controlnet_core.diffusion.samplers import SAMPLERS
from ...controlnet_core.diffusion.schedule import SCHEDULERS
from ...controlnet_core.pipeline import SampleSettings
from ..host import Node
from ..values import Conditioning, Latent, Model

SEED = ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True})
STEPS = ("INT", {"default": 20, "min": 1, "max": 10000})
CFG = ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01})


class KSampler(Node):
    """The sampler."""

    CATEGORY = "sampling"
    DESCRIPTION = "Removes noise from a latent, guided by the positive and the negative prompt."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "seed": SEED,
                "steps": STEPS,
                "cfg": CFG,
                "sampler_name": (list(SAMPLERS),),
                "scheduler": (list(SCHEDULERS),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def run(
        self,
        model: Model,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        denoise: float = 1.0,
    ) -> tuple[Latent]:
        """-> LATENT."""
        settings = SampleSettings(seed, steps, cfg, sampler_name, scheduler, denoise)
        return (self.host.sample(model, positive, negative, latent_image, settings),)


class KSamplerAdvanced(Node):
    """A part of a sampling."""

    CATEGORY = "sampling"
    DESCRIPTION = "Runs some of the steps, so that several samplers can share one picture."
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "add_noise": (["enable", "disable"],),
                "noise_seed": SEED,
                "steps": STEPS,
                "cfg": CFG,
                "sampler_name": (list(SAMPLERS),),
                "scheduler": (list(SCHEDULERS),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "start_at_step": ("INT", {"default": 0, "min": 0, "max": 10000}),
                "end_at_step": ("INT", {"default": 10000, "min": 0, "max": 10000}),
                "return_with_leftover_noise": (["disable", "enable"],),
            }
        }

    def run(
        self,
        model: Model,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
        denoise: float = 1.0,
    ) -> tuple[Latent]:
        """-> LATENT."""
        settings = SampleSettings(
            noise_seed,
            steps,
            cfg,
            sampler_name,
            scheduler,
            denoise,
            add_noise=add_noise == "enable",
            start_step=start_at_step,
            end_step=end_at_step,
            leftover_noise=return_with_leftover_noise == "enable",
        )
        return (self.host.sample(model, positive, negative, latent_image, settings),)


NODES: dict[str, type] = {"KSampler": KSampler, "KSamplerAdvanced": KSamplerAdvanced}
