"""The noise schedule a model was trained with, and the tables of sigmas that samplers walk down.

Sigma is the noise level in variance-exploding terms: x = x0 + sigma * n. With the variance-preserving
alpha_bar of DDPM (Ho et al., 2020), sigma^2 = (1 - alpha_bar) / alpha_bar. Tables descend from the
highest sigma and end in 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ShapeError, ValueRangeError
from .samplers import get_sampler

if TYPE_CHECKING:
    from ..config import NoiseConfig

TERMINAL_ALPHA_BAR = 4.8973451890853435e-08
"""ComfyUI's last alpha_bar in schedules with zero terminal SNR: a sigma of 4519."""
ALWAYS = 999999999.9
"""The sigma of "from the very start", as in ComfyUI: above every sigma of any table."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The sigmas of the training timesteps, lowest first.

    sigmas, log_sigmas: float32 (T,) on the CPU; T is 1000 in Stable Diffusion. sigma_data: the standard deviation
    that the model assumes for its latents (1 in Stable Diffusion). Raises ShapeError for other shapes.
    """

    # The logarithm was taken before the sigmas were rounded to float32, so it cannot be had from them. Pictures depend
    # on these bits.

    sigmas: Tensor
    log_sigmas: Tensor
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if self.sigmas.ndim != 1 or self.sigmas.shape != self.log_sigmas.shape or len(self.sigmas) < 2:
            raise ShapeError(
                f"a noise schedule got sigmas of shape {tuple(self.sigmas.shape)} and log_sigmas of shape "
                f"{tuple(self.log_sigmas.shape)}: give two vectors of one length, at least 2"
            )

    @classmethod
    def from_sigmas(cls, sigmas: Tensor) -> NoiseSchedule:
        """Make the schedule from (T,) ascending sigmas, best in float64."""
        return cls(sigmas.float().cpu(), sigmas.log().float().cpu())

    @property
    def sigma_min(self) -> float:
        """The lowest sigma of the training (0.0292 in Stable Diffusion)."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The highest sigma of the training (14.6146 in Stable Diffusion)."""
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """The training timestep nearest to sigma on the log axis: float32, 0 to T - 1, of sigma's shape."""
        distance = sigma.detach().float().cpu().log().reshape(1, -1) - self.log_sigmas[:, None]
        return distance.abs().argmin(dim=0).reshape(sigma.shape).to(sigma.device, torch.float32)

    def sigma(self, timestep: Tensor) -> Tensor:
        """The sigma of a timestep 0 to T - 1 (clamped), interpolated in log sigma between two of them."""
        position = timestep.detach().float().cpu().clamp(0, len(self.sigmas) - 1)
        weight = position.frac()
        below, above = self.log_sigmas[position.floor().long()], self.log_sigmas[position.ceil().long()]
        return ((1 - weight) * below + weight * above).exp().to(timestep.device)

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma at a position on the timestep axis, from 0.0 (the highest timestep) to 1.0 (the lowest).

        A position of 0 or less gives `ALWAYS`, one of 1 or more gives 0.0, so that a window from 0 to 1
        includes every sigma.
        """
        return ALWAYS if percent <= 0.0 else 0.0 if percent >= 1.0 else self._sigma_at(percent)

    def _sigma_at(self, percent: float) -> float:
        return float(self.sigma(torch.tensor((1.0 - percent) * (len(self.sigmas) - 1))))

    def in_window(self, sigma: float, start: float, end: float) -> bool:
        """Whether a sigma lies between two positions of the timestep axis, `start` and `end` included."""
        return self.percent_to_sigma(end) <= sigma <= self.percent_to_sigma(start)

    def sigma_to_percent(self, sigma: float) -> float:
        """The position of the nearest timestep on the timestep axis, 0.0 to 1.0."""
        return 1.0 - float(self.timestep(torch.tensor(sigma))) / (len(self.sigmas) - 1)

    def at_boundary(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return a prediction of x0, (B,C,H,W), so that it meets the boundary condition of a consistency model.

        x: the noisy latent. sigma: 0-d or (B,). Other models have no such condition.
        """
        return x0


