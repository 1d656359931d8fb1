"""What the network predicts, and how x0 follows from it: eps, v and edm.

The network reads x at unit variance. It predicts the noise ("eps", Ho et al., 2020), the velocity ("v", Salimans
and Ho, 2022, appendix D), or the rest of x0 that preconditioning leaves ("edm", Karras et al., 2022, table 1).
With x = x0 + sigma * n, d = sigma_data (1 in Stable Diffusion) and s = sqrt(sigma^2 + d^2):

    input    x / s
    eps      n                                        x0 = x - sigma * eps
    v        (d^2 n - sigma * x0) / (d s)             x0 = x * d^2 / s^2 - v * sigma * d / s
    edm      (sigma * x0 - d^2 n) / (d s)             x0 = x * d^2 / s^2 + F * sigma * d / s

sigma is always a 0-d tensor, or one value per picture of shape (B,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import Parametrization
from ..errors import ValueRangeError

SIGNS: Mapping[str, float] = {"v": -1.0, "edm": 1.0}
"""The sign of the output in the formula for x0. Otherwise v and edm are the same."""


def scale_input(x: Tensor, sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    """Scale a noisy latent (B,C,H,W) to the unit variance that the network reads."""
    return x / (_per_picture(sigma, x) ** 2 + sigma_data**2) ** 0.5


def to_x0(
    parametrization: Parametrization, output: Tensor, x: Tensor, sigma: Tensor, sigma_data: float = 1.0
) -> Tensor:
    """Turn the network's output into its prediction of x0. x: the noisy latent before `scale_input`.

    Raises ValueRangeError for an unknown parametrization.
    """
    sigma = _per_picture(sigma, x)
    if parametrization == "eps":
        return x - output * sigma
    variance = sigma**2 + sigma_data**2
    return x * sigma_data**2 / variance + _sign(parametrization) * output * sigma * sigma_data / variance**0.5


def training_target(
    parametrization: Parametrization, latent: Tensor, noise: Tensor, sigma: Tensor, sigma_data: float = 1.0
) -> Tensor:
    """What the network should predict from `scale_input(add_noise(latent, noise, sigma), sigma)`.

    Raises ValueRangeError for an unknown parametrization.
    """
    if parametrization == "eps":
        return noise
    sigma = _per_picture(sigma, latent)
    scale = _sign(parametrization) / (sigma_data * (sigma**2 + sigma_data**2) ** 0.5)
    return scale * (sigma * latent - sigma_data**2 * noise)


def add_noise(latent: Tensor, noise: Tensor, sigma: Tensor, max_denoise: bool = False) -> Tensor:
    """latent + sigma * noise. With `max_denoise` the noise is scaled by sqrt(1 + sigma^2) instead."""
    sigma = _per_picture(sigma, noise)
    # The network was trained on the sum of both, of variance 1 + sigma^2. A run that starts from noise alone must give
    # the noise that variance.
    return noise * (torch.sqrt(1.0 + sigma**2.0) if max_denoise else sigma) + latent


def is_max_denoise(sigma: float | Tensor, sigma_max: float) -> bool:
    """Whether a table that begins at `sigma` starts from pure noise. sigma_max: of the model's schedule."""
    first = float(sigma)
    return first > sigma_max or math.isclose(first, sigma_max, rel_tol=1e-5)


def _per_picture(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(()) if sigma.numel() == 1 else sigma.reshape(-1, *(1,) * (like.ndim - 1))


def _sign(parametrization: str) -> float:
    if parametrization not in SIGNS:
        raise ValueRangeError(f"parametrization {parametrization!r} is unknown: choose eps, v or edm")
    return SIGNS[parametrization]
