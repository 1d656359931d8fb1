"""Puts a run together: memory plan, weights on the device, chunks, accelerations. The algorithm is in `sample.py` and
`denoise.py`.

What is combined, in this order; each row surrounds or precedes the ones below it:

=====================  ================================================  =============================================
part                   chosen by                                         excluded by
=====================  ================================================  =============================================
offloaded weights      memory plan (`--memory`)                          packed weights
Winograd filters       memory plan (`--no-winograd`)                     weights that are not packed
chunks of the batch    memory plan (`--chunk`)
guidance interval      `Shortcuts.guidance_start`, `guidance_end`
CUDA graphs            `Runtime.graphs`                                  see `speed.graph_blocker`
shortcuts              `Shortcuts`                                       encoder_every and deep_every exclude each other
parallel nets          `Runtime.parallel_nets`                           see `speed.parallel_blocker`
transformed modules    `speed.TRANSFORMS`                                the first that applies wins
=====================  ================================================  =============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import speed
from .backend import Backend
from .conditioning.condition import Condition
from .conditioning.job import Job
from .config import ModelConfig
from .denoise import Denoiser
from .diffusion.schedule import NoiseSchedule
from .errors import OutOfMemory, ShapeError
from .finite import FiniteGuard
from .memory_estimate import estimate_run
from .models.float8 import has_float8
from .models.unet import UNet
from .prepare import Prepared, check_job, prepare
from .recording import record_casts, record_evaluations, record_nets, record_step
from .run_options import DEFAULTS, RunOptions
from .runtime.device import results_are_free
from .runtime.memory import MemoryPlan, Streaming, free_bytes, plan_memory
from .runtime.weight_bytes import largest_weight
from .sample import Denoise, SampleSettings, cut_sigmas, sample_latent
from .speed import ACCELERATIONS, EvaluationClock, RunContext


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A UNet with what its training fixed: parametrization (in `config`) and noise levels."""

    unet: UNet
    config: ModelConfig
    schedule: NoiseSchedule


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
    options: RunOptions = DEFAULTS,
) -> Tensor:
    """Sample a latent.

    latent: (B, 4, h, w), scaled; zeros to start from nothing. noise_mask: (B or 1, 1 or none, H, W) in [0, 1], where to
    paint; the rest keeps the latent.
    Returns (B, 4, h, w) float32 on the CPU.
    Raises ShapeError, UnfitError, NonFiniteError, Interrupted, OutOfMemory.
    """
    channels = model.config.vae.latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ShapeError(f"the latent has shape {tuple(latent.shape)}, expected (B, {channels}, h, w)")
    sigmas = cut_sigmas(model.schedule, settings)
    if len(sigmas) < 2:
        return latent.float().cpu()
    halves = (positive, negative if settings.cfg != 1.0 else ())
    job = Job(model.unet, model.config, model.schedule, *halves, tuple(latent.shape), sigmas.tolist())

    def run(guard: FiniteGuard, options: RunOptions) -> Tensor:
        denoise = make_denoiser(job, backend, settings, options, guard)
        start = latent.to(backend.runtime.device, torch.float32)
        return sample_latent(
            denoise, start, sigmas, settings, model.schedule, noise_mask=noise_mask, batch_index=batch_index,
            on_step=options.report_step, cancelled=options.cancelled,
        )  # fmt: skip

    guard = FiniteGuard(every_step=results_are_free(backend.runtime.device))
    try:
        with torch.inference_mode():
            result = run(guard, options)
            # On a GPU the check is read once, at the end. A second run looks at each step and finds the net that made
            # the bad values.
            result = run(FiniteGuard(every_step=True), options.without_report()) if guard.failed else result
        options.note(*backend.keep_packed())
        return result
    except torch.cuda.OutOfMemoryError as error:
        raise _out_of_memory(latent) from error
    finally:
        backend.end_run()


def _out_of_memory(latent: Tensor) -> OutOfMemory:
    return OutOfMemory(
        f"the device has no memory left for a batch of {latent.shape[0]} latents of {latent.shape[3]}x"
        f"{latent.shape[2]}: use a smaller image, fewer images at a time (--chunk), fewer ControlNets, "
        "dtype fp16, or streamed weights (--memory streamed)"
    )


def make_denoiser(
    job: Job,
    backend: Backend,
    settings: SampleSettings,
    options: RunOptions = DEFAULTS,
    guard: FiniteGuard | None = None,
) -> Denoise:
    """Prepare a job so that it fits into memory, and build its denoiser: x, sigma -> guided prediction of x0."""
    guard = guard or FiniteGuard(every_step=True)
    context = run_context(job, backend, options, guard.every_step)
    plan = apply_plan(job, backend, options, _replays(context))
    options.report_memory(plan)
    context = replace(context, offloaded=backend.prefetcher is not None)  # as planned
    denoise = build_denoiser(job, backend, settings, plan.chunk, context, guard)
    options.note(*blocked_choices(job, backend, context))
    return record_evaluations(denoise, options)


def run_context(
    job: Job, backend: Backend, options: RunOptions = DEFAULTS, checks_each_step: bool = True
) -> RunContext:
    """Collect the facts about a run that accelerations read."""
    owners = job.unet, *dict.fromkeys(unit.net for unit in job.units)
    return RunContext(
        backend.runtime, _clock(job, options), backend.streams, backend.programs, owners,
        backend.prefetcher is not None, checks_each_step, options,
    )  # fmt: skip


def _clock(job: Job, options: RunOptions) -> EvaluationClock:
    return EvaluationClock(options.shortcuts, job.schedule.percent_to_sigma)


