"""Samples a LATENT with the engine, and measures the error of skipped work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias

from torch import Tensor

from ...controlnet_core.backend import Backend
from ...controlnet_core.conditioning.condition import Condition
from ...controlnet_core.conditioning.job import Job
from ...controlnet_core.models.vae import scale_latent, unscale_latent
from ...controlnet_core.pipeline import generate, plan_run
from ...controlnet_core.run_options import RunOptions
from ...controlnet_core.sample import cut_sigmas
from ..values import Latent, SamplerInputs
from .conditions import to_conditions
from .values import Model

Half: TypeAlias = tuple[Condition, ...]


@dataclass(frozen=True)
class SamplingJob:
    """One sampling: the inputs of its node, and what the engine reads of them.

    conditions: of both halves of the guidance. samples: the latent, scaled for the model, (B, 4, h, w).
    """

    inputs: SamplerInputs
    conditions: tuple[Half, Half]
    samples: Tensor
    backend: Backend

    def run(self, options: RunOptions) -> Tensor:
        """Sample, and return the scaled latent (B, 4, h, w)."""
        model, _, _, latent, settings = self.inputs
        return generate(
            model.diffusion, *self.conditions, self.samples, replace(settings, rescale=model.rescale),
            backend=self.backend, noise_mask=latent.get("noise_mask"), batch_index=latent.get("batch_index"),
            options=options,
        )  # fmt: skip

    def to_latent(self, result: Tensor) -> Latent:
        """The LATENT that a result of `run` makes, with mask and batch index of the one that came in."""
        config = self.inputs.model.diffusion.config
        return {**self.inputs.latent, "samples": unscale_latent(result, config.vae)}

    def measure(self, result: Tensor, options: RunOptions) -> tuple[float, float, float]:
        """Relative error of a result for which work was skipped, and seconds with and without skipping it.

        The run that made the result has already packed the weights, so neither of the two timed runs pays for it.
        """
        without = options.exact()
        if options.limits_guidance:
            # Without the negative half fewer weights were packed: one exact run packs the rest.
            self.run(without)
        began = perf_counter()
        exact = self.run(without)
        between = perf_counter()
        self.run(options)
        seconds = perf_counter() - between
        return float((result - exact).norm() / exact.norm()), seconds, between - began


def sampling_job(inputs: SamplerInputs, backend: Backend) -> SamplingJob:
    """The job for these inputs of a sampler node."""
    model, positive, negative, latent, settings = inputs
    config = model.diffusion.config
    samples = latent["samples"]
    size = (samples.shape[-2], samples.shape[-1])
    # An empty latent stays zero. Models whose latents have a mean would shift it otherwise.
    if samples.any():
        samples = scale_latent(samples, config.vae)
    conditions = to_conditions(positive, negative, size, config, {**latent, "samples": samples}, settings.seed)
    return SamplingJob(inputs, with_units_of(model, conditions), samples, backend)


def with_units_of(model: Model, conditions: tuple[Half, Half]) -> tuple[Half, Half]:
    """Both halves of the guidance, with the control of the MODEL in front of that of each prompt."""
    if not model.units:
        return conditions
    # In front, because what a prompt's own control reads is changed by the model's.
    first, second = (tuple(replace(c, units=(*model.units, *c.units)) for c in half) for half in conditions)
    return first, second


def describe_memory(inputs: SamplerInputs, options: RunOptions, backend: Backend) -> str:
    """The memory that sampling will take, in words."""
    model, positive, negative, latent, settings = inputs
    diffusion, samples = model.diffusion, latent["samples"]
    size = (samples.shape[-2], samples.shape[-1])
    conditions = to_conditions(positive, negative, size, diffusion.config, latent, settings.seed)
    conditions = with_units_of(model, conditions)
    sigmas = cut_sigmas(diffusion.schedule, settings).tolist()
    job = Job(diffusion.unet, diffusion.config, diffusion.schedule, *conditions, tuple(samples.shape), sigmas)
    return plan_run(job, backend, options).summary()
