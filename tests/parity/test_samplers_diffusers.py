"""The samplers beside diffusers' schedulers, where both are the same algorithm, on the same sigmas and noise.

Two have no counterpart. `dpmpp_2s_ancestral` is not offered there; the third-order SDE solver adds -0.5
where its second difference needs +0.5 to vanish with the step. Both are held to the exact solution in
tests/unit/test_samplers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.diffusion.noise import brownian_noise
from comfyui_controlnet_core.controlnet_core.diffusion.samplers import SAMPLERS
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import (
    NoiseSchedule,
    exponential,
    karras,
    make_sigmas,
    normal,
    scaled_linear,
)

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy 2 in diffusers

TOLERANCE = 1e-5
STEPS = 20
SHAPE = (2, 4, 8, 8)
KARRAS = {"use_karras_sigmas": True}
MULTISTEP = {**KARRAS, "solver_order": 2, "final_sigmas_type": "zero"}
EXACT_LCM = {"clip_sample": False, "timestep_scaling": 1e6}  # no share of the noisy input in the output


def as_listed(scheduler: Any) -> torch.Tensor:
    return scheduler.sigmas


def every_other(scheduler: Any) -> torch.Tensor:
    """Schedulers with two evaluations a step list the inner sigmas twice."""
    return torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])[: STEPS + 1]


def of_timesteps(scheduler: Any) -> torch.Tensor:
    return torch.cat([scaled_linear().sigmas[scheduler.timesteps], torch.zeros(1)])


def outer(scheduler: Any, index: int) -> torch.Tensor:
    return scheduler.sigmas[index]


def of_timestep(scheduler: Any, index: int) -> torch.Tensor:
    return scaled_linear().sigmas[scheduler.timesteps[index]]


def inner_or(name: str, shift: int) -> Callable[[Any, int], torch.Tensor]:
    """The sigma of the evaluation at hand, which in every other call is one between the rows."""
    return lambda s, i: s.sigmas[i] if s.state_in_first_order else getattr(s, name)[i + shift]


@dataclass(frozen=True)
class Pair:
    """A sampler of ours and its counterpart. `preserving`: that one holds x scaled by alpha."""

    ours: str
    theirs: str
    options: dict[str, Any] = field(default_factory=dict)
    table: Callable[[Any], torch.Tensor] = as_listed
    sigma_at: Callable[[Any, int], torch.Tensor] = outer
    preserving: bool = False


PAIRS = [
    Pair("euler", "EulerDiscreteScheduler"),
    Pair("euler", "EulerDiscreteScheduler", KARRAS),
    Pair("euler_ancestral", "EulerAncestralDiscreteScheduler"),
    Pair("heun", "HeunDiscreteScheduler", KARRAS, every_other),
    Pair("dpm_2", "KDPM2DiscreteScheduler", KARRAS, every_other, inner_or("sigmas_interpol", 0)),
    Pair("dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler", KARRAS, every_other,
         inner_or("sigmas_interpol", -1)),
    Pair("dpmpp_2m", "DPMSolverMultistepScheduler", MULTISTEP, preserving=True),
    Pair("dpmpp_2m_sde", "DPMSolverMultistepScheduler", {**MULTISTEP, "algorithm_type": "sde-dpmsolver++"},
         preserving=True),
    Pair("ddim", "DDIMScheduler", {"clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading"},
         of_timesteps, of_timestep, preserving=True),
    Pair("lcm", "LCMScheduler", EXACT_LCM, of_timesteps, of_timestep, preserving=True),
]  # fmt: skip


def predict(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A smooth, nonlinear prediction of x0 that mixes neighbours."""
    gain = 0.5 / (0.5 + sigma**2)
    return gain * x + 0.1 * torch.sin(x / (1 + sigma)) + 0.05 * gain * x.roll(1, -1)


def start(sigma: torch.Tensor) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)) * sigma


