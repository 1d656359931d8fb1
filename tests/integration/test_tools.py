"""Tiled Upscale, Control Sweep and keyframes in ComfyUI, beside what they stand for there, and beside this process.

Needs COMFYUI_DIR as `test_comfyui.py` does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from load_script import load_script

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to run in"),
]
MEAN = 1e-3
PARITY = 1e-4

host = load_script(Path(__file__).with_name("test_comfyui.py"))
scenario = load_script(Path(__file__).with_name("comfyui_tools.py"))
pack, headless = host.pack, host.headless


@pytest.fixture(scope="module")
def found(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the scenario found."""
    given = {"SCENARIOS": "tools", "HOST_ARGS": "--use-pytorch-cross-attention"}
    facts, tensors = host.run_scenarios(pack, tmp_path_factory.mktemp("tools"), **given)
    return facts["tools"], tensors


@pytest.fixture(scope="module")
def facts(found: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> dict[str, Any]:
    return found[0]


@pytest.fixture(scope="module")
def tensors(found: tuple[dict[str, Any], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return found[1]


def test_one_tile_is_the_workflow_without_tiles(facts: dict[str, Any]) -> None:
    assert facts["one tile is bit-equal"] is True
    # Not every step is sent. It rises over all tiles and steps to the end.
    values, totals = zip(*facts["bar"], strict=True)
    assert set(totals) == {6} and list(values) == sorted(set(values)) and values[-1] == 6 and len(values) > 2


def test_tiles_are_the_same_without_comfyui(headless: Any, tensors: dict[str, torch.Tensor]) -> None:
    picture = host.program.start_picture()
    mine = scenario.tiled(headless, scenario.controlled(headless, picture), picture)
    print(f"tiles: mean difference {host.difference(mine, tensors['tools.tiled']):.1e}")
    assert host.difference(mine, tensors["tools.tiled"]) <= MEAN
    assert host.difference(scenario.tiled(headless, headless.prompts, picture), mine) > 10 * MEAN


def test_a_net_of_comfyui_gets_its_part_of_the_hint(tensors: dict[str, torch.Tensor]) -> None:
    error = float((tensors["tools.native"] - tensors["tools.ours"]).abs().max())
    print(f"native net in tiles: {error:.1e}")
    assert error <= PARITY
    assert host.difference(tensors["tools.native"], tensors["tools.tiled"]) > 10 * MEAN


def test_packs_that_cut_hints_cut_further_hints_and_the_masks_of_keyframes(facts: dict[str, Any]) -> None:
    assert facts["cut by a pack"] == [True, True]


def test_an_upscale_model_enlarges_first(facts: dict[str, Any]) -> None:
    if isinstance(facts["upscale model"], str):
        pytest.skip(facts["upscale model"])
    assert facts["upscale model"] is True


def test_a_sweep_is_the_runs_of_its_cells(
    headless: Any, facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    assert torch.equal(tensors["tools.images"][3:], tensors["tools.cell"])
    grid, table, images = scenario.swept(headless, host.program.hint())
    assert host.difference(images, tensors["tools.images"]) <= MEAN
    assert grid.shape == tensors["tools.grid"].shape
    # Scores count pixels, of which a few may differ.
    mine, theirs = ([line.split(",") for line in text.splitlines()] for text in (table, facts["table"]))
    assert [row[:2] for row in mine] == [row[:2] for row in theirs] and len(theirs) == 5
    assert all(abs(float(a[2]) - float(b[2])) <= 0.02 for a, b in zip(mine[1:], theirs[1:], strict=True))


def test_keyframes_are_windows(headless: Any, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    assert facts["keyframes are windows"] is True and facts["also by KSampler"] is True
    mine = headless.picture(headless.controlled(headless.prompts, schedule=scenario.keyframes(headless)))
    (theirs,) = headless.node("VAEDecode", samples={"samples": tensors["tools.keyframes"]}, vae=headless.vae)
    assert host.difference(mine, theirs) <= MEAN
    assert float((tensors["tools.keyframes"] - tensors["tools.plain"]).abs().max()) > 0.1
    assert "no masks or block weights in a schedule" in facts["native net"] or "schedule" in facts["native net"]


def test_a_curve_of_the_editor_is_a_schedule(facts: dict[str, Any]) -> None:
    if facts["curve"] == "none":
        pytest.skip("this release has no curves")
    assert facts["curve"] <= 1e-12 and facts["curve is a schedule"] is True
