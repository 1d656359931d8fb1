"""The rule that corrects a strength while sampling, on plants whose response is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from comfyui_controlnet_core.controlnet_core.analysis.charts import draw_closed_loop
from comfyui_controlnet_core.controlnet_core.analysis.closed_loop import StrengthLoop, describe, expected
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError


def follow(loop: StrengthLoop, steps: int, fidelity: Callable[[float], float]) -> float:
    """Run a loop on a plant whose fidelity follows the strength at once. Returns the fidelity at the end."""
    strength = loop.start
    for step, position in enumerate(np.linspace(0.0, 1.0, steps)):
        strength = loop.start * loop(position)
        if loop.is_due(step):
            loop.observe(step, float(position), expected(float(position)) * fidelity(strength))
    return fidelity(loop.strength)


@pytest.mark.parametrize("ease", [0.55, 0.7, 0.9])
def test_hard_and_easy_scenes_end_near_the_target(ease: float) -> None:
    """A scene's fidelity at strength 0.6 is `ease`; in open loop they would differ by 0.35."""
    ended = [follow(StrengthLoop(0.75, 0.6), steps, lambda s: ease + 0.25 * (s - 0.6)) for steps in (20, 40)]
    assert abs(ended[0] - 0.75) < 0.5 * abs(ease - 0.75)
    assert ended[0] == pytest.approx(ended[1], abs=0.02), "the gains depend on the number of steps"


def test_without_an_error_nothing_is_corrected() -> None:
    loop = StrengthLoop(0.8, 0.6)
    follow(loop, 20, lambda _: 0.8)
    assert loop.strength == pytest.approx(0.6) and loop.mean_strength == pytest.approx(0.6)


def test_the_strength_stays_in_its_bounds_and_comes_back_from_them() -> None:
    loop = StrengthLoop(0.9, 1.0, proportional=0.0, integral=50.0, highest=1.2)
    for step in range(10):
        loop.observe(step, 0.5 + step / 100, 0.0)
    assert loop.strength == 1.2
    # Without anti-windup, the sum of ten errors would keep it at the bound for as long again.
    loop.observe(10, 0.61, 1.0)
    loop.observe(11, 0.62, 1.0)
    assert loop.strength < 1.2
    low = StrengthLoop(0.1, 0.5, proportional=1.0)
    low.observe(0, 1.0, 1.0)
    assert low.strength == 0.0 and low(0.3) == 0.0


def test_only_every_kth_step_is_measured() -> None:
    loop = StrengthLoop(0.8, 0.6, every=3)
    follow(loop, 10, lambda _: 0.5)
    assert [m.step for m in loop.measured] == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"target": 0.0}, "target is 0"),
        ({"target": 0.5, "start": 2.0}, "begin with is 2"),
        ({"target": 0.5, "every": 0}, "every 0 steps"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueRangeError, match=said):
        StrengthLoop(**values)  # type: ignore[arg-type]


def test_the_run_as_text_and_as_a_picture() -> None:
    loop = StrengthLoop(0.8, 0.6)
    follow(loop, 4, lambda _: 0.5)
    lines = describe(loop, "canny", 0.61).splitlines()
    assert lines[0].startswith("canny: fidelity 0.610, asked for 0.8") and len(lines) == 2 + 4
    assert lines[2].split()[:2] == ["1", "0.00"]
    assert draw_closed_loop(loop, 0.61, "canny").std() > 0.02