def drawn(seed: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(SHAPE, generator=generator)


def make(name: str, **options: Any) -> Any:
    training = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = getattr(diffusers, name)(**training, **options)
    scheduler.set_timesteps(STEPS)
    return scheduler


def walk(
    scheduler: Any,
    x: torch.Tensor,
    sigma_at: Callable[[Any, int], torch.Tensor] = outer,
    preserving: bool = False,
    **step: Any,
) -> torch.Tensor:
    """diffusers' loop from x = x0 + sigma * n; what comes out is scaled as that scheduler holds it."""
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = sigma_at(scheduler, index)
        alpha = 1 / (1 + sigma**2).sqrt() if preserving else torch.ones(())
        if index == 0:
            x = x * alpha
        scheduler.scale_model_input(x, timestep)
        eps = (x / alpha - predict(x / alpha, sigma)) / sigma
        x = scheduler.step(eps, timestep, x, **step).prev_sample
    return x


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((actual - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.ours}-{pair.theirs}")
def test_same_algorithm(pair: Pair) -> None:
    scheduler = make(pair.theirs, **pair.options)
    sigmas = pair.table(scheduler)
    noisy = SAMPLERS[pair.ours].noise != "none"
    step = {"generator": torch.Generator().manual_seed(3)} if noisy else {}
    expected = walk(scheduler, start(sigmas[0]), pair.sigma_at, pair.preserving, **step)
    assert_close(SAMPLERS[pair.ours](predict, start(sigmas[0]), sigmas, noise=drawn(3)), expected)


def test_lms_up_to_its_last_step() -> None:
    """To 0 itself we take the prediction, diffusers the multistep formula."""
    scheduler = make("LMSDiscreteScheduler", **KARRAS)
    sigmas = scheduler.sigmas
    scheduler.timesteps = scheduler.timesteps[:-1]
    assert_close(SAMPLERS["lms"](predict, start(sigmas[0]), sigmas[:-1]), walk(scheduler, start(sigmas[0])))


def test_dpmpp_sde() -> None:
    scheduler = make("DPMSolverSDEScheduler", **KARRAS)
    scheduler.noise_sampler = drawn(3)
    sigmas = every_other(scheduler)

    def sigma_at(scheduler: Any, index: int) -> torch.Tensor:
        return scheduler.sigmas[index] if scheduler.state_in_first_order else scheduler.mid_point_sigma

    expected = walk(scheduler, start(sigmas[0]), sigma_at)
    assert_close(SAMPLERS["dpmpp_sde"](predict, start(sigmas[0]), sigmas, noise=drawn(3)), expected)


@pytest.mark.parametrize(("ours", "variant"), [("uni_pc", "bh1"), ("uni_pc_bh2", "bh2")])
def test_uni_pc(ours: str, variant: str) -> None:
    """Down to 0.1: below that the way through alpha loses digits in float32 (see `half_log_snr`)."""
    scheduler = make("UniPCMultistepScheduler", solver_type=variant, solver_order=3, **KARRAS)
    sigmas = torch.linspace(2.6, -2.3, STEPS + 1).exp()
    scheduler.sigmas = sigmas
    held = walk(scheduler, start(sigmas[0]), preserving=True)
    expected = held * (1 + sigmas[-1] ** 2).sqrt()
    assert_close(SAMPLERS[ours](predict, start(sigmas[0]), sigmas), expected)


def test_brownian_path_is_the_same() -> None:
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    sigmas = make_sigmas(scaled_linear(), "karras", 6)
    x = torch.zeros(SHAPE)
    theirs = BrownianTreeNoiseSampler(x, sigmas[-2], sigmas[0], seed=11)
    ours = brownian_noise(x, sigmas, 11)
    for sigma, sigma_next in pairwise(sigmas[1:-1]):
        assert torch.equal(ours(sigma, sigma_next), theirs(sigma, sigma_next))


TABLES = [
    (karras, KARRAS),
    (exponential, {"use_exponential_sigmas": True}),
    (normal, {"timestep_spacing": "linspace"}),
]


@pytest.mark.parametrize(("table", "options"), TABLES)
def test_tables(table: Callable[[NoiseSchedule, int], torch.Tensor], options: dict[str, Any]) -> None:
    """Their alpha_bar is float32, whose last digit is 3.5e-5 of the lowest sigma; and their third table is
    linear in sigma between two timesteps, ours in log sigma."""
    expected = make("EulerDiscreteScheduler", **options).sigmas
    torch.testing.assert_close(table(scaled_linear(), STEPS), expected, rtol=4e-5, atol=0)
