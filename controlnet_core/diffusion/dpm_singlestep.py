"""DPM-Solver (Lu et al., 2022a): single-step exponential integrators of the noise prediction in lambda = -log sigma.

A step of length h solves the linear part exactly: with a constant prediction eps of the noise,
x -> x - sigma_next (e^h - 1) eps. Orders 2 and 3 evaluate eps at points within the step. As in k-diffusion and
ComfyUI, both samplers end at the lowest sigma above 0, not at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .steps import Denoise, NoiseSource, OnStep, Step, log_snr

RTOL, ATOL = 0.05, 0.0078
"""Error that `dpm_adaptive` allows in a step, relative to the latent and absolute."""
FIRST_STEP = 0.05
"""First step of `dpm_adaptive`, in lambda."""
ACCEPTED = 0.81
"""`dpm_adaptive` repeats a step if the next one would have to be shorter than this fraction of it."""
MIN_REST = 1e-5
"""`dpm_adaptive` stops this close to the end, in lambda: float32 resolves little more."""


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """DPM-Solver-fast (Lu et al., 2022a, section 3.4): as many evaluations as the given number of steps.

    Steps of order 3, evenly spaced in lambda, and at the end the orders that use up the evaluations.
    """
    if len(sigmas) < 2:
        return x
    start, end = _ends(sigmas)
    evaluations = len(sigmas) - 1
    count = evaluations // 3 + 1
    times = torch.linspace(float(start), float(end), count + 1)
    rest = evaluations % 3
    orders = [3] * (count - 2) + [2, 1] if rest == 0 else [3] * (count - 1) + [rest]
    for index, order in enumerate(orders):
        step = _SingleStep(denoise, x, times[index])
        on_step(Step(index, len(orders), step.sigma, x, step.denoised))
        x = step.to(times[index + 1], order)
    return x


def dpm_adaptive(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """DPM-Solver-23 with an adaptive step (Lu et al., 2022a, appendix C): sigmas count only by their ends.

    The difference between the solutions of order 2 and 3, which share their evaluations, is the error of a step. A step
    with too large an error is taken again, shorter.
    """
    if len(sigmas) < 2:
        return x
    time, end = _ends(sigmas)
    h, index = FIRST_STEP, 0
    previous = x
    while time < end - MIN_REST:
        goal = torch.minimum(end, time + h)
        step = _SingleStep(denoise, x, time)
        low, high = step.to(goal, 2, first=1 / 3), step.to(goal, 3)
        allowed = torch.maximum(torch.tensor(ATOL), RTOL * torch.maximum(low.abs(), previous.abs()))
        error = float(torch.linalg.norm((low - high) / allowed) / x.numel() ** 0.5)
        # The error grows with h^3. The arctangent keeps one step from changing h too much.
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / 3) - 1)
        h *= factor
        # The number of steps is not known before: the bar of the progress grows where more are needed than planned.
        on_step(Step(index, max(index + 1, len(sigmas) - 1), step.sigma, x, step.denoised))
        index += 1
        if factor >= ACCEPTED:
            previous, x, time = low, high, goal
    return x


def _ends(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Lambda of the first sigma and of the last one above 0."""
    table = sigmas.detach().float().cpu()
    return log_snr(table[0]), log_snr(table[-1] if table[-1] > 0 else table[-2])


@dataclass
class _SingleStep:
    """A step from lambda `time`, whose evaluations serve for solutions of several orders."""

    denoise: Denoise
    x: Tensor
    time: Tensor

    def __post_init__(self) -> None:
        self.sigma = self.time.neg().exp()
        self.eps = self._noise(self.x, self.time)
        self.denoised = self.x - self.sigma * self.eps
        self._within: Tensor | None = None

    def to(self, goal: Tensor, order: int, first: float | None = None) -> Tensor:
        """Solve up to lambda `goal`. first: where the first evaluation within the step lies, 0 to 1."""
        h = goal - self.time
        sigma = goal.neg().exp()
        x = self.x - sigma * h.expm1() * self.eps
        if order == 1:
            return x
        r1 = first or (1 / 2 if order == 2 else 1 / 3)
        if self._within is None:
            self._within = self._noise(self._at(r1 * h), self.time + r1 * h)
        difference = self._within - self.eps
        if order == 2:
            return x - sigma / (2 * r1) * h.expm1() * difference
        r2 = 2 / 3
        at = self.time + r2 * h
        phi = (r2 * h).expm1() / (r2 * h) - 1
        second = self._noise(self._at(r2 * h) - at.neg().exp() * (r2 / r1) * phi * difference, at)
        return x - sigma / r2 * (h.expm1() / h - 1) * (second - self.eps)

    def _at(self, h: Tensor) -> Tensor:
        """The solution of order 1 after h."""
        return self.x - (self.time + h).neg().exp() * h.expm1() * self.eps

    def _noise(self, x: Tensor, time: Tensor) -> Tensor:
        """The prediction of the noise in x."""
        sigma = time.neg().exp()
        return (x - self.denoise(x, sigma)) / sigma
