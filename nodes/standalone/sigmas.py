"""ComfyUI's nodes that make and change tables of noise levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...controlnet_core.diffusion.schedule import beta
from ...controlnet_core.errors import ValueRangeError
from ..fields import Field, denoise, integer, model, number, share, socket, steps
from ..node import Node
from .values import Model

SIGMAS = socket("SIGMAS", "sigmas")
SCHEDULERS, EDITS = "sampling/custom_sampling/schedulers", "sampling/custom_sampling/sigmas"
TURBO_STEPS = 10
"""Steps that SD Turbo was distilled to: every hundredth timestep of 1000."""


def precise(name: str, default: float, max: float, step: float = 0.01) -> Field:
    """A number that the editor does not round: the smallest noise levels need all decimals."""
    return number(name, default, 0.0, max, step=step, round=False)


ENDS = (precise("sigma_max", 14.614642, 5000.0), precise("sigma_min", 0.0291675, 5000.0))


def with_zero(sigmas: Tensor) -> Tensor:
    """The table with the 0 at which it ends."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def check_ends(sigma_max: float, sigma_min: float) -> None:
    """Raise ValueRangeError where a table cannot be computed from its ends."""
    if sigma_max <= 0.0 or sigma_min <= 0.0:
        raise ValueRangeError(f"sigma_max is {sigma_max:g} and sigma_min {sigma_min:g}: both must be above 0")


class SigmasNode(Node):
    """Base of the nodes that return SIGMAS."""

    CATEGORY = SCHEDULERS
    RETURN_TYPES = ("SIGMAS",)


class KarrasScheduler(SigmasNode):
    """Noise levels that are evenly spaced in sigma^(1/rho) (Karras et al., 2022, eq. 5)."""

    INPUTS = (steps(), *ENDS, precise("rho", 7.0, 100.0))

    def run(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Tensor]:
        """-> SIGMAS (steps + 1,)."""
        if rho == 0.0:
            raise ValueRangeError("rho is 0: give a number above 0, such as 7")
        high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        return (with_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho),)


class ExponentialScheduler(SigmasNode):
    """Noise levels that are evenly spaced in log sigma."""

    INPUTS = (steps(), *ENDS)

    def run(self, steps: int, sigma_max: float, sigma_min: float) -> tuple[Tensor]:
        """-> SIGMAS (steps + 1,)."""
        check_ends(sigma_max, sigma_min)
        return (with_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps).exp()),)


class PolyexponentialScheduler(SigmasNode):
    """Noise levels whose logarithms fall with a power of the position."""

    INPUTS = (steps(), *ENDS, precise("rho", 1.0, 100.0))

    def run(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Tensor]:
        """-> SIGMAS (steps + 1,)."""
        check_ends(sigma_max, sigma_min)
        ramp = torch.linspace(1, 0, steps) ** rho
        low, high = math.log(sigma_min), math.log(sigma_max)
        return (with_zero(torch.exp(ramp * (high - low) + low)),)


class VPScheduler(SigmasNode):
    """Noise levels of the variance-preserving SDE with a linear beta (Song et al., 2021)."""

    INPUTS = (
        steps(), precise("beta_d", 19.9, 5000.0), precise("beta_min", 0.1, 5000.0), precise("eps_s", 0.001, 1.0, 0.0001)
    )  # fmt: skip

    def run(self, steps: int, beta_d: float, beta_min: float, eps_s: float) -> tuple[Tensor]:
        """-> SIGMAS (steps + 1,)."""
        t = torch.linspace(1, eps_s, steps)
        return (with_zero(torch.sqrt(torch.special.expm1(beta_d * t**2 / 2 + beta_min * t))),)


class SDTurboScheduler(SigmasNode):
    """The noise levels that SD Turbo and SDXL Turbo were trained with."""

    INPUTS = (model("model"), integer("steps", 1, 1, TURBO_STEPS), denoise())

    def run(self, model: Model, steps: int, denoise: float) -> tuple[Tensor]:
        """-> SIGMAS (steps + 1,)."""
        first = TURBO_STEPS - int(TURBO_STEPS * denoise)
        timesteps = (torch.arange(TURBO_STEPS, 0, -1) * 100 - 1)[first : first + steps]
        return (with_zero(model.base.schedule.sigma(timesteps)),)


class BetaSamplingScheduler(SigmasNode):
    """Noise levels at the quantiles of a beta distribution over the timesteps."""

    INPUTS = (model("model"), steps(), precise("alpha", 0.6, 50.0), precise("beta", 0.6, 50.0))

    def run(self, model: Model, steps: int, **shape: float) -> tuple[Tensor]:
        """-> SIGMAS (up to steps + 1,)."""
        return (beta(model.base.schedule, steps, shape["alpha"], shape["beta"]),)


class SplitSigmas(SigmasNode):
    """Splits a table at a step. Both parts have the noise level where it was split."""

    CATEGORY = EDITS
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    INPUTS = (SIGMAS, integer("step", 0, 0, 10000))

    def run(self, sigmas: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """-> SIGMAS, SIGMAS."""
        return sigmas[: step + 1], sigmas[step:]


class SplitSigmasDenoise(SplitSigmas):
    """Splits a table so that the second part has this fraction of the steps."""

    INPUTS = (SIGMAS, share("denoise", 1.0))

    def run(self, sigmas: Tensor, denoise: float) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """-> SIGMAS, SIGMAS."""
        count = round(max(len(sigmas) - 1, 0) * denoise)
        # ComfyUI's slices: without any step for the second part the first one is empty.
        return sigmas[:-count] if count else sigmas[:0], sigmas[-(count + 1) :]


class FlipSigmas(SigmasNode):
    """Turns a table around, to add noise instead of removing it."""

    CATEGORY = EDITS
    INPUTS = (SIGMAS,)

    def run(self, sigmas: Tensor) -> tuple[Tensor]:
        """-> SIGMAS; a first 0 becomes 0.0001, because no step can start from 0."""
        flipped = sigmas.flip(0)
        if len(flipped) and flipped[0] == 0:
            flipped[0] = 0.0001
        return (flipped,)


class SetFirstSigma(SigmasNode):
    """Replaces the first noise level of a table."""

    CATEGORY = EDITS
    INPUTS = (SIGMAS, precise("sigma", 136.0, 20000.0, 0.001))

    def run(self, sigmas: Tensor, sigma: float) -> tuple[Tensor]:
        """-> SIGMAS."""
        if not len(sigmas):
            raise ValueRangeError("the table of noise levels is empty: link one with at least one level")
        return (torch.cat([sigmas.new_tensor([sigma]), sigmas[1:]]),)