def _replays(context: RunContext) -> bool:
    """Whether evaluations are replayed from buffers of their own, as far as is known before the memory plan."""
    # The last run may have streamed its weights; only the policy says that this one will.
    context = replace(context, offloaded=context.runtime.memory == "streamed")
    return any(row.replays and row.is_wanted(context) and not row.blocker(context) for row in ACCELERATIONS)


def build_denoiser(
    job: Job, backend: Backend, settings: SampleSettings, chunk: int, context: RunContext,
    guard: FiniteGuard | None = None,
) -> Denoise:  # fmt: skip
    """The denoiser of a job, `chunk` images of its batch at a time."""
    guided = unguided = _prepare_parts(job, backend, chunk)
    if context.clock.limits_guidance:
        unguided = _prepare_parts(replace(job, negative=()), backend, chunk)
    for prepared in dict.fromkeys(prepared for _, prepared in guided):
        record_casts(prepared, context.options)

    def with_accelerations(prepared: Prepared, own: RunContext) -> Denoise:
        # Runs of nets are recorded below the accelerations, which skip some; what acts is recorded above them.
        denoiser = Denoiser(prepared, settings.cfg, settings.rescale)
        record_nets(denoiser, context.options)
        for acceleration in ACCELERATIONS:
            acceleration.wrap(denoiser, own)
        record_step(denoiser, context.options)
        return denoiser if guard is None else guard.around(denoiser)

    def part(guided: Prepared, unguided: Prepared) -> Denoise:
        # Each part of a batch counts its own evaluations and keeps its own state between them.
        own = replace(context, clock=context.clock.restarted())
        inside = with_accelerations(guided, own)
        outside = with_accelerations(unguided, own) if unguided is not guided else inside

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            level = float(sigma)
            own.clock.begin(level)
            return (inside if own.clock.guides(level) else outside)(x, sigma)

        return denoise

    parts = [(images, part(own, other)) for (images, own), (_, other) in zip(guided, unguided, strict=True)]
    return parts[0][1] if len(parts) == 1 else speed.ChunkedDenoiser(parts)


def _prepare_parts(job: Job, backend: Backend, chunk: int) -> tuple[tuple[slice, Prepared], ...]:
    """The parts of a batch, prepared; taken from the backend if one of its last jobs was the same."""
    batch = job.shape[0]

    def make() -> tuple[tuple[slice, Prepared], ...]:
        placed = backend.place(job)
        if chunk >= batch:
            return ((slice(0, batch), prepare(placed, backend.runtime)),)
        return speed.prepare_chunks(placed, chunk, lambda part: prepare(part, backend.runtime))

    key, owners = job.key()
    return backend.runs.once((chunk if chunk < batch else 0, *key), owners, make)


def plan_run(job: Job, backend: Backend, options: RunOptions = DEFAULTS, graphs: bool | None = None) -> MemoryPlan:
    """How much memory a run takes and how it is made to fit. graphs: whether evaluations are replayed, None to decide.

    Winograd filters are used unless the runtime or the memory is against it. Raises what `check_job` raises.
    """
    check_job(job)
    if graphs is None:
        graphs = _replays(run_context(job, backend, options, results_are_free(backend.runtime.device)))
    if not (backend.packs and backend.runtime.winograd):
        return _plan(job, backend, options, graphs, winograd=False)
    plan = _plan(job, backend, options, graphs, winograd=True)
    if plan.fits:
        return replace(plan, winograd=True)
    return replace(_plan(job, backend, options, graphs, winograd=False), winograd=False)


def _plan(job: Job, backend: Backend, options: RunOptions, graphs: bool, winograd: bool) -> MemoryPlan:
    batch, runtime = job.shape[0], backend.runtime
    clock = _clock(job, options)
    models = backend.models(job)
    loaded = sum(backend.loaded_bytes(model) for model in models)
    ahead = speed.AHEAD if backend.may_offload or backend.prefetcher is not None else 0
    streaming = Streaming(
        None if backend.may_offload else backend.resident, backend.resident, backend.may_offload,
        ahead + largest_weight(models, runtime.dtype),
    )  # fmt: skip
    return plan_memory(
        lambda images: estimate_run(job, backend, clock, graphs, winograd, images, build_denoiser), batch, loaded,
        free_bytes(runtime.device), runtime.chunk, streaming,
    )  # fmt: skip


def apply_plan(job: Job, backend: Backend, options: RunOptions = DEFAULTS, graphs: bool = False) -> MemoryPlan:
    """Plan a run and set the backend accordingly: which weights stay on the device, and which filters are used."""
    plan = plan_run(job, backend, options, graphs)
    # Before weights are streamed, models that this run does not use make room.
    if plan.resident is not None and backend.may_offload and backend.release(backend.models(job)):
        plan = plan_run(job, backend, options, graphs)  # models of other runs have left the device
    backend.offload_beyond(plan.resident)
    backend.use_winograd(bool(plan.winograd))
    return plan


def blocked_choices(job: Job, backend: Backend, context: RunContext) -> list[str]:
    """A line for each choice of the runtime that has no effect in this run, with the reason."""
    runtime = backend.runtime
    reasons = ((row.note, row.why_without_effect(context)) for row in ACCELERATIONS)
    notes = [f"{note}: {reason}" for note, reason in reasons if reason]
    plain_blocks = ""
    if backend.prefetcher is not None:
        plain_blocks = "weights are streamed from the host"
    elif backend.packs:
        plain_blocks = "weights are packed for the processor"
    elif any(has_float8(model) for model in backend.models(job)):
        plain_blocks = "weights are in float8"
    if plain_blocks and runtime.fused_qkv:
        notes.append(f"no fused blocks: {plain_blocks}")
    if plain_blocks and runtime.compile:
        notes.append(f"not compiled: {plain_blocks}")
    return notes


__all__ = ["DiffusionModel", "SampleSettings", "generate"]
