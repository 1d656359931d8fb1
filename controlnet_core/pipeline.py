"""From noise to a latent: the algorithm on one page. The first file to read.

    sigmas = make_sigmas(...)                    the noise levels of the steps
    job = Job(model, conditions, size, sigmas)   what is to be made
    parts = prepare_parts(job)                   all that does not depend on x, once; one part, if memory suffices
    x = latent + noise * sigmas[0]
    x = sampler(denoise, x, sigmas)              denoise: x, sigma -> evaluate_parts(parts, x, sigma, cfg, run)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig
from .control.hint import repeat_to
from .control.report import Recorder
from .diffusion.denoiser import add_noise, is_max_denoise
from .diffusion.noise import AncestralSeed, initial_noise, mask_noise, noise_source
from .diffusion.samplers import Sampler, Step, get_sampler
from .diffusion.schedule import NoiseSchedule, make_sigmas
from .engine.backend import Backend
from .engine.choices import left_aside
from .engine.chunks import evaluate_parts, fit_run, prepare_parts
from .engine.condition import Condition
from .engine.graphs import Graphs, why_never, why_not
from .engine.job import Job
from .engine.memory import MemoryPlan
from .engine.record import note_casts
from .engine.run import EXACT, Run, Shortcuts, stage_ends
from .engine.runtime import Cancelled, check_cancelled, waits_for_results
from .errors import OutOfMemory, ShapeError
from .models.unet import UNet


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A UNet with what its training fixed: parametrisation (in `config`) and noise levels."""

    unet: UNet
    config: ModelConfig
    schedule: NoiseSchedule


@dataclass(frozen=True)
class SampleSettings:
    """How to sample. `denoise` below 1 keeps that much less of the latent that comes in changed.

    start_step, end_step cut the table of sigmas; with `add_noise` off the latent is taken as noisy
    already, and with `leftover_noise` on the last cut step leaves it so. sigmas: a table to walk down instead of
    that of scheduler, steps and denoise. rescale: the share of guidance's contrast that is taken back, 0 to 1.
    """

    seed: int = 0
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    denoise: float = 1.0
    add_noise: bool = True
    start_step: int = 0
    end_step: int | None = None
    leftover_noise: bool = True
    ancestral: AncestralSeed = "shifted"
    sigmas: tuple[float, ...] | None = None
    rescale: float = 0.0

    @property
    def title(self) -> str:
        """What reports call a run with these settings."""
        return f"{self.sampler} / {self.scheduler}, seed {self.seed}"


def generate(
    model: DiffusionModel,
    positive: Sequence[Condition],
    negative: Sequence[Condition],
    latent: Tensor,
    settings: SampleSettings,
    *,
    backend: Backend,
    noise_mask: Tensor | None = None,
    batch_index: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
    cancelled: Cancelled | None = None,
    shortcuts: Shortcuts = EXACT,
    recorder: Recorder | None = None,
    on_memory: Callable[[MemoryPlan], None] | None = None,
) -> Tensor:
    """Sample a latent.

    latent: (B, 4, h, w), scaled; zeros to start from nothing. noise_mask: (B or 1, 1 or none, H, W) in
    [0, 1], where to paint; the rest keeps the latent. shortcuts: what may be left out, at a price in
    exactness (see `engine.run`). recorder: hears what runs (see `control.report`).
    on_memory: hears, before anything is computed, how much memory the run will take.
    Returns (B, 4, h, w) float32 on the CPU.
    Raises ShapeError, UnfitError, NonFiniteError, Interrupted, OutOfMemory.
    """
    asked = _Asked(
        model, positive, negative, latent, settings, backend, noise_mask, batch_index, on_step, cancelled, on_memory
    )
    runtime = backend.runtime
    watched = waits_for_results(runtime.device)
    ends = stage_ends(model.schedule.percent_to_sigma)
    run = Run(shortcuts, watched, recorder, settings.rescale, ends=ends, side_by_side=backend.beside)
    try:
        with torch.inference_mode():
            result = _generate(asked, run)
            if run.failed:
                # the same again, looking at each step: names the culprit
                return _generate(asked, Run(shortcuts, rescale=settings.rescale, ends=ends))
            return result
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device has no memory left for a batch of {latent.shape[0]} latents of {latent.shape[3]}x"
            f"{latent.shape[2]}: use a smaller picture, fewer pictures at a time (--chunk), fewer ControlNets, "
            "dtype fp16, or streamed weights (--memory streamed)"
        ) from error
    finally:
        backend.rest()


@dataclass(frozen=True, eq=False)
class _Asked:
    """What `generate` was asked for."""

    model: DiffusionModel
    positive: Sequence[Condition]
    negative: Sequence[Condition]
    latent: Tensor
    settings: SampleSettings
    backend: Backend
    noise_mask: Tensor | None
    batch_index: Sequence[int] | None
    on_step: Callable[[Step], None] | None
    cancelled: Cancelled | None
    on_memory: Callable[[MemoryPlan], None] | None


