"""ComfyUI's model-patch controls (Qwen-Image, Z-Image) under our apply node, in ComfyUI itself.

Needs COMFYUI_DIR as `test_comfyui.py` does, of a release that has these controls.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from load_script import load_script

FOLDER = Path(os.environ.get("COMFYUI_DIR", "."))
pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to run in"),
    pytest.mark.skipif(
        not (FOLDER / "comfy/ldm/lumina/controlnet.py").exists(), reason="this release has no control for Z-Image"
    ),
]
CLOSE = 5e-6


host = load_script(Path(__file__).with_name("test_comfyui.py"))
pack = host.pack


@pytest.fixture(scope="module")
def facts(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario found."""
    given = {"SCENARIOS": "model_patches", "HOST_ARGS": "--use-pytorch-cross-attention"}
    return host.run_scenarios(pack, tmp_path_factory.mktemp("patches"), **given)[0]["model patches"]


@pytest.mark.parametrize("case", ["strength", "window", "schedule", "mask", "halves"])
@pytest.mark.parametrize("family", ["Qwen-Image", "Z-Image"])
def test_a_model_patch_does_what_our_apply_node_says(family: str, case: str, facts: dict[str, Any]) -> None:
    found = facts[family][case]
    assert found["changed"] > 1000 * CLOSE
    assert found["difference"] == 0.0 if case == "strength" else found["difference"] <= CLOSE


@pytest.mark.parametrize("family", ["Qwen-Image", "Z-Image"])
def test_what_a_model_patch_cannot_do_raises_and_nothing_is_left(family: str, facts: dict[str, Any]) -> None:
    said = facts[f"{family} said"]
    assert said["mode"].startswith("ValueRangeError: ") and "mode cfg-rw" in said["mode"]
    assert said["base"].startswith("UnfitError: ") and "the model is Stable Diffusion" in said["base"]
    assert said["again"] is True
    assert said["left"] == {}


def test_other_model_patches_are_refused(facts: dict[str, Any]) -> None:
    assert facts["kind"].startswith("UnfitError: the model patch is a Linear")
