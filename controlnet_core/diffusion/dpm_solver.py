"""DPM-Solver++ (Lu et al., 2022b): exponential integrators of the data prediction in lambda = -log sigma.

Over a step of length h in lambda the linear part is solved exactly: with a constant prediction D,
x -> e^-h x + (1 - e^-h) D. Higher orders extrapolate or interpolate D. The SDE variants take the same
step with 2h in the place of h (eta = 1) and add the noise that keeps the marginals.
"""

from __future__ import annotations

from collections import deque

import torch

from .steps import Denoise, NoiseSource, OnStep, ancestral_split, exponential_step, log_snr, predictions


def dpmpp_2m(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Second order, multistep: the prediction is extrapolated to the middle of the step (Lu et al., 2022b,
    algorithm 2). One evaluation a step."""
    previous: tuple[torch.Tensor, torch.Tensor] | None = None  # denoised, h
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        h = log_snr(sigma_next) - log_snr(sigma)
        data = denoised
        if previous is not None and sigma_next != 0:
            r = previous[1] / h
            data = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * previous[0]
        x = exponential_step(x, data, h)
        previous = denoised, h
    return x


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Second order, single step (Lu et al., 2022b, algorithm 1, r = 1/2) below the next sigma, then fresh
    noise up to it. Two evaluations a step, one in the last."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        data = predict(x)
        down, up = ancestral_split(sigma, sigma_next)
        h = log_snr(down) - log_snr(sigma)
        if down != 0:
            data = denoise(exponential_step(x, data, h / 2), (log_snr(sigma) + h / 2).neg().exp())
        x = exponential_step(x, data, h)
        if sigma_next != 0:
            x = x + noise(sigma, sigma_next) * up
    return x


def dpmpp_sde(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Second order, single step, stochastic: the prediction at the noisy middle of the step stands for the
    whole of it. Two evaluations a step, one in the last."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        data = predict(x)
        if sigma_next == 0:
            x = data
            continue
        middle = ((log_snr(sigma) + log_snr(sigma_next)) / 2).neg().exp()
        halfway = _ancestral(x, data, sigma, middle, noise)
        x = _ancestral(x, denoise(halfway, middle), sigma, sigma_next, noise)
    return x


def dpmpp_2m_sde(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Second order, multistep, stochastic, with the midpoint form of the correction."""
    previous: tuple[torch.Tensor, torch.Tensor] | None = None  # denoised, h
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        if sigma_next == 0:
            x = denoised
            continue
        h = log_snr(sigma_next) - log_snr(sigma)
        x = _stochastic(x, denoised, sigma, sigma_next, h)
        if previous is not None:
            x = x + 0.5 * (-2 * h).expm1().neg() * (h / previous[1]) * (denoised - previous[0])
        x = x + _marginal_noise(noise, sigma, sigma_next, h)
        previous = denoised, h
    return x


def dpmpp_3m_sde(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Third order, multistep, stochastic: divided differences of the last three predictions, weighted with
    the phi functions of exponential integrators; second order in the second step, first in the first.

    In the form in use everywhere the second difference (h^2 D'' / 2) has the weight phi_2 / 2h - 1/2, half of
    what third order needs. The error therefore falls with h^2, but from a third of `dpmpp_2m_sde`'s or less.
    """
    past: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=2)  # (denoised, h), newest first
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        if sigma_next == 0:
            x = denoised
            continue
        h = log_snr(sigma_next) - log_snr(sigma)
        phi_2 = (-2 * h).expm1() / (2 * h) + 1
        x = _stochastic(x, denoised, sigma, sigma_next, h)
        if len(past) == 2:
            (d_1, h_1), (d_2, h_2) = past
            r_0, r_1 = h_1 / h, h_2 / h
            newer, older = (denoised - d_1) / r_0, (d_1 - d_2) / r_1
            second = (newer - older) / (r_0 + r_1)
            x = x + phi_2 * (newer + r_0 * second) - (phi_2 / (2 * h) - 0.5) * second
        elif past:
            d_1, h_1 = past[0]
            x = x + phi_2 * (denoised - d_1) * (h / h_1)
        x = x + _marginal_noise(noise, sigma, sigma_next, h)
        past.appendleft((denoised, h))
    return x


def _ancestral(
    x: torch.Tensor, data: torch.Tensor, sigma: torch.Tensor, target: torch.Tensor, noise: NoiseSource
) -> torch.Tensor:
    """The exact step below the target for a constant prediction, then noise up to it."""
    down, up = ancestral_split(sigma, target)
    return exponential_step(x, data, log_snr(down) - log_snr(sigma)) + noise(sigma, target) * up


def _stochastic(
    x: torch.Tensor, data: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor, h: torch.Tensor
) -> torch.Tensor:
    """The mean of the reverse SDE's step for a constant prediction: e^-2h x + (1 - e^-2h) data."""
    return sigma_next / sigma * (-h).exp() * x - (-2 * h).expm1() * data


def _marginal_noise(
    noise: NoiseSource, sigma: torch.Tensor, sigma_next: torch.Tensor, h: torch.Tensor
) -> torch.Tensor:
    """The noise of that step: standard deviation sigma_next * sqrt(1 - e^-2h)."""
    return noise(sigma, sigma_next) * (sigma_next * (-2 * h).expm1().neg().sqrt())
