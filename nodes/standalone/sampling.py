"""ComfyUI's samplers: all settings on one node."""

from __future__ import annotations

from typing import Any

from ...controlnet_core.sample import SampleSettings
from ..fields import Field, cfg, choice, conditioning, denoise, integer, latent, model, sampler, scheduler, seed, steps
from ..node import Node
from ..values import Conditioning, Latent, Model

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
        return (self.host.sample(model, positive, negative, latent_image, wanted),)


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
        return (self.host.sample(model, positive, negative, latent_image, wanted),)
