"""Samplers that step in sigma itself (Karras et al., 2022)."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from .steps import Denoise, NoiseSource, OnStep, ancestral_split, predictions, slope


def euler(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """First order: follow the slope to the next sigma (Karras et al., 2022, algorithm 1). It is DDIM
    (Song et al., 2021) in these coordinates."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        x = x + slope(x, sigma, predict(x)) * (sigma_next - sigma)
    return x


def euler_ancestral(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """An Euler step below the next sigma, then fresh noise up to it."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        down, up = ancestral_split(sigma, sigma_next)
        if down == 0:
            x = denoised
        else:
            x = x + slope(x, sigma, denoised) * (down - sigma) + noise(sigma, sigma_next) * up
    return x


def heun(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Second order: the mean of the slopes at both ends (Karras et al., 2022, algorithm 1). Two evaluations
    a step, one in the last."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        d = slope(x, sigma, predict(x))
        dt = sigma_next - sigma
        if sigma_next != 0:
            guess = x + d * dt
            d = (d + slope(guess, sigma_next, denoise(guess, sigma_next))) / 2
        x = x + d * dt
    return x


def dpm_2(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Second order: the slope at the geometric mean of both sigmas (after DPM-Solver-2, Lu et al., 2022).
    Two evaluations a step, one in the last."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        x = _midpoint(denoise, x, predict(x), sigma, sigma_next)
    return x


def dpm_2_ancestral(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """A `dpm_2` step below the next sigma, then fresh noise up to it."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        down, up = ancestral_split(sigma, sigma_next)
        x = _midpoint(denoise, x, predict(x), sigma, down)
        if down != 0:
            x = x + noise(sigma, sigma_next) * up
    return x


def _midpoint(
    denoise: Denoise, x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    d = slope(x, sigma, denoised)
    if target != 0:
        middle = sigma.log().lerp(target.log(), 0.5).exp()
        halfway = x + d * (middle - sigma)
        d = slope(halfway, middle, denoise(halfway, middle))
    return x + d * (target - sigma)


def lms(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
    order: int = 4,
) -> torch.Tensor:
    """Linear multistep (Adams-Bashforth on uneven sigmas): integrates the polynomial through the last
    `order` slopes."""
    slopes: deque[torch.Tensor] = deque(maxlen=order)
    nodes: deque[float] = deque(maxlen=order)
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        slopes.appendleft(slope(x, sigma, denoised))
        nodes.appendleft(float(sigma))
        if sigma_next == 0:
            x = denoised
        else:
            weights = lagrange_integrals(nodes, float(sigma), float(sigma_next))
            x = x + sum(w * d for w, d in zip(weights, slopes, strict=True))
    return x


def lagrange_integrals(nodes: deque[float] | list[float], start: float, end: float) -> list[float]:
    """The integral from start to end of each Lagrange basis polynomial over these nodes (distinct).

    Gauss-Legendre with as many points as nodes is exact for them.
    """
    points, weights = np.polynomial.legendre.leggauss(len(nodes))
    half = (end - start) / 2
    at = (start + end) / 2 + half * points
    integrals = []
    for j, node in enumerate(nodes):
        factors = [(at - other) / (node - other) for k, other in enumerate(nodes) if k != j]
        integrals.append(half * float(np.sum(weights * np.prod(factors, axis=0))))
    return integrals
