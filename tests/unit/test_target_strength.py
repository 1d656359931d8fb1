"""The search for a strength: on curves that are known, by the command, and by the node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from comfyui_controlnet_core.controlnet_core.analysis.charts import draw_target_strength
from comfyui_controlnet_core.controlnet_core.analysis.target_strength import (
    TOLERANCE,
    TargetStrength,
    find_strength,
)
from comfyui_controlnet_core.controlnet_core.errors import ValueRangeError
from comfyui_controlnet_core.workflows import cli
from PIL import Image

STEPS = 20
CURVES: dict[str, Callable[[float], float]] = {
    "straight": lambda s: 0.5 * s,
    "sudden": lambda s: 0.1 + 0.8 / (1.0 + np.exp(-12.0 * (s - 0.7))),
    "a peak": lambda s: 0.9 - 0.8 * (s - 1.0) ** 2,
    "saturated": lambda s: min(0.75, s),
}


def search(curve: Callable[[float], float], target: float, unfinished: float = 0.1, runs: int = 3) -> TargetStrength:
    """Search where a short run's fidelity is lower by a part of it."""
    return find_strength(lambda s, steps: curve(s) * (1 - unfinished * (steps < STEPS)), target, STEPS, full_runs=runs)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", CURVES)
def test_the_target_is_hit_on_the_rising_side(name: str, target: float) -> None:
    curve = CURVES[name]
    found = search(curve, target, runs=4)
    assert found.reached
    assert abs(found.best.fidelity - target) <= TOLERANCE
    smallest = next(s for s in np.linspace(0, 1.5, 1501) if curve(s) >= target)
    assert found.best.strength == pytest.approx(smallest, abs=0.1)
    assert 1 <= len(found.short) <= 3 and 1 <= len(found.full) <= 4


def test_a_target_out_of_reach_gives_the_best_and_says_so() -> None:
    found = search(CURVES["a peak"], 0.97)
    assert not found.reached
    assert found.best.fidelity == pytest.approx(0.9, abs=0.01) and found.best.strength == pytest.approx(1.0, abs=0.1)


def test_where_any_strength_is_enough_a_small_one_is_found() -> None:
    found = search(lambda s: 0.85 + 0.1 * s, 0.8, unfinished=0.0)
    assert found.reached and found.best.strength < 0.3


@pytest.mark.parametrize(("target", "runs"), [(0.0, 3), (1.2, 3), (float("nan"), 3), (0.8, 0)])
def test_targets_and_counts_out_of_range(target: float, runs: int) -> None:
    with pytest.raises(ValueRangeError, match=r"expected a fidelity|at least 1"):
        search(CURVES["straight"], target, runs=runs)


def test_the_plot_shows_both_kinds_of_runs() -> None:
    picture = draw_target_strength(search(CURVES["sudden"], 0.7), "F1")
    assert picture.shape == (420, 640, 3) and picture.std() > 0.05


def test_the_command_saves_the_picture_of_the_strength_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "0.3", "--runs", "1", "--output", str(tmp_path), "--json", "--quiet"]
    assert cli.main(["tune", "canny_photo", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    picture, plot = (Path(path) for path in told["files"])
    with Image.open(picture) as image:
        prompt = json.loads(image.text["prompt"])  # type: ignore[attr-defined]
    assert prompt["16"]["inputs"]["strength"] == pytest.approx(told["strength"], abs=1e-3)
    assert told["before"]["strength"] == 1.0
    assert prompt["17"]["inputs"]["steps"] == 20 and "sweep_fidelity" not in prompt
    assert plot.is_file() and told["measure"] == "F1" and told["full"][0]["fidelity"] == told["fidelity"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["depth_and_pose"], "name one with --node"),
        (["canny_photo", "--node", "Photograph"], "has no input strength"),
        (["canny_photo", "--node", "With control", "--picture", "The edges"], "does not depend on"),
        (["canny_photo", "--target", "2"], "expected a fidelity"),
    ],
)
def test_what_cannot_be_tuned(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", *options, "--output", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))