def _generate(asked: _Asked, run: Run) -> Tensor:
    model, settings, latent = asked.model, asked.settings, asked.latent
    if latent.ndim != 4 or latent.shape[1] != model.config.vae.latent_channels:
        raise ShapeError(
            f"the latent has shape {tuple(latent.shape)}, expected (B, {model.config.vae.latent_channels}, h, w)"
        )
    sampler = get_sampler(settings.sampler)
    sigmas = cut_sigmas(model.schedule, settings)
    if len(sigmas) < 2:
        return latent.float().cpu()
    guided = asked.negative if settings.cfg != 1.0 else ()
    shape, known = tuple(latent.shape), sigmas.tolist()
    job = Job(model.unet, model.config, model.schedule, asked.positive, guided, shape, known)
    predict = _prepared(asked, job, run)
    canvas = _canvas(asked, sampler)
    start = add_noise(canvas.clean, canvas.noise, sigmas[0], is_max_denoise(sigmas[0], model.schedule.sigma_max))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        check_cancelled(asked.cancelled)
        return canvas.after(predict(canvas.before(x, sigma), sigma))

    def told(step: Step) -> None:
        if run.recorder is not None:
            run.recorder.step(float(step.sigma))
        if asked.on_step is not None:
            asked.on_step(step)

    source = noise_source(sampler, start, sigmas, settings.seed, ancestral=settings.ancestral)
    result = sampler(denoise, start, sigmas, noise=source, on_step=told)
    if float(sigmas[-1]) == 0.0:  # with noise left over, the next pass blends
        result = canvas.after(result)
    return result.float().cpu()


def _prepared(asked: _Asked, job: Job, run: Run) -> Callable[[Tensor, Tensor], Tensor]:
    """All that does not depend on x, made so that it fits. -> x, sigma -> the guided prediction of x0."""
    backend, shortcuts, cfg = asked.backend, run.shortcuts, asked.settings.cfg
    graphs = backend.runtime.graphs and not why_never(run, backend.runtime.device)
    plan = fit_run(job, backend, shortcuts, graphs)
    if asked.on_memory is not None:
        asked.on_memory(plan)
    if backend.runtime.graphs and not why_not(run, backend):
        run.graphs = Graphs(backend, (job.unet, *dict.fromkeys(unit.net for unit in job.units)))
    prepared = alone = prepare_parts(job, backend, plan.chunk)
    if shortcuts.limits_guidance:
        alone = prepare_parts(replace(job, negative=()), backend, plan.chunk)
    if run.recorder is not None:
        run.recorder.memory = plan.data()
        run.recorder.notes += left_aside(job, backend, run)
        for own in dict.fromkeys(part.prepared for part in prepared):
            note_casts(run.recorder, own)

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        inside = job.schedule.in_window(float(sigma), shortcuts.guidance_start, shortcuts.guidance_end)
        return evaluate_parts(prepared if inside else alone, x, sigma, cfg, run)

    return predict


def _canvas(asked: _Asked, sampler: Sampler) -> Canvas:
    """The latent on the device, with the noise and the mask of this run."""
    settings, device = asked.settings, asked.backend.runtime.device
    clean = asked.latent.to(device, torch.float32)
    noise = initial_noise(asked.latent.shape, settings.seed, asked.batch_index)
    noise = noise.to(device) if settings.add_noise else torch.zeros_like(clean)
    mask = None if asked.noise_mask is None else fit_noise_mask(asked.noise_mask.to(device), clean)
    return Canvas(clean, noise, mask_noise(sampler, noise, settings.seed), mask)


@dataclass(frozen=True, eq=False)
class Canvas:
    """Where is painted. clean: the latent that came in, noise: of the start, kept: of what stays, all (B, 4, h, w).

    mask: (1 or B, 1, h, w), 1 where something new is made; None is everywhere.
    """

    clean: Tensor
    noise: Tensor
    kept: Tensor
    mask: Tensor | None

    def before(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What a model gets to see: outside of the mask the latent that came in, as noisy as x."""
        if self.mask is None:
            return x
        return x * self.mask + add_noise(self.clean, self.kept, sigma) * (1.0 - self.mask)

    def after(self, x: Tensor) -> Tensor:
        """What is painted, on the latent that came in."""
        return x if self.mask is None else x * self.mask + self.clean * (1.0 - self.mask)


def cut_sigmas(schedule: NoiseSchedule, settings: SampleSettings) -> Tensor:
    """The sigmas of a run, cut to start_step..end_step; the last is 0 unless noise is to be left over."""
    if settings.sigmas is not None:
        return torch.tensor(settings.sigmas)
    sigmas = make_sigmas(
        schedule, settings.scheduler, settings.steps, denoise=settings.denoise, sampler=settings.sampler
    )
    end = settings.end_step
    if end is not None and end < len(sigmas) - 1:
        sigmas = sigmas[: end + 1].clone()
        if not settings.leftover_noise:
            sigmas[-1] = 0.0
    return sigmas[min(settings.start_step, len(sigmas) - 1) :]


def fit_noise_mask(mask: Tensor, latent: Tensor) -> Tensor:
    """A noise mask (B, H, W) or (B, 1, H, W) -> (1 or B, 1, h, w) of the latent, bilinear as the host does."""
    mask = repeat_to(mask.reshape(-1, 1, *mask.shape[-2:]).float(), latent.shape[0], "noise mask")
    return F.interpolate(mask, size=latent.shape[-2:], mode="bilinear")

