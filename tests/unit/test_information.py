"""The information of each step: against known responses, and windows against the steps at which a unit then acts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from comfyui_controlnet_core.controlnet_core.analysis.information import (
    StepInformation,
    describe,
    over_steps,
    step_information,
)
from comfyui_controlnet_core.controlnet_core.diffusion.schedule import make_sigmas, scaled_linear
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from torch import Tensor

SCHEDULE = scaled_linear()


def a_run(values: list[float], scheduler: str = "karras") -> StepInformation:
    """Information of a run with so many steps."""
    sigmas = make_sigmas(SCHEDULE, scheduler, len(values))[:-1].tolist()
    return over_steps(values, sigmas, sigmas, SCHEDULE)


def test_a_known_response_gives_its_information() -> None:
    """x0_predicted = x0 + e + (f - 1) d: F = |d|^2 / e^2, per picture."""
    x0, told = torch.ones(2, 4, 3, 3), []

    def predict(point: int, factor: float) -> Tensor:
        return x0 + (0.5, 2.0)[point] + (factor - 1.0) * 3.0

    found = step_information(predict, x0, [9.0, 1.0], on_point=lambda done, total: told.append((done, total)))
    assert found == pytest.approx([36 * 9 / 0.25, 36 * 9 / 4.0], rel=1e-4)
    assert told == [(1, 2), (2, 2)]
    with pytest.raises(ValueRangeError, match="finished latent"):
        step_information(predict, torch.zeros(1, 4, 2, 2), [1.0])


def test_fisher_information_is_the_curvature_of_the_likelihood() -> None:
    """The formula against its definition: the variance of the score, by drawing from the Gaussian of a step."""
    rng = np.random.default_rng(0)
    slope, variance, w = 0.7, 0.3, 0.4  # a step x' = x + w (x0 - x) without noise of its own
    drawn = w * rng.normal(0.0, variance**0.5, 200_000)
    score = drawn * (w * slope) / (w**2 * variance)  # d log p / d s at the true s
    x0 = torch.ones(1, 1, 1, 1)
    predict = lambda point, factor: x0 + variance**0.5 + (factor - 1.0) * slope  # noqa: E731
    assert step_information(predict, x0, [1.0])[0] == pytest.approx(score.var(), rel=0.02)


@pytest.mark.parametrize(
    ("values", "first", "last"),
    [
        ([1.0] * 10, 0, 9),  # 9 of 10 steps would keep 90 %
        ([0.0, 0.0, 1.0, 1.0, 0.0], 2, 3),
        ([100.0, 1.0, 1.0, 1.0, 1.0], 0, 0),
        ([4.0, 30.0, 30.0, 30.0, 2.0], 1, 4 - 1),
        ([0.0, 0.0, 0.0], 0, 2),  # without information, nothing is cut
    ],
)
def test_the_window_has_the_fewest_steps(values: list[float], first: int, last: int) -> None:
    window = a_run(values).window(0.93)
    assert (window.first, window.last) == (first, last)
    assert window.share == pytest.approx(sum(values[first : last + 1]) / (sum(values) or 1.0))


@pytest.mark.parametrize("scheduler", ["karras", "normal", "exponential", "simple"])
def test_a_unit_acts_at_exactly_the_steps_of_the_window(scheduler: str) -> None:
    values = [0.0] * 3 + [1.0] * 5 + [0.0] * 4
    run = a_run(values, scheduler)
    window = run.window()
    # Positions are entered with three decimals in a node.
    start, end = round(window.start, 3), round(window.end, 3)
    acts = [SCHEDULE.in_window(sigma, start, end) for sigma in run.sigmas]
    assert acts == [value > 0.0 for value in values]


def test_steps_between_the_measured_ones_are_interpolated() -> None:
    """F = sigma^2 is a straight line in logarithms, so it is exact between the points and constant outside."""
    found = over_steps([100.0, 1.0], [10.0, 1.0], [14.0, 10.0, 3.0, 1.0, 0.5], SCHEDULE)
    assert found.values == pytest.approx([100.0, 100.0, 9.0, 1.0, 1.0])
    assert sum(found.shares) == pytest.approx(1.0) and sorted(found.positions) == list(found.positions)
    assert over_steps([0.0, 1.0], [10.0, 1.0], [10.0, 1.0], SCHEDULE).values[0] == 0.0
    with pytest.raises(ValueRangeError, match="no steps"):
        over_steps([1.0], [1.0], [], SCHEDULE)


def test_the_text_has_steps_and_window() -> None:
    text = describe("canny", a_run([0.0, 3.0, 1.0]))
    lines = text.splitlines()
    assert lines[0].startswith("canny: information") and lines[3].split()[-1] == "75.0%"
    assert lines[-1].startswith("proposed window: start_percent 0.") and "steps 2 to 3 keep 100%" in lines[-1]
