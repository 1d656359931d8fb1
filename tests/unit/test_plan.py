"""The plan of a run: what it says is what the engine does."""

from __future__ import annotations

import sys

import matplotlib.style
import numpy as np
import pytest
import torch
from colours import colours_of, viridis
from comfyui_controlnet_core.controlnet_core.analysis.charts import SeenHint, draw_plan, spans
from comfyui_controlnet_core.controlnet_core.config import DEMO
from comfyui_controlnet_core.controlnet_core.control.plan import (
    RunPlan,
    describe,
    describe_settings,
    list_evaluations,
    make_plan,
)
from comfyui_controlnet_core.controlnet_core.control.unit import ControlUnit
from comfyui_controlnet_core.controlnet_core.diffusion.noise import noise_source
from comfyui_controlnet_core.controlnet_core.diffusion.samplers import SAMPLERS, get_sampler
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_sigmas, scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import CoreError
from comfyui_controlnet_core.controlnet_core.models.controlnet import ControlNet

SCHEDULE = scaled_linear()
NET = ControlNet(DEMO.controlnet)
HINT = torch.zeros(1, 3, 128, 128)


def plan(*units: ControlUnit, sampler: str = "euler", steps: int = 10) -> RunPlan:
    sigmas = make_sigmas(SCHEDULE, "karras", steps, sampler=sampler)
    return make_plan(units, DEMO.unet, SCHEDULE, sampler, sigmas, 16, f"{sampler} / karras")


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"dpm_adaptive"}))
def test_the_evaluations_are_those_that_the_sampler_makes(name: str) -> None:
    sampler, sigmas = get_sampler(name), make_sigmas(SCHEDULE, "karras", 5, sampler=name)
    made: list[float] = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        made.append(float(sigma))
        return x * 0.3

    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    sampler(denoise, x, sigmas, noise=noise_source(sampler, x, sigmas, 3))
    found = list_evaluations(name, sigmas)
    assert [sigma for step in found for sigma in step] == made
    if name == "dpm_fast":
        return  # it cuts the schedule into steps of its own
    assert len(found) == 5 and [step[0] for step in found] == sigmas[:-1].tolist()


def test_the_window_selects_what_the_engine_runs() -> None:
    unit = ControlUnit(NET, HINT, start=0.2, end=0.6)
    (planned,) = plan(unit, sampler="heun").units
    for step, sigmas in zip(planned.steps, list_evaluations("heun", make_sigmas(SCHEDULE, "karras", 10)), strict=True):
        assert step.runs == sum(unit.is_active(sigma, SCHEDULE) for sigma in sigmas)
        assert bool(step.why_idle) != unit.is_active(sigmas[0], SCHEDULE)
    reasons = [step.why_idle.split()[0] if step.why_idle else "" for step in planned.steps]
    assert reasons == sorted(reasons, key=["before", "", "after"].index) and len(set(reasons)) == 3


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"strength": 0.0}, "strength 0"),
        ({"block_weights": (0.0,) * 7}, "mode and block weights give 0 for every block"),
        ({"mode": "mid-only", "block_weights": (*(1.0,) * 6, 0.0)}, "mode and block weights give 0 for every block"),
        ({"positive": 0.0, "negative": 0.0}, "its factors for both halves are 0"),
    ],
)
def test_a_net_that_never_runs_says_why(changes: dict, why: str) -> None:
    found = plan(ControlUnit(NET, HINT, **changes))
    assert found.units[0].runs == 0 and {step.why_idle for step in found.units[0].steps} == {why}
    assert f"not run: {why}" in describe(found)


def test_blocks_that_are_not_heard_say_why() -> None:
    found = plan(ControlUnit(NET, HINT, mode="mid-only", block_weights=(1, 1, 1, 1, 1, 1, 0.5)))
    assert found.units[0].why_unused == ("mode mid-only",) * 6 + ("",)
    assert "blocks 0, 1, 2, 3, 4, 5 have no effect: mode mid-only" in describe(found)
    weighted = plan(ControlUnit(NET, HINT, mode="control", block_weights=(1, 0, 1, 1, 1, 1, 1)))
    assert weighted.units[0].why_unused[1] == "block weight 0"
    assert "the positive half only" in describe(weighted)
    assert weighted.units[0].steps[0].weights == pytest.approx([0.825**6, 0, *(0.825**i for i in (4, 3, 2, 1, 0))])


def test_a_curve_shows_in_the_weights() -> None:
    found = plan(ControlUnit(NET, HINT, strength=0.5, curve=lambda t: max(0.0, 1.0 - 2.0 * t)))
    told = [step.weights[0] for step in found.units[0].steps]
    assert told[0] == pytest.approx(0.5) and told == sorted(told, reverse=True) and told[-1] == 0.0
    assert found.units[0].steps[-1].why_idle == "its strength schedule is at 0"
    assert "on a schedule" in describe(found)


def test_the_halves_are_named() -> None:
    assert "the positive half only" in describe_settings(ControlUnit(NET, HINT, negative=0.0))
    assert "the negative half times 0.5 only" in describe_settings(ControlUnit(NET, HINT, positive=0.0, negative=0.5))
    assert "the positive half and the negative half times 0.5" in describe_settings(
        ControlUnit(NET, HINT, negative=0.5)
    )


def test_the_text_puts_equal_steps_on_one_line() -> None:
    lines = describe(plan(ControlUnit(NET, HINT, end=0.5, name="edges"))).splitlines()
    assert lines[0] == "euler / karras: 10 steps, 10 evaluations of the model"
    assert lines[2] == "1  edges, strength 1, 0% to 50%, balanced, both halves; runs in 5 of 10 evaluations"
    assert [line.split()[0] for line in lines[5:]] == ["1-5", "6-10"]
    assert len(lines[5].split()) == 3 + 7


def test_the_picture_shows_weights_as_colours_and_what_is_skipped_as_gray() -> None:
    found = plan(ControlUnit(NET, HINT, end=0.5))
    drawn = draw_plan(found, [SeenHint(np.zeros((8, 8, 3)), "8x8", np.ones((8, 8)))])
    colours = colours_of(drawn)
    assert drawn.dtype == np.float32 and viridis(1.0) in colours and (233, 236, 239) in colours
    assert viridis(1.0) not in colours_of(draw_plan(plan(), []))


def test_a_picture_depends_on_its_input_alone() -> None:
    hint = SeenHint(np.linspace(0, 1, 300 * 200 * 3).reshape(300, 200, 3), "200x300, $x_1$ \\frac{")
    planned = plan(ControlUnit(NET, HINT, name="net $5 and \\frac{1"))
    before = draw_plan(planned, [hint])
    with matplotlib.style.context("dark_background"):
        assert np.array_equal(draw_plan(planned, [hint]), before)
        assert matplotlib.rcParams["figure.facecolor"] == "black"


def test_spans() -> None:
    assert spans([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what Python itself does for a module that cannot be imported
    with pytest.raises(CoreError, match="pip install matplotlib"):
        draw_plan(plan(), [])
