"""Samplers against solutions that are known exactly, and the manners they all share.

Gaussian data N(m, v) has the denoiser D(x) = (v x + sigma^2 m) / (v + sigma^2), and x at sigma is
N(m, v + sigma^2). A prediction f(lambda) that does not depend on x makes the ODE and
the mean of the SDE linear, dx/dlambda = c (f - x) with c = 1 and 2: it shows every order's coefficients.
"""

from __future__ import annotations

import math

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.diffusion.noise import initial_noise, noise_source
from comfyui_controlnet_core.controlnet_core.diffusion.samplers import SAMPLERS, Step, get_sampler
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_sigmas, scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError

MEAN, VARIANCE = 0.3, 0.5
ODE = [name for name, sampler in SAMPLERS.items() if sampler.noise == "none"]
NOISY = [name for name in SAMPLERS if name not in ODE]
NAMES = [
    "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_sde",
    "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "ddim", "lcm", "uni_pc", "uni_pc_bh2", "ddpm", "dpm_fast",
    "dpm_adaptive", "dpmpp_sde_gpu", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde_gpu",
]  # fmt: skip
# These take steps of their own between the ends of the table, and end at the last sigma above 0.
OWN_STEPS = ("dpm_fast", "dpm_adaptive")
WALKING = [name for name in NAMES if name not in OWN_STEPS]


