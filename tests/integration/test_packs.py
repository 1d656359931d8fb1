"""Other packs and our CONTROL_NET: it acts as ComfyUI's own does under everything that they do with one.

Needs COMFYUI_DIR as `test_comfyui.py` does. COMFYUI_PACKS is a folder with clones of packs, for the tests that run the
packs themselves; those of packs that are not there say so.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to run in"),
]
CLOSE = 1e-5


def load_file(name: str) -> ModuleType:
    """A file of this folder as a module."""
    spec = spec_from_file_location(Path(name).stem, Path(__file__).with_name(name))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


host = load_file("test_comfyui.py")
packs = load_file("comfyui_packs.py")
pack = host.pack
TORCH_ATTENTION = "--use-pytorch-cross-attention"


def release() -> tuple[int, int]:
    """The release of the host."""
    text = (Path(os.environ["COMFYUI_DIR"]) / "comfyui_version.py").read_text()
    major, minor = re.findall(r'"(\d+)\.(\d+)', text)[0]
    return int(major), int(minor)


@pytest.fixture(scope="module")
def facts(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenarios of `comfyui_packs.py` found."""
    given = {"SCENARIOS": "calls_of_packs calls_that_raise clones_of_models", "HOST_ARGS": TORCH_ATTENTION}
    return host.run_scenarios(pack, tmp_path_factory.mktemp("packs"), **given)[0]


@pytest.mark.parametrize("name", packs.CASES)
def test_our_net_acts_as_comfyuis_own_under_the_calls_of_a_pack(name: str, facts: dict[str, Any]) -> None:
    found = facts["calls"][name]
    assert isinstance(found, float), found
    assert found <= CLOSE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hint fit", "ValueRangeError: another pack cuts the hint of"),
        ("hint without its mask", "ShapeError: another pack replaced the hint of"),
        ("mask of a keyframe", "ValueRangeError: another pack cuts the hint of"),
    ],
)
def test_what_a_unit_cannot_honour_raises(name: str, message: str, facts: dict[str, Any]) -> None:
    assert facts["raised"][name].startswith(message)


def test_models_are_cloned_for_another_device(facts: dict[str, Any]) -> None:
    parts = ("MODEL", "packed", "CLIP", "VAE") if release() >= (0, 33) else ()
    assert facts["clones"] == {part: [True, True, "cpu:1"] for part in parts}


# ---- the packs themselves

RUNS = {
    "ComfyUI-TiledDiffusion": ("MultiDiffusion", "Mixture of Diffusers", "SpotDiffusion"),
    "ComfyUI-Advanced-ControlNet": ("mask", "weights", "latent keyframes", "timestep keyframes"),
    "ComfyUI_UltimateSDUpscale": ("one tile at a time", "two tiles at a time"),
    "ComfyUI-AnimateDiff-Evolved": ("one hint", "a hint for each frame"),
}
FIRST_RELEASE = {"ComfyUI-Advanced-ControlNet": (0, 33)}
"""Releases of ComfyUI that a pack needs: the first one in which it was seen to load."""


def packs_there() -> list[str]:
    """Packs of COMFYUI_PACKS that this release of ComfyUI can load."""
    if not {"COMFYUI_PACKS", "COMFYUI_DIR"} <= os.environ.keys():
        return []
    folders = Path(os.environ["COMFYUI_PACKS"])
    return [name for name in RUNS if (folders / name).is_dir() and release() >= FIRST_RELEASE.get(name, (0, 0))]


@pytest.fixture(scope="module")
def run_facts(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the packs made with our net, with ComfyUI's own and without."""
    given = {"SCENARIOS": "packs", "HOST_ARGS": TORCH_ATTENTION}
    return host.run_scenarios(pack, tmp_path_factory.mktemp("runs"), **given)[0]


@pytest.mark.parametrize("name", packs_there())
def test_a_pack_makes_the_same_image_with_our_net(name: str, run_facts: dict[str, Any]) -> None:
    assert run_facts["loaded"][name]
    found = run_facts["packs"][name]
    assert isinstance(found, list), found
    for run, result in zip(RUNS[name], found, strict=True):
        assert result["control"] > 100 * CLOSE, run
        assert result["difference"] <= CLOSE, run
        assert result["accelerated"] <= CLOSE, run