@dataclass(frozen=True, eq=False)
class DistilledSchedule(NoiseSchedule):
    """Every n-th of the timesteps of a training, to which a latent consistency model was distilled (Luo et al., 2023).

    Timesteps are those of the training: with n = 20 the levels are 19, 39, ... 999. stride: n.
    """

    stride: int = 20
    _levels: dict[torch.device, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, schedule: NoiseSchedule, count: int = 50) -> DistilledSchedule:
        """Make the schedule of `count` evenly spaced timesteps, the highest included."""
        stride = len(schedule.sigmas) // count
        sigmas = schedule.sigmas[stride - 1 :: stride]
        return cls(sigmas, sigmas.log(), schedule.sigma_data, stride)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep of the training whose level is nearest to sigma on the log axis: float32, of sigma's shape."""
        return super().timestep(sigma) * self.stride + (self.stride - 1)

    def sigma(self, timestep: Tensor) -> Tensor:
        """The sigma of a timestep of the training, interpolated in log sigma between two levels."""
        return super().sigma((timestep.float() - (self.stride - 1)) / self.stride)

    def _sigma_at(self, percent: float) -> float:
        return float(self.sigma(torch.tensor((1.0 - percent) * self._last)))

    @property
    def _last(self) -> int:
        return len(self.sigmas) * self.stride - 1

    def sigma_to_percent(self, sigma: float) -> float:
        """The position of the nearest level on the timestep axis, 0.0 to 1.0."""
        return 1.0 - float(self.timestep(torch.tensor(sigma))) / self._last

    def at_boundary(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """c_out x0 + c_skip x, of which c_skip becomes 1 at timestep 0 (Luo et al., 2023, eq. 8 and section 3)."""
        # Kept on the device: a copy here would stop the work of a GPU, and could not be captured as a graph.
        if sigma.device not in self._levels:
            self._levels[sigma.device] = self.log_sigmas.to(sigma.device)
        distance = sigma.float().log().reshape(1, -1) - self._levels[sigma.device][:, None]
        nearest = distance.abs().argmin(dim=0)
        # Timesteps count ten times and sigma_data is 0.5, as the model was distilled.
        scaled = (nearest * self.stride + (self.stride - 1)).float() * 10.0
        scaled = scaled.reshape(()) if scaled.numel() == 1 else scaled.reshape(-1, 1, 1, 1)
        variance = scaled**2 + 0.25
        return scaled / variance**0.5 * x0 + 0.25 / variance * x


@dataclass(frozen=True, eq=False)
class EdmSchedule(NoiseSchedule):
    """All noise levels between two; the network reads log(sigma) / 4 as its timestep (Karras et al., 2022, table 1).

    `sigmas` are 1000 levels, evenly spaced in log sigma, for the tables that pick from a list.
    """

    @classmethod
    def between(cls, sigma_min: float, sigma_max: float, sigma_data: float = 1.0) -> EdmSchedule:
        """Make the schedule from two levels. Raises ValueRangeError unless 0 < sigma_min < sigma_max."""
        if not 0.0 < sigma_min < sigma_max:
            raise ValueRangeError(f"sigma_min is {sigma_min} and sigma_max {sigma_max}: give 0 < sigma_min < sigma_max")
        sigmas = torch.linspace(math.log(sigma_min), math.log(sigma_max), 1000).exp()
        return cls(sigmas, sigmas.log(), sigma_data)

    def timestep(self, sigma: Tensor) -> Tensor:
        """log(sigma) / 4: float32, of sigma's shape."""
        return 0.25 * sigma.detach().float().log()

    def sigma(self, timestep: Tensor) -> Tensor:
        """The sigma of a timestep that `timestep` returned."""
        return (timestep.float() / 0.25).exp()

    def _sigma_at(self, percent: float) -> float:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return math.exp((high - low) * (1.0 - percent) + low)


def make_schedule(noise: NoiseConfig) -> NoiseSchedule:
    """Make the schedule that a model's config describes."""
    if noise.kind == "edm":
        return EdmSchedule.between(noise.sigma_min, noise.sigma_max, noise.sigma_data)
    trained = zero_terminal_snr(_scaled_linear_sigmas()) if noise.zero_terminal_snr else scaled_linear()
    return DistilledSchedule.of(trained) if noise.kind == "lcm" else trained


def zero_terminal_snr(sigmas: Tensor) -> NoiseSchedule:
    """Rescale (T,) sigmas of a training so that the last one is (almost) pure noise.

    Lin et al., 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1: shift the square
    roots of alpha_bar so that the last is 0, and scale them so that the first stays.
    """
    root = (1.0 / (sigmas * sigmas + 1.0)).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alpha_bar = ((root - last) * (first / (first - last))) ** 2
    # 0 would be an infinite sigma, from which no sampler can start.
    alpha_bar[-1] = TERMINAL_ALPHA_BAR
    return NoiseSchedule.from_sigmas(((1.0 - alpha_bar) / alpha_bar) ** 0.5)


def scaled_linear(timesteps: int = 1000) -> NoiseSchedule:
    """Stable Diffusion's schedule: the square root of beta rises linearly (Rombach et al., 2022)."""
    return NoiseSchedule.from_sigmas(_scaled_linear_sigmas(timesteps))


def _scaled_linear_sigmas(timesteps: int = 1000) -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, timesteps, dtype=torch.float64).square()
    alpha_bar = (1.0 - betas).cumprod(dim=0)
    return ((1 - alpha_bar) / alpha_bar).sqrt()


