"""What all samplers share: the record of a step, and how they ask for predictions and noise.

Samplers solve the probability flow ODE dx/dsigma = (x - x0(x, sigma)) / sigma, or the reverse SDE whose
marginals are the same (Karras et al., 2022, eq. 1 and 6). Sigmas are walked on the CPU, whatever device x
is on: 0-d CPU tensors mix with any x, and asking whether the last sigma is 0 then waits for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x, sigma: 0-d float32 on the CPU) -> the prediction of x0, of x's shape. It may raise to cancel."""

NoiseSource = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(sigma, sigma_next) -> unit-variance noise of x's shape, dtype and device."""


@dataclass(frozen=True, eq=False)
class Step:
    """One row of the sigma table: where the sampler was and what the network saw in it.

    index: 0..total-1; sigma: 0-d; x: the noisy latent at sigma; denoised: the prediction of x0 from it.
    """

    index: int
    total: int
    sigma: torch.Tensor
    x: torch.Tensor
    denoised: torch.Tensor


OnStep = Callable[[Step], None]


def predictions(
    denoise: Denoise, sigmas: torch.Tensor, on_step: OnStep | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]:
    """Walks the table: yields (sigma, sigma_next, predict), `predict(x)` being the step's own evaluation.

    `predict` reports the step to `on_step`; evaluations between two sigmas go to `denoise` directly.
    """
    table = sigmas.detach().float().cpu()
    total = len(table) - 1
    for index in range(total):
        sigma = table[index]

        def predict(x: torch.Tensor, index: int = index, sigma: torch.Tensor = sigma) -> torch.Tensor:
            denoised = denoise(x, sigma)
            if on_step is not None:
                on_step(Step(index, total, sigma, x, denoised))
            return denoised

        yield sigma, table[index + 1], predict


def slope(x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """dx/dsigma of the probability flow ODE."""
    return (x - denoised) / sigma


def ancestral_split(sigma: torch.Tensor, sigma_next: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) with down^2 + up^2 = sigma_next^2: step to `down` by the ODE, then add noise of `up`.

    The split is that of DDPM's posterior: up^2 = next^2 (sigma^2 - next^2) / sigma^2.
    """
    up = torch.minimum(sigma_next, (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def log_snr(sigma: torch.Tensor) -> torch.Tensor:
    """lambda = -log sigma, the half log signal-to-noise ratio and the solvers' time axis."""
    return sigma.log().neg()


def exponential_step(x: torch.Tensor, data: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The ODE over h in lambda, exact for a constant prediction: e^-h x + (1 - e^-h) data."""
    return (-h).exp() * x - (-h).expm1() * data
