"""Our samplers inside ComfyUI's guidance: LoRA, hooks, areas, masks and inpainting stay its business."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...controlnet_core.diffusion.noise import mask_noise, noise_source
from ...controlnet_core.diffusion.samplers import NoiseSource, Sampler, Step, get_sampler
from ...controlnet_core.errors import OutOfMemory, ValueRangeError
from ...controlnet_core.recording import record_evaluations
from ...controlnet_core.run_options import DEFAULTS, RunOptions
from ...controlnet_core.sample import SampleSettings
from ..values import Latent, SamplerInputs
from .apply import idle_control
from .recording import with_recorder

log = logging.getLogger(__name__)


def sample(inputs: SamplerInputs, options: RunOptions = DEFAULTS) -> Latent:
    """The sampled LATENT of a native MODEL. Raises ValueRangeError, OutOfMemory, or ComfyUI's interruption."""
    model, positive, negative, latent, settings = inputs
    model = with_recorder(model, options)
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    sigmas = table(model, settings)
    if len(sigmas) < 2:
        return {**latent, "samples": samples}
    noise = draw_noise(samples, settings, latent.get("batch_index"))
    try:
        result = comfy.sample.sample_custom(
            model,
            noise,
            settings.cfg,
            choose_sampler(model, settings.sampler, options),
            sigmas,
            positive,
            negative,
            samples,
            noise_mask=latent.get("noise_mask"),
            callback=show_steps(model, len(sigmas) - 1, options),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=settings.seed,
        )
    except comfy.model_management.OOM_EXCEPTION as error:
        raise OutOfMemory(
            f"the device has no memory left for a batch of {samples.shape[0]} latents of {samples.shape[-1]}x"
            f"{samples.shape[-2]}: use a smaller picture, a smaller batch, or fewer ControlNets"
        ) from error
    notes = idle_control(model, [*positive, *negative], sigmas[:-1].tolist())
    options.note(*notes)
    for note in () if options.records else notes:
        log.warning("%s", note)
    return {**latent, "samples": result}


def draw_noise(samples: Tensor, settings: SampleSettings, batch_index: Any) -> Tensor:
    """The initial noise of a latent, by ComfyUI's own generator; zeros where none is wanted."""
    if not settings.add_noise:
        return torch.zeros_like(samples, device="cpu")
    part = settings.noise_part
    if part is None:
        return comfy.sample.prepare_noise(samples, settings.seed, batch_index)
    # Only type and shape of this latent are read, so it needs no memory.
    whole = samples.new_empty(1, device="cpu").expand(*samples.shape[:-2], *part.size)
    noise = part.cut(comfy.sample.prepare_noise(whole, part.seed, batch_index))
    return noise[..., : samples.shape[-2], : samples.shape[-1]].contiguous()


def show_steps(model: Any, count: int, options: RunOptions) -> Callable[[int, Tensor, Tensor, int], None]:
    """ComfyUI's bar and preview for a run of `count` steps, which may be one of several of a node."""
    index, runs = options.part
    shown = latent_preview.prepare_callback(model, count * runs)

    def show(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        shown(index * total + step, denoised, x, runs * total)

    return show


def table(model: Any, settings: SampleSettings) -> Tensor:
    """The sigmas of a run by ComfyUI's own tables, cut to start_step..end_step as its sampler nodes do."""
    known = comfy.samplers.KSampler
    if settings.scheduler not in known.SCHEDULERS or settings.sampler not in known.SAMPLERS:
        raise ValueRangeError(
            f"this release of ComfyUI does not know {settings.sampler} on {settings.scheduler}: choose others, or "
            "update it"
        )
    sigmas = known(
        model, settings.steps, model.load_device, settings.sampler, settings.scheduler, settings.denoise
    ).sigmas
    end = settings.end_step
    if end is not None and end < len(sigmas) - 1:
        sigmas = sigmas[: end + 1].clone()
        if not settings.leftover_noise:
            sigmas[-1] = 0.0
    return sigmas[min(settings.start_step, max(0, len(sigmas) - 1)) :]


def choose_sampler(model: Any, name: str, options: RunOptions = DEFAULTS) -> Any:
    """Our sampler; for flow models, whose ancestral steps are others, ComfyUI's own of that name."""
    if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        return comfy.samplers.sampler_object(name)
    return CoreSampler(get_sampler(name), options)


class CoreSampler(comfy.samplers.Sampler):
    """A sampler of ours as ComfyUI calls one."""

    def __init__(self, sampler: Sampler, options: RunOptions = DEFAULTS) -> None:
        self.sampler, self.options = sampler, options

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., Any] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Noise (B, C, h, w) at sigmas[0] -> latent at sigmas[-1], in the model's scale."""
        seed = extra_args.get("seed") or 0
        guided = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        guided.latent_image, guided.noise = latent_image, mask_noise(self.sampler, noise, seed)
        levels = model_wrap.inner_model.model_sampling
        start = levels.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            rows = torch.full((x.shape[0],), float(sigma), device=x.device)  # a copy would wait for the GPU
            return guided(x, rows, denoise_mask=denoise_mask, **extra_args)

        def report(step: Step) -> None:
            self.options.report_step(step)
            if callback is not None:
                callback(step.index, step.denoised, step.x, step.total)

        source = host_noise(self.sampler, start, sigmas, seed)
        result = self.sampler(record_evaluations(denoise, self.options), start, sigmas, noise=source, on_step=report)
        return levels.inverse_noise_scaling(sigmas[-1], result)


def host_noise(sampler: Sampler, x: Tensor, sigmas: Tensor, seed: int) -> NoiseSource | None:
    """Ancestral noise comes from ComfyUI itself, since its releases seed it differently."""
    if sampler.noise == "ancestral":
        return comfy.k_diffusion.sampling.default_noise_sampler(x, seed=seed)
    return noise_source(sampler, x, sigmas, seed)