# The tables are computed in float32 on the CPU and in ComfyUI's order of operations: a picture depends on their bits.


def normal(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced timesteps from the highest to the lowest, then 0."""
    return _with_zero(schedule.sigma(torch.linspace(*_ends(schedule), steps)))


def sgm_uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced timesteps that leave out the lowest one, then 0."""
    return _with_zero(schedule.sigma(torch.linspace(*_ends(schedule), steps + 1)[:-1]))


def _ends(schedule: NoiseSchedule) -> tuple[float, float]:
    """The timesteps of the highest and the lowest sigma."""
    high, low = schedule.timestep(schedule.sigmas[[-1, 0]]).tolist()
    return high, low


def karras(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> Tensor:
    """Evenly spaced in sigma^(1/rho) (Karras et al., 2022, eq. 5), then 0."""
    high, low = schedule.sigma_max ** (1 / rho), schedule.sigma_min ** (1 / rho)
    return _with_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def exponential(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced in log sigma, then 0."""
    high, low = math.log(schedule.sigma_max), math.log(schedule.sigma_min)
    return _with_zero(torch.linspace(high, low, steps).exp())


def simple(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Every (T / steps)-th training sigma, counted from the highest, then 0."""
    count = len(schedule.sigmas)
    stride = count / steps
    return _with_zero(schedule.sigmas[[count - 1 - int(i * stride) for i in range(steps)]])


def ddim_uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Every (T // steps)-th training sigma, counted from timestep 1 upwards, then 0 (Song et al., 2021, "linear").

    If `steps` does not divide T, the table has a step more: 30 steps of 1000 give 31.
    """
    stride = max(len(schedule.sigmas) // steps, 1)
    return _with_zero(schedule.sigmas[1::stride].flip(0))


def beta(schedule: NoiseSchedule, steps: int, a: float = 0.6, b: float = 0.6) -> Tensor:
    """Timesteps at evenly spaced quantiles of the Beta(a, b) distribution, then 0 (Lee et al., 2024, arXiv 2407.12173).

    Quantiles that round to the same timestep count once, so a large number of steps can give a shorter table.
    """
    import numpy as np
    from scipy import stats

    quantiles = 1 - np.linspace(0, 1, steps, endpoint=False)
    timesteps = np.rint(stats.beta.ppf(quantiles, a, b) * (len(schedule.sigmas) - 1)).astype(int)
    return _with_zero(schedule.sigmas[list(dict.fromkeys(timesteps.tolist()))])


SCHEDULERS: Mapping[str, Callable[[NoiseSchedule, int], Tensor]] = {
    f.__name__: f for f in (normal, karras, exponential, sgm_uniform, simple, ddim_uniform, beta)
}


def make_sigmas(
    schedule: NoiseSchedule, scheduler: str, steps: int, *, denoise: float = 1.0, sampler: str = "euler"
) -> Tensor:
    """The sigmas that a sampler walks down: float32 (steps + 1,), descending to 0.

    denoise: fraction of the schedule to run, 0 to 1. Below 1, the table is the lower end of a longer one: the last
    `steps` of int(steps / denoise) steps. At 0 it is empty. `ddim_uniform` and `beta` may give a step more or fewer.

    Raises ValueRangeError for an unknown scheduler or sampler, fewer than one step, or a denoise outside 0 to 1.
    """
    if scheduler not in SCHEDULERS:
        raise ValueRangeError(f"scheduler {scheduler!r} is unknown: choose one of {', '.join(SCHEDULERS)}")
    if steps < 1:
        raise ValueRangeError(f"steps is {steps}: at least 1 is needed")
    if not 0.0 <= denoise <= 1.0:
        raise ValueRangeError(f"denoise is {denoise}: give 0 (keep the latent) to 1 (start from noise)")
    drops_penultimate = get_sampler(sampler).drops_penultimate
    if denoise == 0.0:
        return torch.empty(0)
    total = steps if denoise > 0.9999 else int(steps / denoise)
    sigmas = SCHEDULERS[scheduler](schedule, total + drops_penultimate)
    if drops_penultimate:
        # These samplers waste a step between the lowest sigma of the training and 0. The table was one longer for it.
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas if denoise > 0.9999 else sigmas[-(steps + 1) :]


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
