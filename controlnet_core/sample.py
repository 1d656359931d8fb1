"""From noise to a latent: the sampling loop on one page.

    sigmas = cut_sigmas(schedule, settings)                  the noise levels of the steps
    x = latent + noise * sigmas[0]
    x = sampler(denoise, x, sigmas)                          denoise: x, sigma -> prediction of x0

`denoise` is a `denoise.Denoiser`. `pipeline.generate` prepares it and calls `sample_latent`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .control.hint import repeat_to
from .diffusion.denoiser import add_noise, is_max_denoise
from .diffusion.noise import AncestralSeed, NoisePart, initial_noise, mask_noise, noise_source
from .diffusion.samplers import Sampler, Step, get_sampler
from .diffusion.schedule import NoiseSchedule, make_sigmas
from .errors import ValueRangeError
from .runtime.device import Cancelled, check_cancelled

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Noisy latent (B, 4, h, w) and sigma (0-d) -> prediction of x0 (B, 4, h, w)."""


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    seed: of the noise. steps: number of steps. cfg: guidance scale; 1 is no guidance. sampler, scheduler: by name.
    denoise: fraction of the noise schedule to run. 1 starts from pure noise, 0.5 keeps the layout of the input.
    add_noise: off if the latent is noisy already. start_step, end_step: run only these steps of the schedule.
    leftover_noise: whether a cut end leaves its noise in the latent. ancestral: how the noise of ancestral samplers is
    seeded. sigmas: noise levels to use instead of scheduler, steps and denoise. rescale: how much of the contrast that
    guidance adds is taken back, 0 to 1. noise_part: takes the initial noise from that of a larger latent; `seed` is
    then that of the noise between the steps alone.
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
    noise_part: NoisePart | None = None

    def __post_init__(self) -> None:
        if self.start_step < 0 or (self.end_step is not None and self.end_step < 0):
            raise ValueRangeError(
                f"start_step is {self.start_step} and end_step {self.end_step}: steps are counted from 0"
            )
        if self.sigmas is not None and (self.start_step, self.end_step, self.leftover_noise) != (0, None, True):
            raise ValueRangeError(
                "start_step, end_step and leftover_noise cannot be combined with sigmas: shorten the "
                "list of sigmas instead"
            )

    @property
    def title(self) -> str:
        """What reports call a run with these settings."""
        return f"{self.sampler} / {self.scheduler}, seed {self.seed}"


def sample_latent(
    denoise: Denoise,
    latent: Tensor,
    sigmas: Tensor,
    settings: SampleSettings,
    schedule: NoiseSchedule,
    *,
    noise_mask: Tensor | None = None,
    batch_index: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
    cancelled: Cancelled | None = None,
) -> Tensor:
    """Sample a latent.

    latent: (B, 4, h, w) float32, scaled, on the device; zeros to start from nothing. sigmas: see `cut_sigmas`.
    noise_mask: (B or 1, H, W) or (B or 1, 1, H, W) in [0, 1], 1 where to paint. batch_index: number of each image in
    the batch that its noise is drawn for. Returns (B, 4, h, w) float32 on the CPU. Raises Interrupted.
    """
    sampler = get_sampler(settings.sampler)
    kept = KeptLatent.start(latent, sampler, settings, noise_mask, batch_index)
    x = add_noise(latent, kept.noise, sigmas[0], is_max_denoise(sigmas[0], schedule.sigma_max))

    def masked_denoise(x: Tensor, sigma: Tensor) -> Tensor:
        check_cancelled(cancelled)
        return kept.paste_clean(denoise(kept.paste_noisy(x, sigma), sigma))

    source = noise_source(sampler, x, sigmas, settings.seed, ancestral=settings.ancestral)
    x = sampler(masked_denoise, x, sigmas, noise=source, on_step=on_step)
    # With noise left over, the next pass still has to denoise what is kept.
    return (kept.paste_clean(x) if float(sigmas[-1]) == 0.0 else x).float().cpu()


@dataclass(frozen=True, eq=False)
class KeptLatent:
    """The part of a latent that is not painted. Without a mask everything is painted.

    clean: the latent that was given. noise: of the start. mask_noise: added to what is kept. All (B, 4, h, w).
    mask: (1 or B, 1, h, w), 1 where to paint, or None.
    """

    clean: Tensor
    noise: Tensor
    mask_noise: Tensor
    mask: Tensor | None

    @classmethod
    def start(
        cls,
        latent: Tensor,
        sampler: Sampler,
        settings: SampleSettings,
        noise_mask: Tensor | None,
        batch_index: Sequence[int] | None,
    ) -> KeptLatent:
        """Draw the noise of a run and fit its mask."""
        # On the CPU, so that a seed gives the same image on every device.
        noise = initial_noise(latent.shape, settings.seed, batch_index, settings.noise_part)
        noise = noise.to(latent.device) if settings.add_noise else torch.zeros_like(latent)
        mask = None if noise_mask is None else fit_noise_mask(noise_mask.to(latent.device), latent)
        return cls(latent, noise, mask_noise(sampler, noise, settings.seed), mask)

    def paste_noisy(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x with the kept part replaced by the given latent, as noisy as x: what the model sees."""
        if self.mask is None:
            return x
        return x * self.mask + add_noise(self.clean, self.mask_noise, sigma) * (1.0 - self.mask)

    def paste_clean(self, x: Tensor) -> Tensor:
        """x with the kept part replaced by the given latent."""
        return x if self.mask is None else x * self.mask + self.clean * (1.0 - self.mask)


def cut_sigmas(schedule: NoiseSchedule, settings: SampleSettings) -> Tensor:
    """The noise levels of a run, (steps + 1,), cut to start_step..end_step. The last is 0 unless noise is left over."""
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
    """A noise mask (B, H, W) or (B, 1, H, W) -> (1 or B, 1, h, w), bilinear as ComfyUI does it."""
    mask = repeat_to(mask.reshape(-1, 1, *mask.shape[-2:]).float(), latent.shape[0], "noise mask")
    return F.interpolate(mask, size=latent.shape[-2:], mode="bilinear")
