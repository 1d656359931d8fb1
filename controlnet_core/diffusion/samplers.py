"""The samplers by name. Each is a pure function `(denoise, x, sigmas, *, noise, on_step) -> x`.

x: (B,C,H,W) noisy latent at sigmas[0]; sigmas: (n + 1,) descending, as made by `make_sigmas`; with fewer
than two of them x comes back as it is. Nothing is kept between calls, gradients are left to the caller,
and whatever `denoise` or `on_step` raises passes through: that is how a run is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import torch

from ..errors import ValueRangeError
from .dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s_ancestral, dpmpp_3m_sde, dpmpp_sde
from .karras import dpm_2, dpm_2_ancestral, euler, euler_ancestral, heun, lms
from .steps import Denoise, NoiseSource, OnStep, Step, predictions
from .uni_pc import uni_pc, uni_pc_bh2

__all__ = ["SAMPLERS", "Denoise", "NoiseSource", "OnStep", "Sampler", "Step", "get_sampler", "lcm"]

NoiseKind = Literal["none", "ancestral", "brownian"]


class SampleFunction(Protocol):
    """The call that all samplers share."""

    def __call__(
        self,
        denoise: Denoise,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        *,
        noise: NoiseSource,
        on_step: OnStep | None = None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Sampler:
    """A sampler with what has to be known to run it.

    noise: the kind of noise it draws between its steps (see `noise_source`).
    drops_penultimate: it walks a table without the last sigma above 0 (see `make_sigmas`).
    fresh_mask_noise: under a noise mask the kept part gets noise of its own (see `mask_noise`).
    """

    name: str
    function: SampleFunction
    noise: NoiseKind = "none"
    drops_penultimate: bool = False
    fresh_mask_noise: bool = False

    def __call__(
        self,
        denoise: Denoise,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        *,
        noise: NoiseSource | None = None,
        on_step: OnStep | None = None,
    ) -> torch.Tensor:
        """Runs the function. Raises ValueRangeError where it draws noise and no source is given."""
        if noise is None:
            if self.noise != "none":
                raise ValueRangeError(f"sampler {self.name} draws noise and got none: pass noise_source(...)")
            noise = _silence
        return self.function(denoise, x, sigmas, noise=noise, on_step=on_step)


def lcm(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Latent consistency models (Luo et al., 2023, algorithm 3): take the prediction, noise it again."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        x = predict(x)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * sigma_next
    return x


def get_sampler(name: str) -> Sampler:
    """The sampler of this name; ValueRangeError with the choices where there is none."""
    if name not in SAMPLERS:
        raise ValueRangeError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def _silence(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    raise ValueRangeError("a sampler without noise asked for some: this is a fault of the sampler")


_ALL = (
    Sampler("euler", euler),
    Sampler("euler_ancestral", euler_ancestral, noise="ancestral"),
    Sampler("heun", heun),
    Sampler("dpm_2", dpm_2, drops_penultimate=True),
    Sampler("dpm_2_ancestral", dpm_2_ancestral, noise="ancestral", drops_penultimate=True),
    Sampler("lms", lms),
    Sampler("dpmpp_2s_ancestral", dpmpp_2s_ancestral, noise="ancestral"),
    Sampler("dpmpp_sde", dpmpp_sde, noise="brownian"),
    Sampler("dpmpp_2m", dpmpp_2m),
    Sampler("dpmpp_2m_sde", dpmpp_2m_sde, noise="brownian"),
    Sampler("dpmpp_3m_sde", dpmpp_3m_sde, noise="brownian"),
    Sampler("ddim", euler, fresh_mask_noise=True),
    Sampler("lcm", lcm, noise="ancestral"),
    Sampler("uni_pc", uni_pc, drops_penultimate=True),
    Sampler("uni_pc_bh2", uni_pc_bh2, drops_penultimate=True),
)
SAMPLERS: Mapping[str, Sampler] = MappingProxyType({sampler.name: sampler for sampler in _ALL})
