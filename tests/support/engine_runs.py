"""Short ways to run parts of the engine in tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfyui_controlnet_core.controlnet_core.backend import Backend
from comfyui_controlnet_core.controlnet_core.conditioning.job import Job
from comfyui_controlnet_core.controlnet_core.denoise import Denoiser
from comfyui_controlnet_core.controlnet_core.pipeline import build_denoiser, run_context
from comfyui_controlnet_core.controlnet_core.prepare import Prepared, check_job, prepare
from comfyui_controlnet_core.controlnet_core.run_options import EXACT, RunOptions, Shortcuts
from comfyui_controlnet_core.controlnet_core.sample import Denoise, SampleSettings
from torch import Tensor


def prepare_on(job: Job, backend: Backend) -> Prepared:
    """Prepare a job as `pipeline.generate` does."""
    check_job(job)
    return prepare(backend.place(job), backend.runtime)


def evaluate(prepared: Prepared, x: Tensor, sigma: Tensor, cfg: float) -> Tensor:
    """One guided prediction, without accelerations."""
    return Denoiser(prepared, cfg)(x, sigma)


def denoiser(
    job: Job, backend: Backend, cfg: float = 5.0, shortcuts: Shortcuts = EXACT, chunk: int = 0, graphs: bool = False,
    rescale: float = 0.0,
) -> Denoise:  # fmt: skip
    """The denoiser of a job with accelerations, as `pipeline.generate` builds it, without a memory plan."""
    context = run_context(job, backend, RunOptions(shortcuts), checks_each_step=False)
    if graphs:
        # Not a CUDA device, so that evaluations are called on the buffers of graphs instead of being captured.
        context = replace(context, runtime=replace(context.runtime, graphs=True, device=torch.device("meta")))
    return build_denoiser(job, backend, SampleSettings(cfg=cfg, rescale=rescale), chunk or job.shape[0], context)
