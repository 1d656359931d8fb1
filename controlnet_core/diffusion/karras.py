"""Samplers that step in sigma itself (Karras et al., 2022)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .steps import Denoise, NoiseSource, OnStep, ancestral_split, predictions, slope


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """Euler's method, first order (Karras et al., 2022, algorithm 1 without its correction).

    In these coordinates it is DDIM (Song et al., 2021).
    """
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        d = slope(x, sigma, predict(x))
        dt = sigma_next - sigma
        x = x + d * dt
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """Ancestral sampling with Euler steps: step below the next sigma, then add fresh noise up to it."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        down, up = ancestral_split(sigma, sigma_next)
        if down == 0:
            x = denoised  # an Euler step to 0 ends there, up to rounding
        else:
            x = x + slope(x, sigma, denoised) * (down - sigma) + noise(sigma, sigma_next) * up
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """Heun's method, second order: the mean of the slopes at both ends (Karras et al., 2022, algorithm 1).

    Two evaluations a step, one in the last.
    """
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        d = slope(x, sigma, predict(x))
        dt = sigma_next - sigma
        if sigma_next != 0:  # at 0 there is no slope
            x_next = x + d * dt
            d = (d + slope(x_next, sigma_next, denoise(x_next, sigma_next))) / 2
        x = x + d * dt
    return x


def dpm_2(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """DPM-Solver-2, second order: the slope at the geometric mean of both sigmas (after Lu et al., 2022).

    Two evaluations a step, one in the last.
    """
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        x = midpoint_step(denoise, x, predict(x), sigma, sigma_next)
    return x


def dpm_2_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """Ancestral sampling with `dpm_2` steps: step below the next sigma, then add fresh noise up to it."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        down, up = ancestral_split(sigma, sigma_next)
        x = midpoint_step(denoise, x, predict(x), sigma, down)
        if down != 0:
            x = x + noise(sigma, sigma_next) * up
    return x


def midpoint_step(denoise: Denoise, x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The midpoint method in log sigma; an Euler step where sigma_next is 0."""
    d = slope(x, sigma, denoised)
    if sigma_next != 0:
        sigma_mid = sigma.log().lerp(sigma_next.log(), 0.5).exp()
        x_mid = x + d * (sigma_mid - sigma)
        d = slope(x_mid, sigma_mid, denoise(x_mid, sigma_mid))
    return x + d * (sigma_next - sigma)


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """Linear multistep, fourth order: Adams-Bashforth on uneven sigmas.

    It integrates the polynomial through the last four slopes. One evaluation a step.
    """
    slopes: deque[Tensor] = deque(maxlen=4)
    nodes: deque[float] = deque(maxlen=4)
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        slopes.appendleft(slope(x, sigma, denoised))
        nodes.appendleft(float(sigma))
        if sigma_next == 0:
            x = denoised  # the last step, as in ComfyUI
        else:
            weights = lagrange_integrals(nodes, float(sigma), float(sigma_next))
            x = x + sum(w * d for w, d in zip(weights, slopes, strict=True))
    return x


def lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Integrate each Lagrange basis polynomial over these (distinct) nodes from start to end."""
    # Gauss-Legendre quadrature with as many points as nodes is exact for polynomials of this degree.
    points, weights = np.polynomial.legendre.leggauss(len(nodes))
    half = (end - start) / 2
    at = (start + end) / 2 + half * points
    integrals = []
    for j, node in enumerate(nodes):
        factors = [(at - other) / (node - other) for k, other in enumerate(nodes) if k != j]
        integrals.append(half * float(np.sum(weights * np.prod(factors, axis=0))))
    return integrals
