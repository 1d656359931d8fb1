"""What the samplers share: their types, the walk down the sigmas, and a few formulas.

Samplers solve the probability flow ODE dx/dsigma = (x - x0(x, sigma)) / sigma, or the reverse SDE with the same
marginals (Karras et al., 2022, eq. 1 and 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x, sigma: 0-d float32 on the CPU) -> the prediction of x0, of x's shape. It may raise to cancel the run."""

NoiseSource = Callable[[Tensor, Tensor], Tensor]
"""(sigma, sigma_next) -> noise of variance 1, with x's shape, dtype and device."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a sampler, as a callback sees it.

    index: 0 to total - 1. sigma: 0-d. x: the noisy latent at sigma. denoised: the prediction of x0 from it.
    """

    index: int
    total: int
    sigma: Tensor
    x: Tensor
    denoised: Tensor


OnStep = Callable[[Step], None]


def predictions(
    denoise: Denoise, sigmas: Tensor, on_step: OnStep
) -> Iterator[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Yield (sigma, sigma_next, predict) for each step down the table.

    `predict(x)` is the evaluation at sigma. It reports the step to `on_step`. Evaluations between two sigmas call
    `denoise` directly.
    """
    # Sigmas stay on the CPU on every device: 0-d CPU tensors mix with any x, and `if sigma_next == 0` then does not
    # wait for a GPU.
    table = sigmas.detach().float().cpu()
    total = len(table) - 1
    for index in range(total):
        sigma = table[index]

        def predict(x: Tensor, index: int = index, sigma: Tensor = sigma) -> Tensor:
            denoised = denoise(x, sigma)
            on_step(Step(index, total, sigma, x, denoised))
            return denoised

        yield sigma, table[index + 1], predict


def slope(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma of the probability flow ODE."""
    return (x - denoised) / sigma


def ancestral_split(sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """Split the next sigma into (down, up) with down^2 + up^2 = sigma_next^2.

    The sampler steps to `down` by the ODE and then adds noise of standard deviation `up`. As in DDPM's posterior
    (Ho et al., 2020, eq. 7), up^2 = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2.
    """
    up = torch.minimum(sigma_next, (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def log_snr(sigma: Tensor) -> Tensor:
    """lambda = -log sigma: half the log signal-to-noise ratio, the time axis of the exponential integrators."""
    return sigma.log().neg()


def exponential_step(x: Tensor, denoised: Tensor, h: Tensor) -> Tensor:
    """Solve the ODE over a step h in lambda, exactly for a constant prediction: e^-h x + (1 - e^-h) denoised."""
    return (-h).exp() * x - (-h).expm1() * denoised
