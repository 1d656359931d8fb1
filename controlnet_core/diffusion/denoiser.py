"""What the network predicts, and how a picture follows from it: eps, v and edm side by side.

The network sees x scaled to unit variance. Its output is the noise ("eps", Ho et al., 2020), the velocity
("v", Salimans and Ho, 2022, appendix D) or what preconditioning leaves of the picture ("edm", Karras et al.,
2022, table 1). With x = x0 + sigma * n, d = sigma_data (1 in Stable Diffusion) and s = sqrt(sigma^2 + d^2):

    input    x / s
    eps      n                                        x0 = x - sigma * eps
    v        (d^2 n - sigma * x0) / (d s)             x0 = x * d^2 / s^2 - v * sigma * d / s
    edm      (sigma * x0 - d^2 n) / (d s)             x0 = x * d^2 / s^2 + F * sigma * d / s

Everywhere sigma is a 0-d tensor, or one value per picture of shape (B,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch

from ..config import Parametrization
from ..errors import ValueRangeError

SIGNS: Mapping[str, float] = MappingProxyType({"v": -1.0, "edm": 1.0})
"""The sign with which the output enters the picture; otherwise v and edm are the same."""


def scale_input(x: torch.Tensor, sigma: torch.Tensor, sigma_data: float = 1.0) -> torch.Tensor:
    """(B,C,H,W) noisy latent -> the same at unit variance, as the network takes it."""
    return x / (_per_picture(sigma, x) ** 2 + sigma_data**2) ** 0.5


def denoised(
    parametrization: Parametrization,
    output: torch.Tensor,
    x: torch.Tensor,
    sigma: torch.Tensor,
    sigma_data: float = 1.0,
) -> torch.Tensor:
    """The network's output -> its prediction of x0. `x` is the noisy latent before `scale_input`."""
    sigma = _per_picture(sigma, x)
    if parametrization == "eps":
        return x - output * sigma
    if parametrization not in SIGNS:
        raise _unknown(parametrization)
    variance = sigma**2 + sigma_data**2
    return x * sigma_data**2 / variance + SIGNS[parametrization] * output * sigma * sigma_data / variance**0.5


def training_target(
    parametrization: Parametrization,
    latent: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    sigma_data: float = 1.0,
) -> torch.Tensor:
    """What the network should put out for `scale_input(add_noise(latent, noise, sigma), sigma)`."""
    if parametrization == "eps":
        return noise
    if parametrization not in SIGNS:
        raise _unknown(parametrization)
    sigma = _per_picture(sigma, latent)
    scale = SIGNS[parametrization] / (sigma_data * (sigma**2 + sigma_data**2) ** 0.5)
    return scale * (sigma * latent - sigma_data**2 * noise)


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
    return ValueRangeError(f"parametrization {parametrization!r} is unknown: choose eps, v or edm")
