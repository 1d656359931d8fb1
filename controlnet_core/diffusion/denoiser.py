"""What the network predicts, and how a picture follows from it: eps and v side by side.

The network sees x scaled to unit variance. Its output is the noise ("eps", Ho et al., 2020) or the
velocity ("v", Salimans and Ho, 2022, appendix D). With x = x0 + sigma * n:

    input    x / sqrt(sigma^2 + 1)
    eps      n                                        x0 = x - sigma * eps
    v        (n - sigma * x0) / sqrt(sigma^2 + 1)     x0 = x / (sigma^2 + 1) - v * sigma / sqrt(sigma^2 + 1)

Everywhere sigma is a 0-d tensor, or one value per picture of shape (B,).
"""

from __future__ import annotations

import math

import torch

from ..config import Parametrization
from ..errors import ValueRangeError


def scale_input(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(B,C,H,W) noisy latent -> the same at unit variance, as the network takes it."""
    return x / (_per_picture(sigma, x) ** 2 + 1.0) ** 0.5


def denoised(
    parametrization: Parametrization, output: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """The network's output -> its prediction of x0. `x` is the noisy latent before `scale_input`."""
    sigma = _per_picture(sigma, x)
    if parametrization == "eps":
        return x - output * sigma
    if parametrization == "v":
        variance = sigma**2 + 1.0
        return x / variance - output * sigma / variance**0.5
    raise _unknown(parametrization)


def training_target(
    parametrization: Parametrization, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """What the network should put out for `scale_input(add_noise(latent, noise, sigma), sigma)`."""
    if parametrization == "eps":
        return noise
    if parametrization == "v":
        sigma = _per_picture(sigma, latent)
        return (noise - sigma * latent) / (sigma**2 + 1.0) ** 0.5
    raise _unknown(parametrization)


def add_noise(
    latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, max_denoise: bool = False
) -> torch.Tensor:
    """latent + sigma * noise; at `max_denoise` the noise is scaled by sqrt(1 + sigma^2) instead.

    The second form starts a full denoising: at the highest sigma the training still saw a trace of the
    picture, and pure noise has to have that variance too. See `is_max_denoise`.
    """
    sigma = _per_picture(sigma, noise)
    return noise * (torch.sqrt(1.0 + sigma**2.0) if max_denoise else sigma) + latent


def is_max_denoise(sigma: float | torch.Tensor, sigma_max: float) -> bool:
    """Whether a table that begins at `sigma` starts from pure noise (`sigma_max`: the schedule's)."""
    first = float(sigma)
    return first > sigma_max or math.isclose(first, sigma_max, rel_tol=1e-5)


def _per_picture(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return sigma.reshape(()) if sigma.numel() == 1 else sigma.reshape(-1, *(1,) * (like.ndim - 1))


def _unknown(parametrization: str) -> ValueRangeError:
    return ValueRangeError(f"parametrization {parametrization!r} is unknown: choose eps or v")
