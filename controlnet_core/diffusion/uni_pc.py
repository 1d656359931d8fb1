"""UniPC (Zhao et al., 2023): a multistep predictor, and a corrector that needs no evaluation of its own.

Written for x = x0 + sigma * n; the paper's x_t is this x times alpha_t. Alpha then drops out of the paper's
update (data prediction, section 3):

    x -> e^-h x + (1 - e^-h) m_0 - B(h) * sum_k rho_k D_k,   D_k = (m_k - m_0) / r_k

h is the step in lambda, m_k the prediction k steps ago, r_k its distance in units of h, and B(h) = -h ("bh1") or
e^-h - 1 ("bh2"). The weights rho solve the order conditions sum_k rho_k r_k^(j-1) = b_j. The predictor sums over
past predictions only; the corrector adds the new one, with r = 1.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .steps import Denoise, NoiseSource, OnStep, exponential_step, predictions

FLOOR = 0.001
"""The sigma used in place of 0, where lambda is infinite."""

Variant = Literal["bh1", "bh2"]


def uni_pc(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep, variant: Variant = "bh1"
) -> Tensor:
    """UniPC, up to third order (Zhao et al., 2023, algorithm 1). One evaluation a step.

    The order rises from 1 in the first steps and falls back to 1 in the last, which has no corrector.
    """
    table = sigmas.detach().float().cpu().clone()
    if len(table) and table[-1] == 0:
        table[-1] = FLOOR
    steps = len(table) - 1
    # A table of one step takes it at first order. ComfyUI returns the noise unchanged there.
    highest = max(1, min(3, steps - 1))
    past: deque[tuple[Tensor, Tensor]] = deque(maxlen=highest)  # (lambda, prediction), newest first
    update: UniPCUpdate | None = None
    for index, (sigma, sigma_next, predict) in enumerate(predictions(denoise, table, on_step)):
        m = predict(x if update is None else update.predict())
        if update is not None:
            x = update.correct(m)
        past.appendleft((half_log_snr(sigma), m))
        order = min(index + 1, highest, steps - index)
        update = UniPCUpdate.prepare(x, list(past)[:order], half_log_snr(sigma_next), variant)
    return x if update is None else update.predict()


def uni_pc_bh2(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """UniPC with B(h) = e^-h - 1, which the paper finds better for few steps and for guidance."""
    return uni_pc(denoise, x, sigmas, noise, on_step, "bh2")


def half_log_snr(sigma: Tensor) -> Tensor:
    """lambda = log(alpha / sigma_vp), which equals -log(sigma), computed by way of alpha in float32."""
    # This loses digits at low sigma: a few percent of lambda's slope at 0.001. ComfyUI computes it so, and the fifth
    # digit of a picture depends on it.
    log_alpha = 0.5 * torch.log(1 / (sigma * sigma + 1))
    return log_alpha - 0.5 * torch.log(1 - torch.exp(2 * log_alpha))


@dataclass(frozen=True, eq=False)
class UniPCUpdate:
    """What predictor and corrector of one step have in common.

    first_order: x after the step with m_0 alone. B: B(h). r: (order,) the r_k, and 1 for the new prediction.
    D: order - 1 tensors D_k. b: (order,) right sides of the order conditions.
    """

    first_order: Tensor
    m_0: Tensor
    B: Tensor
    r: Tensor
    D: tuple[Tensor, ...]
    b: Tensor

    @classmethod
    def prepare(cls, x: Tensor, past: list[tuple[Tensor, Tensor]], target: Tensor, variant: Variant) -> UniPCUpdate:
        """Prepare the step to lambda = target; its order is the number of past predictions."""
        start, m_0 = past[0]
        h = target - start
        older = [((lambda_k - start) / h, m_k) for lambda_k, m_k in past[1:]]
        B = -h if variant == "bh1" else torch.expm1(-h)
        return cls(
            first_order=exponential_step(x, m_0, h),
            m_0=m_0,
            B=B,
            r=torch.stack([r_k for r_k, _ in older] + [torch.ones(())]),
            D=tuple((m_k - m_0) / r_k for r_k, m_k in older),
            b=torch.stack(order_conditions(-h, len(past))) / B,
        )

    def predict(self) -> Tensor:
        """x at the next sigma, from past predictions."""
        if not self.D:
            return self.first_order
        return self.first_order - self.B * self._weighted_sum(self._weights(len(self.D)))

    def correct(self, m: Tensor) -> Tensor:
        """x at the next sigma, once the prediction m there is known."""
        *rho, rho_new = self._weights(len(self.r))
        return self.first_order - self.B * (self._weighted_sum(rho) + rho_new * (m - self.m_0))

    def _weights(self, count: int) -> list[float]:
        """Solve the first `count` order conditions for rho_1 to rho_count."""
        if count == 1:
            return [0.5]  # as in the authors' code, in place of the solution b_1
        powers = torch.stack([self.r[:count] ** j for j in range(count)])
        return torch.linalg.solve(powers, self.b[:count]).tolist()

    def _weighted_sum(self, rho: list[float]) -> Tensor:
        terms = [rho_k * D_k for rho_k, D_k in zip(rho, self.D, strict=True)]
        return torch.stack(terms).sum(dim=0) if terms else torch.zeros_like(self.first_order)


def order_conditions(z: Tensor, order: int) -> list[Tensor]:
    """j! * z * phi_{j+1}(z) for j = 1..order; over B(h) these are the b_j.

    phi_1(z) = (e^z - 1) / z, and phi_{j+1}(z) = (phi_j(z) - 1 / j!) / z.
    """
    conditions = []
    remainder, factorial = torch.expm1(z) / z - 1, 1
    for j in range(1, order + 1):
        conditions.append(remainder * factorial)
        factorial *= j + 1
        remainder = remainder / z - 1 / factorial
    return conditions
