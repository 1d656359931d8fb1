"""The same seed gives the same latent in the real host: every sampler on every schedule.

The host runs in a program of its own (`host_sampling.py`), with its whole path from `comfy.sample.sample`
down, on a network of one line; here the same is put together from the engine's parts. Needs COMFYUI_DIR;
COMFYUI_PYTHON names the interpreter of that installation where it is another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_controlnet_core.controlnet_core.diffusion.denoiser import (
    add_noise,
    is_max_denoise,
    scale_input,
    to_x0,
)
from comfyui_controlnet_core.controlnet_core.diffusion.noise import initial_noise, mask_noise, noise_source
from comfyui_controlnet_core.controlnet_core.diffusion.samplers import SAMPLERS
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import SCHEDULERS, make_sigmas, scaled_linear
from load_script import load_script
from safetensors.torch import load_file

program = load_script(Path(__file__).with_name("host_sampling.py"))
Case = program.Case

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set"),
]

TOLERANCE = 1e-5
CASES = [
    *(Case(sampler, scheduler) for sampler, scheduler in product(SAMPLERS, SCHEDULERS)),
    *(Case(sampler, "normal", steps=30, denoise=0.6) for sampler in SAMPLERS),
    *(Case(sampler, "karras", steps=8, masked=True) for sampler in SAMPLERS),
    *(Case(sampler, "karras", steps=8, denoise=0.5, masked=True) for sampler in SAMPLERS),
    *(Case(sampler, "simple", parametrization="v") for sampler in SAMPLERS),
    *(Case(sampler, "normal", steps=2) for sampler in SAMPLERS),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in CASES]))
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    out = folder / "out.safetensors"
    command = [python, str(program.__file__), os.environ["COMFYUI_DIR"], str(folder / "cases.json"), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return load_file(out)


def ours(case: Any, ancestral: str) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """The engine's parts put together as the pipeline does: samples, sigmas, the sigmas asked for."""
    schedule = scaled_linear()
    sampler = SAMPLERS[case.sampler]
    sigmas = make_sigmas(schedule, case.scheduler, case.steps, denoise=case.denoise, sampler=case.sampler)
    noise, latent, mask = initial_noise(case.shape, case.seed), program.latent_of(case), program.mask_of(case)
    x = add_noise(latent, noise, sigmas[0], is_max_denoise(sigmas[0], schedule.sigma_max))
    kept_noise = mask_noise(sampler, noise, case.seed)
    evaluated: list[float] = []

    def predict(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        evaluated.append(float(sigma))
        if mask is not None:
            x = x * mask + add_noise(latent, kept_noise, sigma) * (1 - mask)
        output = program.network(scale_input(x, sigma), schedule.timestep(sigma).expand(len(x)))
        x0 = to_x0(case.parametrization, output, x, sigma)
        return x0 if mask is None else x0 * mask + latent * (1 - mask)

    source = noise_source(sampler, x, sigmas, case.seed, ancestral=ancestral)
    return sampler(predict, x, sigmas, noise=source), sigmas, evaluated


def host_convention(host: dict[str, torch.Tensor]) -> str:
    """Which ancestral seed this host's version uses: told by the first case that draws such noise."""
    number = next(n for n, case in enumerate(CASES) if case.sampler == "euler_ancestral")

    def distance(convention: str) -> float:
        return float((ours(CASES[number], convention)[0] - host[f"samples.{number}"]).abs().max())

    return min(("shifted", "same"), key=distance)


@pytest.mark.parametrize("name", program.SCHEDULES)
def test_tables_are_equal_to_the_bit(name: str, host: dict[str, torch.Tensor]) -> None:
    for steps in program.TABLE_STEPS:
        assert torch.equal(make_sigmas(scaled_linear(), name, steps), host[f"table.{name}.{steps}"]), steps


def test_conversions_are_equal_to_the_bit(host: dict[str, torch.Tensor]) -> None:
    schedule = scaled_linear()
    sigmas, timesteps, percents = program.probes()
    assert torch.equal(schedule.timestep(sigmas), host["timestep"])
    assert torch.equal(schedule.sigma(timesteps), host["sigma"])
    ours = torch.tensor([schedule.percent_to_sigma(percent) for percent in percents])
    assert torch.equal(ours, host["percent"])


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: "-".join(map(str, asdict(CASES[n]).values())))
def test_same_seed_same_latent(number: int, host: dict[str, torch.Tensor]) -> None:
    case = CASES[number]
    samples, sigmas, evaluated = ours(case, host_convention(host))
    assert torch.equal(sigmas, host[f"sigmas.{number}"])
    # The adaptive sampler chooses its sigmas by the error of its steps, so they carry the rounding of the latent.
    rtol = 1e-5 if case.sampler == "dpm_adaptive" else 1e-6
    torch.testing.assert_close(torch.tensor(evaluated), host[f"evaluated.{number}"], rtol=rtol, atol=0)
    expected = host[f"samples.{number}"]
    assert float((samples - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
