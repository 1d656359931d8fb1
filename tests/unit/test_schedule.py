"""Sigma tables, timesteps, noise, and the two parametrizations."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import (
    add_noise,
    is_max_denoise,
    scale_input,
    to_x0,
    training_target,
)
from comfyui_controlnet_core.controlnet_core.diffusion.noise import (
    ancestral_noise,
    brownian_noise,
    initial_noise,
    mask_noise,
    noise_source,
)
from comfyui_controlnet_core.controlnet_core.diffusion.samplers import SAMPLERS
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import (
    ALWAYS,
    SCHEDULERS,
    NoiseSchedule,
    make_sigmas,
    scaled_linear,
)
from comfyui_controlnet_core.controlnet_core.errors import ShapeError, ValueRangeError
from comfyui_controlnet_core.controlnet_core.sample import SampleSettings

SCHEDULE = scaled_linear()
# Recorded from ComfyUI 0.3.64.
SD15_TABLES = {
    "normal": [14.6146402, 4.08608103, 1.61558032, 0.695149541, 0.0291671604, 0.0],
    "karras": [14.6146431, 4.79653454, 1.27410078, 0.247949973, 0.0291671772, 0.0],
    "exponential": [14.6146402, 3.08897638, 0.652891755, 0.137996376, 0.0291671604, 0.0],
    "sgm_uniform": [14.6146402, 5.09240818, 2.27973056, 1.16286457, 0.571188867, 0.0],
    "simple": [14.6146412, 5.08776331, 2.27646303, 1.16057837, 0.569284916, 0.0],
    "ddim_uniform": [5.13443089, 2.29285383, 1.16821599, 0.574050248, 0.0413144119, 0.0],
    "beta": [14.6146412, 7.37184429, 2.61523581, 1.02732933, 0.39550969, 0.0],
}


def test_training_sigmas_of_stable_diffusion() -> None:
    assert SCHEDULE.sigmas.shape == (1000,)
    assert SCHEDULE.sigmas.dtype is torch.float32
    assert SCHEDULE.sigma_min == pytest.approx(0.0291671585)
    assert SCHEDULE.sigma_max == pytest.approx(14.6146412)
    assert bool((SCHEDULE.sigmas.diff() > 0).all())


def test_timestep_inverts_sigma() -> None:
    assert torch.equal(SCHEDULE.timestep(SCHEDULE.sigmas), torch.arange(1000.0))
    torch.testing.assert_close(SCHEDULE.sigma(torch.arange(1000)), SCHEDULE.sigmas, rtol=2e-6, atol=0)


def test_timestep_is_the_nearest_on_the_log_axis() -> None:
    halfway = (SCHEDULE.log_sigmas[500] + SCHEDULE.log_sigmas[501]) / 2
    assert SCHEDULE.timestep((halfway - 1e-4).exp()) == 500.0
    assert SCHEDULE.timestep((halfway + 1e-4).exp()) == 501.0
    assert SCHEDULE.timestep(torch.tensor([1e-9, 1e9])).tolist() == [0.0, 999.0]
    assert SCHEDULE.timestep(torch.ones(2, 3)).shape == (2, 3)
    assert SCHEDULE.timestep(torch.tensor(1.0, dtype=torch.float16)).dtype is torch.float32


def test_sigma_is_log_linear_between_timesteps_and_clamped() -> None:
    between = SCHEDULE.sigma(torch.tensor(10.25))
    expected = math.exp(0.75 * float(SCHEDULE.log_sigmas[10]) + 0.25 * float(SCHEDULE.log_sigmas[11]))
    assert float(between) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(SCHEDULE.sigma(torch.tensor([-5.0, 2000.0])), SCHEDULE.sigmas[[0, -1]])


def test_percent_walks_the_timesteps_from_the_top() -> None:
    assert SCHEDULE.percent_to_sigma(0.0) == SCHEDULE.percent_to_sigma(-1.0) == ALWAYS
    assert SCHEDULE.percent_to_sigma(1.0) == SCHEDULE.percent_to_sigma(2.0) == 0.0
    assert SCHEDULE.percent_to_sigma(0.5) == pytest.approx(float(SCHEDULE.sigma(torch.tensor(499.5))))
    assert SCHEDULE.percent_to_sigma(1e-9) == pytest.approx(SCHEDULE.sigma_max)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_tables_of_stable_diffusion(name: str) -> None:
    sigmas = make_sigmas(SCHEDULE, name, 5)
    assert sigmas.dtype is torch.float32
    torch.testing.assert_close(sigmas, torch.tensor(SD15_TABLES[name]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 4, 20, 50])
def test_tables_descend_to_zero(name: str, steps: int) -> None:
    sigmas = make_sigmas(SCHEDULE, name, steps)
    assert len(sigmas) == steps + 1
    assert bool((sigmas.diff() < 0).all())
    assert sigmas[-1] == 0


def test_tables_that_do_not_keep_the_number_of_steps() -> None:
    assert len(make_sigmas(SCHEDULE, "ddim_uniform", 30)) == 32
    assert len(make_sigmas(SCHEDULE, "beta", 300)) < 301


@pytest.mark.parametrize("name", SCHEDULERS)
def test_denoise_walks_the_lower_end_of_a_longer_table(name: str) -> None:
    whole = make_sigmas(SCHEDULE, name, 33)
    assert torch.equal(make_sigmas(SCHEDULE, name, 20, denoise=0.6), whole[-21:])
    assert torch.equal(make_sigmas(SCHEDULE, name, 33, denoise=0.99995), whole)
    assert len(make_sigmas(SCHEDULE, name, 20, denoise=0.0)) == 0


@pytest.mark.parametrize("sampler", ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"])
def test_the_penultimate_sigma_is_dropped(sampler: str) -> None:
    longer = make_sigmas(SCHEDULE, "karras", 8)
    expected = torch.cat([longer[:-2], longer[-1:]])
    assert torch.equal(make_sigmas(SCHEDULE, "karras", 7, sampler=sampler), expected)
    part = make_sigmas(SCHEDULE, "karras", 7, denoise=0.5, sampler=sampler)
    assert torch.equal(part, make_sigmas(SCHEDULE, "karras", 14, sampler=sampler)[-8:])


def test_only_four_samplers_drop_it() -> None:
    assert [name for name, sampler in SAMPLERS.items() if sampler.drops_penultimate] == [
        "dpm_2",
        "dpm_2_ancestral",
        "uni_pc",
        "uni_pc_bh2",
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scheduler": "carras"}, "carras.*karras"),
        ({"steps": 0}, "steps is 0"),
        ({"denoise": 1.5}, "denoise is 1.5"),
        ({"denoise": float("nan")}, "denoise is nan"),
        ({"sampler": "eular"}, "eular.*euler"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, object], words: str) -> None:
    arguments = {"scheduler": "normal", "steps": 5, **wrong}
    with pytest.raises(ValueRangeError, match=words):
        make_sigmas(SCHEDULE, **arguments)  # type: ignore[arg-type]


def test_a_schedule_of_another_length() -> None:
    """Everything follows the schedule, nothing the number 1000."""
    short = scaled_linear(timesteps=100)
    assert short.percent_to_sigma(0.5) == pytest.approx(float(short.sigma(torch.tensor(49.5))))
    for name in SCHEDULERS:
        assert float(make_sigmas(short, name, 5)[0]) <= short.sigma_max * 1.0001


def test_a_schedule_needs_two_vectors_of_one_length() -> None:
    with pytest.raises(ShapeError, match=r"\(3,\).*\(4,\)"):
        NoiseSchedule(torch.ones(3), torch.ones(4))


# ---- noise


@pytest.mark.parametrize("seed", [0, 1, 20231, 2**32 + 5, 2**64 - 1])
def test_initial_noise_is_that_of_the_global_generator(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = torch.randn(2, 4, 16, 16)
    assert torch.equal(initial_noise((2, 4, 16, 16), seed), expected)


def test_initial_noise_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    initial_noise((1, 4, 8, 8), 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_picture_of_a_batch_can_be_made_again_by_itself() -> None:
    batch = initial_noise((4, 4, 8, 8), 3, batch_index=[0, 1, 2, 3])
    assert torch.equal(initial_noise((1, 4, 8, 8), 3, batch_index=[2]), batch[2:3])
    assert torch.equal(initial_noise((3, 4, 8, 8), 3, batch_index=[3, 1, 3]), batch[[3, 1, 3]])
    assert torch.equal(initial_noise((1, 4, 8, 8), 3), batch[:1])


@pytest.mark.parametrize("batch_index", [[0], [0, -1], [0, 1, 2]])
def test_a_wrong_batch_index_is_named(batch_index: list[int]) -> None:
    with pytest.raises(ValueRangeError, match="batch_index"):
        initial_noise((2, 4, 8, 8), 3, batch_index=batch_index)


def test_ancestral_conventions() -> None:
    x, one, zero = initial_noise((1, 4, 8, 8), 7), torch.tensor(1.0), torch.tensor(0.0)
    draws = {name: ancestral_noise(x, 7, name)(one, zero) for name in ("shifted", "same", "cpu")}
    assert torch.equal(draws["same"], x), "the old way repeats the initial noise"
    assert torch.equal(draws["shifted"], initial_noise(x.shape, 8))
    assert torch.equal(draws["cpu"], draws["shifted"])
    with pytest.raises(ValueRangeError, match="sideways"):
        ancestral_noise(x, 7, "sideways")  # type: ignore[arg-type]


def test_the_highest_seed_has_a_next_one() -> None:
    x = torch.zeros(1, 4, 8, 8)
    draw = ancestral_noise(x, 2**64 - 1)(torch.tensor(1.0), torch.tensor(0.5))
    assert torch.equal(draw, initial_noise(x.shape, 0))


def test_brownian_noise_belongs_to_the_path() -> None:
    """Two short increments make up the long one, whatever else was asked before."""
    sigmas = torch.tensor([10.0, 6.0, 2.0, 0.0])
    x = torch.zeros(1, 4, 8, 8)
    whole = brownian_noise(x, sigmas, 5)(sigmas[0], sigmas[2]) * math.sqrt(8.0)
    path = brownian_noise(x, sigmas, 5)
    parts = [path(sigmas[i], sigmas[i + 1]) * math.sqrt(4.0) for i in (1, 0)]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(path(sigmas[2], sigmas[0]) * math.sqrt(8.0), -whole, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_brownian_noise_has_unit_variance_and_no_warnings() -> None:
    sigmas = make_sigmas(SCHEDULE, "karras", 12)
    x = torch.zeros(1, 4, 48, 48, dtype=torch.float32)
    path = brownian_noise(x, sigmas, 5)
    for sigma, sigma_next in pairwise(sigmas[:-1]):
        noise = path(sigma, sigma_next)
        assert abs(float(noise.mean())) < 0.05
        assert abs(float(noise.std()) - 1) < 0.05


def test_each_sampler_gets_the_noise_it_asks_for() -> None:
    x, sigmas = torch.zeros(1, 4, 8, 8), make_sigmas(SCHEDULE, "karras", 5)
    for sampler in SAMPLERS.values():
        source = noise_source(sampler, x, sigmas, 1)
        assert (source is None) == (sampler.noise == "none")
    kinds = {name: sampler.noise for name, sampler in SAMPLERS.items()}
    assert [name for name, kind in kinds.items() if kind == "brownian"] == [
        "dpmpp_sde",
        "dpmpp_2m_sde",
        "dpmpp_3m_sde",
    ]


def test_only_ddim_masks_with_noise_of_its_own() -> None:
    noise = initial_noise((1, 4, 8, 8), 7)
    assert mask_noise(SAMPLERS["euler"], noise, 7) is noise
    assert torch.equal(mask_noise(SAMPLERS["ddim"], noise, 7), initial_noise(noise.shape, 8))


# ---- parametrization


@pytest.mark.parametrize("parametrization", ["eps", "v"])
@pytest.mark.parametrize("sigma", [torch.tensor(0.7), torch.tensor([0.05, 14.6])])
def test_the_training_target_denoises_exactly(parametrization: str, sigma: torch.Tensor) -> None:
    latent, noise = initial_noise((2, 4, 8, 8), 1).double(), initial_noise((2, 4, 8, 8), 2).double()
    sigma = sigma.double()
    x = add_noise(latent, noise, sigma)
    target = training_target(parametrization, latent, noise, sigma)  # type: ignore[arg-type]
    torch.testing.assert_close(to_x0(parametrization, target, x, sigma), latent)  # type: ignore[arg-type]


def test_the_network_sees_the_variance_preserving_latent() -> None:
    """At timestep t: sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) n (Ho et al., 2020, eq. 4)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = (1 - betas).cumprod(0)[300]
    latent, noise = initial_noise((1, 4, 8, 8), 1), initial_noise((1, 4, 8, 8), 2)
    seen = scale_input(add_noise(latent, noise, SCHEDULE.sigmas[300]), SCHEDULE.sigmas[300])
    expected = (alpha_bar**0.5 * latent + (1 - alpha_bar) ** 0.5 * noise).float()
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


