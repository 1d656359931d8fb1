"""Other packs and our CONTROL_NET: it acts as ComfyUI's own does under everything that they do with one.

Needs COMFYUI_DIR as `test_comfyui.py` does. COMFYUI_PACKS is a folder with clones of packs, for the tests that run the
packs themselves; those of packs that are not there say so.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from load_script import load_script

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to run in"),
]
CLOSE = 1e-5


host = load_script(Path(__file__).with_name("test_comfyui.py"))
packs = load_script(Path(__file__).with_name("comfyui_packs.py"))
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
EIGHT_BITS = {"ComfyUI_UltimateSDUpscale"}
"""Packs that round each tile to 8 bits: a difference of 1e-7 can move a value by one step."""

FEW = 1e-3
"""The share of values that may be rounded to another step."""

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
        assert result["control"][0] > 100 * CLOSE, run
        for net in ("difference", "accelerated"):
            largest, share = result[net]
            rounded = name in EIGHT_BITS and largest <= 1.01 / 255 and share <= FEW
            assert largest <= CLOSE or rounded, (run, net, largest, share)


# ---- packs beside ours

ORDERS = ("theirs first", "ours first")


def neighbours() -> list[str]:
    """All packs of COMFYUI_PACKS."""
    if not {"COMFYUI_PACKS", "COMFYUI_DIR"} <= os.environ.keys():
        return []
    return sorted(path.name for path in Path(os.environ["COMFYUI_PACKS"]).iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def beside(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `comfyui_beside.py` found."""
    out = tmp_path_factory.mktemp("beside") / "facts.json"
    program = Path(__file__).with_name("comfyui_beside.py")
    given = [os.environ["COMFYUI_DIR"], str(pack), os.environ["COMFYUI_PACKS"], str(out)]
    # comfyui-prompt-control adds no nodes where pytest runs.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    command = [host.python(), str(program), *given]
    run = subprocess.run(command, capture_output=True, text=True, timeout=host.TIMEOUT, env=environment)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", neighbours())
def test_a_pack_loads_beside_ours(name: str, order: str, beside: dict[str, Any]) -> None:
    """Both keep their nodes, and our net gives the same latent as without the other pack."""
    found, alone = beside[name][order], beside[""][order]
    assert isinstance(found, dict), found
    if not found["others loaded"]:
        pytest.skip(f"{name} itself does not load: {found['reason']}")
    assert found["loaded"] and found["warnings"] == [] == found["taken"] == found["theirs"]
    assert found["nodes"] == alone["nodes"]
    assert found["latent"] == alone["latent"]