def gaussian(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    sigma = sigma.to(x.dtype)
    return (VARIANCE * x + sigma**2 * MEAN) / (VARIANCE + sigma**2)


def silence(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=torch.float64)


def bump(log_snr: torch.Tensor, centre: float, rise: float) -> torch.Tensor:
    """A smooth prediction that is still 0 while the multistep solvers fill their history."""
    return torch.exp(-rise * (log_snr - centre) ** 2)


def even_table(steps: int, high: float = 12.0, low: float = 0.1) -> torch.Tensor:
    return torch.linspace(math.log(high), math.log(low), steps + 1).exp()


def order_of(errors: list[float]) -> float:
    """The slope of log error over log steps, steps doubling."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def test_all_samplers_are_here() -> None:
    assert list(SAMPLERS) == NAMES
    assert all(name == sampler.name for name, sampler in SAMPLERS.items())


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm_2", 2), ("lms", 3), ("dpmpp_2m", 2), ("uni_pc", 2),
     ("uni_pc_bh2", 2)],
)  # fmt: skip
def test_ode_samplers_converge_to_the_exact_solution(name: str, order: int) -> None:
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        sigmas = even_table(steps)
        spread = (VARIANCE + float(sigmas[-1]) ** 2) / (VARIANCE + float(sigmas[0]) ** 2)
        exact = MEAN + (x - MEAN) * math.sqrt(spread)
        errors.append(float((SAMPLERS[name](gaussian, x, sigmas) - exact).abs().max()))
    assert order_of(errors) > order - 0.25
    assert errors[-1] < (2e-3 if order == 1 else 1e-4)


def errors_of_the_mean(name: str, centre: float = 2.0, rise: float = 1.0) -> list[float]:
    """Distance from the solution for the prediction `bump` at 40, 80 and 160 steps; lambda runs to 2.3."""
    rate = 1 if name in ODE else 2
    x = torch.tensor([2.0], dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        sigmas = even_table(steps)
        start, end = (-math.log(float(sigma)) for sigma in (sigmas[0], sigmas[-1]))
        axis = torch.linspace(start, end, 20001, dtype=torch.float64)
        driven = torch.trapezoid(rate * torch.exp(-rate * (end - axis)) * bump(axis, centre, rise), axis)
        moved = SAMPLERS[name](
            lambda x, sigma: bump(-sigma.double().log(), centre, rise).expand_as(x), x, sigmas, noise=silence
        )
        errors.append(abs(float(moved - x * math.exp(-rate * (end - start)) - driven)))
    return errors


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("heun", 2), ("dpm_2", 2), ("lms", 4), ("dpmpp_2m", 2), ("uni_pc", 2), ("uni_pc_bh2", 2),
     ("euler_ancestral", 1), ("dpm_2_ancestral", 1), ("dpmpp_2s_ancestral", 1), ("dpmpp_sde", 2),
     ("dpmpp_2m_sde", 2), ("dpmpp_3m_sde", 2), ("ddpm", 1)],
)  # fmt: skip
def test_mean_follows_a_prediction_that_moves(name: str, order: int) -> None:
    errors = errors_of_the_mean(name)
    assert order_of(errors) > order - 0.4, errors


def test_the_third_order_sde_has_a_fraction_of_the_seconds_error() -> None:
    """Its published form weighs the second difference by half (see there), hence the same order."""
    assert errors_of_the_mean("dpmpp_3m_sde")[0] < errors_of_the_mean("dpmpp_2m_sde")[0] / 3


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
def test_uni_pc_is_of_higher_order_but_for_its_last_step(name: str) -> None:
    """Where the prediction rests in the end, the first order of the last step does not show."""
    second_order = errors_of_the_mean("dpmpp_2m", centre=0.0, rise=2.0)
    assert errors_of_the_mean(name, centre=0.0, rise=2.0)[0] < second_order[0] / 100


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lcm"])
def test_samples_have_the_datas_mean_and_variance(name: str) -> None:
    sampler = SAMPLERS[name]
    sigmas = make_sigmas(scaled_linear(), "karras", 60, sampler=name)
    x = initial_noise((2, 4, 40, 40), 1) * (VARIANCE + sigmas[0] ** 2).sqrt() + MEAN
    samples = sampler(gaussian, x, sigmas, noise=noise_source(sampler, x, sigmas, 1))
    first_order = name in ("euler", "ddim", "euler_ancestral", "ddpm")
    assert abs(float(samples.mean()) - MEAN) < 0.025  # 4 standard errors
    assert abs(float(samples.var()) / VARIANCE - 1) < (0.13 if first_order or name == "dpm_adaptive" else 0.055)


def test_lcm_repeats_prediction_and_noise() -> None:
    """Its variance is no estimate of the data's: it shrinks by the denoiser's gain squared at each row."""
    sigmas = make_sigmas(scaled_linear(), "karras", 8)
    x = initial_noise((2, 4, 40, 40), 1) * (VARIANCE + sigmas[0] ** 2).sqrt() + MEAN
    source = noise_source(SAMPLERS["lcm"], x, sigmas, 1)
    samples = SAMPLERS["lcm"](gaussian, x, sigmas, noise=source)
    expected = VARIANCE
    for sigma in sigmas[:-1].tolist():
        expected = (VARIANCE / (VARIANCE + sigma**2)) ** 2 * (expected + sigma**2)
    assert abs(float(samples.var()) / expected - 1) < 0.05


@pytest.mark.parametrize("name", WALKING)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_every_step_is_reported_once_and_in_order(name: str, steps: int) -> None:
    sampler = SAMPLERS[name]
    sigmas = make_sigmas(scaled_linear(), "normal", steps, sampler=name)
    x = initial_noise((1, 4, 8, 8), 1) * sigmas[0]
    seen: list[Step] = []
    samples = sampler(gaussian, x, sigmas, noise=noise_source(sampler, x, sigmas, 1), on_step=seen.append)
    assert [(step.index, step.total) for step in seen] == [(i, steps) for i in range(steps)]
    assert torch.equal(torch.stack([step.sigma for step in seen]), sigmas[:-1])
    for step in seen:
        assert step.x.shape == step.denoised.shape == x.shape
        torch.testing.assert_close(step.denoised, gaussian(step.x, step.sigma))
    assert samples.isfinite().all()


@pytest.mark.parametrize("name", WALKING)
def test_the_last_step_to_zero_gives_the_prediction(name: str) -> None:
    sampler = SAMPLERS[name]
    sigmas = torch.tensor([0.8, 0.0])
    x = initial_noise((1, 4, 8, 8), 1)
    samples = sampler(gaussian, x, sigmas, noise=noise_source(sampler, x, sigmas, 1))
    loose = name.startswith("uni_pc")  # it stops at 0.001
    torch.testing.assert_close(samples, gaussian(x, sigmas[0]), rtol=1e-5, atol=5e-3 if loose else 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigmas", [torch.empty(0), torch.tensor([3.0])])
def test_nothing_to_do(name: str, sigmas: torch.Tensor) -> None:
    x = initial_noise((1, 4, 8, 8), 1)
    assert torch.equal(SAMPLERS[name](gaussian, x, sigmas, noise=silence), x)


@pytest.mark.parametrize("name", NAMES)
def test_pure(name: str) -> None:
    """Neither x nor the table is written to, the type stays, and a second run gives the same."""
    sampler = SAMPLERS[name]
    sigmas = make_sigmas(scaled_linear(), "karras", 5, sampler=name)
    x = (initial_noise((2, 4, 8, 8), 1) * sigmas[0]).to(torch.bfloat16)
    kept_x, kept_sigmas = x.clone(), sigmas.clone()
    runs = [sampler(gaussian, x, sigmas, noise=noise_source(sampler, x, sigmas, 9)) for _ in range(2)]
    assert torch.equal(*runs)
    assert runs[0].dtype is torch.bfloat16
    assert torch.equal(x, kept_x)
    assert torch.equal(sigmas, kept_sigmas)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dpm_adaptive"])  # it reads its error
def test_never_waits_for_the_device(name: str) -> None:
    """On the meta device reading a value of x is an error; sigmas stay on the CPU."""
    sigmas = make_sigmas(scaled_linear(), "karras", 5, sampler=name)
    x = torch.empty(1, 4, 8, 8, device="meta")

    def predict(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        assert sigma.device.type == "cpu"
        assert sigma.shape == ()
        assert sigma.dtype is torch.float32
        return x * 0.5

    samples = SAMPLERS[name](predict, x, sigmas, noise=lambda sigma, sigma_next: torch.empty_like(x))
    assert samples.device.type == "meta"
    assert samples.shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_prediction_that_raises_ends_the_run(name: str) -> None:
    class Cancelled(Exception):
        pass

    calls = 0

    def predict(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Cancelled
        return gaussian(x, sigma)

    sigmas = make_sigmas(scaled_linear(), "karras", 6, sampler=name)
    x = initial_noise((1, 4, 8, 8), 1)
    with pytest.raises(Cancelled):
        SAMPLERS[name](predict, x, sigmas, noise=noise_source(SAMPLERS[name], x, sigmas, 1))
    assert calls == 3


@pytest.mark.parametrize("name", WALKING)
def test_evaluations(name: str) -> None:
    two_a_step = name.removesuffix("_gpu") in (
        "heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"
    )  # fmt: skip
    sigmas = make_sigmas(scaled_linear(), "karras", 6, sampler=name)
    x = initial_noise((1, 4, 8, 8), 1)
    calls: list[float] = []

    def predict(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append(float(sigma))
        return gaussian(x, sigma)

    SAMPLERS[name](predict, x, sigmas, noise=noise_source(SAMPLERS[name], x, sigmas, 1))
    assert len(calls) == (2 * 6 - 1 if two_a_step else 6)


@pytest.mark.parametrize("name", NOISY)
def test_a_missing_noise_source_is_an_error(name: str) -> None:
    with pytest.raises(ValueRangeError, match=name):
        SAMPLERS[name](gaussian, torch.zeros(1, 4, 8, 8), torch.tensor([1.0, 0.0]))


def test_an_unknown_sampler_is_an_error_that_names_the_choices() -> None:
    with pytest.raises(ValueRangeError, match=r"'eulr'.*euler_ancestral"):
        get_sampler("eulr")


@pytest.mark.parametrize("steps", range(1, 8))
def test_dpm_fast_evaluates_as_often_as_there_are_steps(steps: int) -> None:
    sigmas = make_sigmas(scaled_linear(), "karras", steps)
    calls: list[float] = []

    def predict(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        calls.append(float(sigma))
        return gaussian(x, sigma)

    seen: list[Step] = []
    SAMPLERS["dpm_fast"](predict, initial_noise((1, 4, 8, 8), 1), sigmas, on_step=seen.append)
    assert len(calls) == steps
    assert calls == sorted(calls, reverse=True)
    assert [(step.index, step.total) for step in seen] == [(i, steps // 3 + 1) for i in range(steps // 3 + 1)]


def test_dpm_adaptive_takes_shorter_steps_where_the_prediction_moves() -> None:
    """The exact solution is met, whatever the table between its ends is, and a sharp bump takes more evaluations."""
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    spread = (VARIANCE + 0.1**2) / (VARIANCE + 12.0**2)
    exact = MEAN + (x - MEAN) * math.sqrt(spread)
    runs = [SAMPLERS["dpm_adaptive"](gaussian, x, even_table(steps)) for steps in (2, 50)]
    assert torch.equal(*runs)
    assert float((runs[0] - exact).abs().max()) < 0.01
    counts = []
    for rise in (1.0, 50.0):
        seen: list[Step] = []
        SAMPLERS["dpm_adaptive"](
            lambda x, sigma, rise=rise: 5 * bump(-sigma.double().log(), 1.0, rise).expand_as(x), x, even_table(20),
            on_step=seen.append,
        )  # fmt: skip
        assert [step.index for step in seen] == list(range(len(seen)))
        counts.append(len(seen))
    assert counts[1] > counts[0]


def test_dpm_fast_is_of_third_order() -> None:
    """Where the evaluations end with a step of order 2, whose own error falls with h^3."""
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    exact = MEAN + (x - MEAN) * math.sqrt((VARIANCE + 0.1**2) / (VARIANCE + 12.0**2))
    errors = [float((SAMPLERS["dpm_fast"](gaussian, x, even_table(n)) - exact).abs().max()) for n in (23, 47, 95)]
    assert order_of(errors) > 2.6, errors
