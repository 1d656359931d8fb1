"""UniPC (Zhao et al., 2023): a multistep predictor and a corrector that shares its evaluations.

Written for x = x0 + sigma * n, where the paper's x_t is this x times alpha_t; alpha then drops out of
the paper's update (data prediction, section 3):

    x -> e^-h x + (1 - e^-h) m_0 - B(h) * sum_k rho_k D_k,   D_k = (m_k - m_0) / r_k

with h the step in lambda, m_k the prediction k rows ago, r_k its distance in units of h, and B(h) = -h
("bh1") or e^-h - 1 ("bh2"). The weights rho fulfil the order conditions sum_k rho_k r_k^(j-1) = b_j; the
predictor has only past predictions in its sum, the corrector the new one too (r = 1).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import torch

from .steps import Denoise, NoiseSource, OnStep, exponential_step, predictions

FLOOR = 0.001
"""The sigma that stands in for 0, where lambda is infinite."""

Variant = Literal["bh1", "bh2"]
Past = deque[tuple[torch.Tensor, torch.Tensor]]
"""(lambda, prediction of x0) of the last rows, newest first."""


def uni_pc(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
    variant: Variant = "bh1",
) -> torch.Tensor:
    """Up to third order, one evaluation a step. The order rises from 1 in the first steps and falls back
    to 1 in the last, which has no corrector.

    A table of one step takes that step at first order (the editor returns the noise as it came).
    """
    table = sigmas.detach().float().cpu().clone()
    if len(table) and table[-1] == 0:
        table[-1] = FLOOR
    steps = len(table) - 1
    highest = max(1, min(3, steps - 1))
    past: Past = deque(maxlen=highest)
    move: _Move | None = None
    for index, (sigma, sigma_next, predict) in enumerate(predictions(denoise, table, on_step)):
        prediction = predict(x if move is None else move.predicted())
        if move is not None:
            x = move.corrected(prediction)
        past.appendleft((half_log_snr(sigma), prediction))
        order = min(index + 1, highest, steps - index)
        move = _Move.plan(x, past, half_log_snr(sigma_next), order, variant)
    return x if move is None else move.predicted()


def uni_pc_bh2(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """`uni_pc` with B(h) = e^-h - 1, which the paper finds better with few steps and guidance."""
    return uni_pc(denoise, x, sigmas, noise=noise, on_step=on_step, variant="bh2")


def half_log_snr(sigma: torch.Tensor) -> torch.Tensor:
    """lambda = log(alpha / sigma_vp) by way of alpha, in float32.

    It is -log(sigma); taken through alpha it loses digits at low sigma (a few percent of lambda's slope at
    0.001). The editor computes it so, and the last step of a picture shows it in the fifth digit.
    """
    log_alpha = 0.5 * torch.log(1 / (sigma * sigma + 1))
    return log_alpha - 0.5 * torch.log(1 - torch.exp(2 * log_alpha))


@dataclass(frozen=True, eq=False)
class _Move:
    """One step: what the predictor and the corrector have in common.

    first_order: x after the step with the newest prediction alone; newest: that prediction; scale: B(h);
    ratios: (order,) r_k with the new row's 1 last; differences: order - 1 tensors D_k; right: (order,) b.
    """

    first_order: torch.Tensor
    newest: torch.Tensor
    scale: torch.Tensor
    ratios: torch.Tensor
    differences: tuple[torch.Tensor, ...]
    right: torch.Tensor

    @classmethod
    def plan(cls, x: torch.Tensor, past: Past, target: torch.Tensor, order: int, variant: Variant) -> _Move:
        start, newest = past[0]
        h = target - start
        older = [((lam - start) / h, prediction) for lam, prediction in list(past)[1:order]]
        scale = -h if variant == "bh1" else torch.expm1(-h)
        return cls(
            first_order=exponential_step(x, newest, h),
            newest=newest,
            scale=scale,
            ratios=torch.stack([r for r, _ in older] + [torch.ones(())]),
            differences=tuple((prediction - newest) / r for r, prediction in older),
            right=torch.stack(order_conditions(-h, order)) / scale,
        )

    def predicted(self) -> torch.Tensor:
        count = len(self.differences)
        if count == 0:
            return self.first_order
        rho = [0.5] if count == 1 else self._weights(count)
        return self.first_order - self.scale * self._correction(rho)

    def corrected(self, prediction: torch.Tensor) -> torch.Tensor:
        count = len(self.ratios)
        rho = [0.5] if count == 1 else self._weights(count)
        change = self._correction(rho[:-1]) + rho[-1] * (prediction - self.newest)
        return self.first_order - self.scale * change

    def _weights(self, count: int) -> list[float]:
        """The first `count` order conditions solved for the first `count` ratios."""
        powers = torch.stack([self.ratios[:count] ** j for j in range(count)])
        return torch.linalg.solve(powers, self.right[:count]).tolist()

    def _correction(self, rho: list[float]) -> torch.Tensor:
        terms = [weight * difference for weight, difference in zip(rho, self.differences, strict=True)]
        return torch.stack(terms).sum(dim=0) if terms else torch.zeros_like(self.first_order)


def order_conditions(z: torch.Tensor, order: int) -> list[torch.Tensor]:
    """j! * z * phi_{j+1}(z) for j = 1..order, where phi_1(z) = (e^z - 1) / z and
    phi_{j+1}(z) = (phi_j(z) - 1 / j!) / z; over B(h) these are the b_j."""
    conditions = []
    remainder, factorial = torch.expm1(z) / z - 1, 1
    for j in range(1, order + 1):
        conditions.append(remainder * factorial)
        factorial *= j + 1
        remainder = remainder / z - 1 / factorial
    return conditions
