"""DPM-Solver++ (Lu et al., 2022b): exponential integrators of the data prediction in lambda = -log sigma.

Over a step of length h in lambda the linear part is solved exactly: with a constant prediction D of x0,
x -> e^-h x + (1 - e^-h) D. Higher orders extrapolate or interpolate D. The SDE variants take the same step
with 2h in place of h (eta = 1) and add the noise that keeps the marginals.
"""

from __future__ import annotations

from collections import deque

from torch import Tensor

from .steps import Denoise, NoiseSource, OnStep, ancestral_split, exponential_step, log_snr, predictions


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2M), second order, multistep (Lu et al., 2022b, algorithm 2). One evaluation a step.

    The prediction is extrapolated to the middle of the step from the last two.
    """
    previous: tuple[Tensor, Tensor] | None = None  # denoised, h
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        h = log_snr(sigma_next) - log_snr(sigma)
        d = denoised
        # The last step has an infinite h. It ends at the prediction itself.
        if previous is not None and sigma_next != 0:
            r = previous[1] / h
            d = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * previous[0]
        x = exponential_step(x, d, h)
        previous = denoised, h
    return x


def dpmpp_2s_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2S) with ancestral noise, second order, single step (Lu et al., 2022b, algorithm 1, r = 1/2).

    It steps below the next sigma and adds fresh noise up to it. Two evaluations a step, one in the last.
    """
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        d = predict(x)
        down, up = ancestral_split(sigma, sigma_next)
        h = log_snr(down) - log_snr(sigma)
        if down != 0:
            sigma_mid = (log_snr(sigma) + h / 2).neg().exp()
            d = denoise(exponential_step(x, d, h / 2), sigma_mid)
        x = exponential_step(x, d, h)
        if sigma_next != 0:
            x = x + noise(sigma, sigma_next) * up
    return x


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """SDE-DPM-Solver++, second order, single step: the prediction at the noisy middle serves for the whole step.

    Two evaluations a step, one in the last.
    """
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        if sigma_next == 0:
            x = denoised
            continue
        sigma_mid = ((log_snr(sigma) + log_snr(sigma_next)) / 2).neg().exp()
        x_mid = ancestral_step(x, denoised, sigma, sigma_mid, noise)
        x = ancestral_step(x, denoise(x_mid, sigma_mid), sigma, sigma_next, noise)
    return x


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """SDE-DPM-Solver++(2M), second order, multistep, with the midpoint form of the correction.

    One evaluation a step.
    """
    previous: tuple[Tensor, Tensor] | None = None  # denoised, h
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        if sigma_next == 0:
            x = denoised
            continue
        h = log_snr(sigma_next) - log_snr(sigma)
        x = sde_mean(x, denoised, sigma, sigma_next, h)
        if previous is not None:
            x = x + 0.5 * (-2 * h).expm1().neg() * (h / previous[1]) * (denoised - previous[0])
        x = x + sde_noise(noise, sigma, sigma_next, h)
        previous = denoised, h
    return x


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """SDE-DPM-Solver++(3M), multistep: divided differences of the last three predictions.

    They are weighted with the phi functions of exponential integrators. The first step has order 1, the second
    order 2. One evaluation a step.
    """
    past: deque[tuple[Tensor, Tensor]] = deque(maxlen=2)  # (denoised, h), newest first
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        denoised = predict(x)
        if sigma_next == 0:
            x = denoised
            continue
        h = log_snr(sigma_next) - log_snr(sigma)
        phi_2 = (-2 * h).expm1() / (2 * h) + 1
        x = sde_mean(x, denoised, sigma, sigma_next, h)
        if len(past) == 2:
            (denoised_1, h_1), (denoised_2, h_2) = past
            r_0, r_1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - denoised_1) / r_0, (denoised_1 - denoised_2) / r_1
            d2 = (d1_0 - d1_1) / (r_0 + r_1)
            # k-diffusion and ComfyUI give d2 (which is h^2 D'' / 2) half the weight that third order needs. Pictures
            # depend on it. The error falls with h^2 only, but is a third of `dpmpp_2m_sde`'s or less.
            x = x + phi_2 * (d1_0 + r_0 * d2) - (phi_2 / (2 * h) - 0.5) * d2
        elif past:
            denoised_1, h_1 = past[0]
            x = x + phi_2 * (denoised - denoised_1) * (h / h_1)
        x = x + sde_noise(noise, sigma, sigma_next, h)
        past.appendleft((denoised, h))
    return x


def ancestral_step(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, noise: NoiseSource) -> Tensor:
    """Step below sigma_next, exactly for a constant prediction, then add noise up to it."""
    down, up = ancestral_split(sigma, sigma_next)
    return exponential_step(x, denoised, log_snr(down) - log_snr(sigma)) + noise(sigma, sigma_next) * up


def sde_mean(x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, h: Tensor) -> Tensor:
    """The mean of the reverse SDE's step for a constant prediction: e^-2h x + (1 - e^-2h) denoised."""
    return sigma_next / sigma * (-h).exp() * x - (-2 * h).expm1() * denoised


def sde_noise(noise: NoiseSource, sigma: Tensor, sigma_next: Tensor, h: Tensor) -> Tensor:
    """The noise of that step, of standard deviation sigma_next * sqrt(1 - e^-2h)."""
    return noise(sigma, sigma_next) * (sigma_next * (-2 * h).expm1().neg().sqrt())