def test_full_denoise_starts_from_noise_of_the_networks_variance() -> None:
    noise, sigma = initial_noise((1, 4, 8, 8), 1), torch.tensor(SCHEDULE.sigma_max)
    x = add_noise(torch.zeros_like(noise), noise, sigma, max_denoise=True)
    torch.testing.assert_close(scale_input(x, sigma), noise)


def test_max_denoise_is_told_by_the_first_sigma() -> None:
    high = SCHEDULE.sigma_max
    for name in SCHEDULERS:
        first = make_sigmas(SCHEDULE, name, 20)[0]
        assert is_max_denoise(first, high) == (name != "ddim_uniform")
    assert is_max_denoise(high * 2, high)
    assert not is_max_denoise(make_sigmas(SCHEDULE, "karras", 20, denoise=0.8)[0], high)


def test_an_unknown_parametrization_is_named() -> None:
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueRangeError, match="'x0'"):
        to_x0("x0", x, x, torch.tensor(1.0))  # type: ignore[arg-type]
    with pytest.raises(ValueRangeError, match="'x0'"):
        training_target("x0", x, x, torch.tensor(1.0))  # type: ignore[arg-type]


WRONG_STEPS = [
    {"start_step": -1},
    {"end_step": -1},
    {"sigmas": (1.0, 0.0), "start_step": 1},
    {"sigmas": (1.0, 0.0), "end_step": 1},
]


@pytest.mark.parametrize("wrong", WRONG_STEPS, ids=str)
def test_steps_that_do_not_exist_or_would_not_count_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueRangeError, match="start_step"):
        SampleSettings(**wrong)
