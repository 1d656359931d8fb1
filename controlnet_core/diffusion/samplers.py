"""The samplers by name. Each is a pure function (denoise, x, sigmas, noise, on_step) -> x.

x: (B,C,H,W) noisy latent at sigmas[0]. sigmas: (n + 1,) descending, as made by `make_sigmas`; with fewer than two
of them x comes back unchanged. Samplers keep nothing between calls and leave gradients to the caller. Whatever
`denoise` or `on_step` raises passes through: that is how a run is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from ..errors import ValueRangeError
from .dpm_singlestep import dpm_adaptive, dpm_fast
from .dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s_ancestral, dpmpp_3m_sde, dpmpp_sde
from .karras import dpm_2, dpm_2_ancestral, euler, euler_ancestral, heun, lms
from .steps import Denoise, NoiseSource, OnStep, Step, predictions
from .uni_pc import uni_pc, uni_pc_bh2

__all__ = ["SAMPLERS", "Denoise", "NoiseSource", "OnStep", "Sampler", "Step", "get_sampler", "lcm"]

NoiseKind = Literal["none", "ancestral", "brownian", "brownian_device"]
SampleFunction: TypeAlias = Callable[[Denoise, Tensor, Tensor, NoiseSource, OnStep], Tensor]


@dataclass(frozen=True)
class Sampler:
    """A sampler and what a caller must know to run it.

    noise: the kind of noise it adds between its steps (see `noise_source`).
    drops_penultimate: its sigmas leave out the last one above 0 (see `make_sigmas`).
    fresh_mask_noise: under a noise mask, the part that is kept gets noise of its own (see `mask_noise`).
    """

    name: str
    function: SampleFunction
    noise: NoiseKind = "none"
    drops_penultimate: bool = False
    fresh_mask_noise: bool = False

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: NoiseSource | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Run the sampler. Raises ValueRangeError where it needs noise and no source is given."""
        if noise is None and self.noise != "none":
            raise ValueRangeError(f"sampler {self.name} needs a source of noise and got none: pass noise_source(...)")
        return self.function(denoise, x, sigmas, noise or _refuse_noise, on_step or _ignore_step)


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: NoiseSource, on_step: OnStep) -> Tensor:
    """Latent consistency models (Luo et al., 2023, algorithm 3): take the prediction and add noise to it again."""
    for sigma, sigma_next, predict in predictions(denoise, sigmas, on_step):
        x = predict(x)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * sigma_next
    return x


def get_sampler(name: str) -> Sampler:
    """Find a sampler by name. Raises ValueRangeError, with the choices, for an unknown one."""
    if name not in SAMPLERS:
        raise ValueRangeError(f"sampler {name!r} is unknown: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def _refuse_noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    raise ValueRangeError("a sampler that adds no noise asked for some: report this as a bug of the sampler")


def _ignore_step(step: Step) -> None:
    """The default callback."""


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
    # In sigma, DDIM is Euler's method. ComfyUI's differs from its Euler only by the noise under a mask.
    Sampler("ddim", euler, fresh_mask_noise=True),
    Sampler("lcm", lcm, noise="ancestral"),
    Sampler("uni_pc", uni_pc, drops_penultimate=True),
    Sampler("uni_pc_bh2", uni_pc_bh2, drops_penultimate=True),
    # In sigma, DDPM's posterior (Ho et al., 2020, eq. 7) is the ancestral Euler step.
    Sampler("ddpm", euler_ancestral, noise="ancestral"),
    Sampler("dpm_fast", dpm_fast),
    Sampler("dpm_adaptive", dpm_adaptive),
    # The same samplers with noise from the device's own generator: other numbers than on the CPU.
    Sampler("dpmpp_sde_gpu", dpmpp_sde, noise="brownian_device"),
    Sampler("dpmpp_2m_sde_gpu", dpmpp_2m_sde, noise="brownian_device"),
    Sampler("dpmpp_3m_sde_gpu", dpmpp_3m_sde, noise="brownian_device"),
)
SAMPLERS: Mapping[str, Sampler] = {sampler.name: sampler for sampler in _ALL}
