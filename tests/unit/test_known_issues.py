"""What users of other ControlNet packages suffer from, and the tests of the cure, each named after its pain.

The evidence is threads of the projects named here; what is done about each is in the tests themselves.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import comfyui_controlnet_core
import pytest

ROOT = Path(comfyui_controlnet_core.__file__).parent
TESTS = Path(__file__).parents[1]
PAINS = {
    "mat1_and_mat2_shapes": ("sd-webui-controlnet#2105", "ComfyUI#1453", "ComfyUI#3210"),
    "control_silently_dropped": ("ComfyUI#3372", "ComfyUI#3022", "Advanced-ControlNet#212"),
    "file_not_recognised": ("ComfyUI#4018", "ComfyUI#6194", "ComfyUI#6956", "diffusers#9976", "diffusers#9208"),
    "slow_with_several_nets": ("ComfyUI#1807", "ComfyUI#1293"),
    "out_of_memory": ("sd-webui-controlnet#628", "sd-webui-controlnet#375"),
    "memory_held_after_a_run": ("sd-webui-controlnet#360",),
    "breaks_when_the_host_is_updated": ("Advanced-ControlNet#124", "Advanced-ControlNet#191"),
    "modes_undefined": ("diffusers#4732", "diffusers#5017", "Advanced-ControlNet#24", "Advanced-ControlNet#87"),
    "results_differ_between_tools": ("diffusers#4460", "ComfyUI#1921"),
    "regional_masks": ("diffusers#10799", "Advanced-ControlNet#153"),
    "dtype_mismatch": ("diffusers#9527",),
    "no_trainer_in_the_editor": ("ControlNet#265",),
    "training_that_does_not_converge": ("ControlNet#215", "ControlNet#685"),
    "which_strength_acts_when": ("Advanced-ControlNet#104",),
    "is_my_hint_cropped": ("Advanced-ControlNet#248",),
}
"""Pain -> where it was reported."""
HOST_SURFACE = {
    "comfy.controlnet",
    "comfy.k_diffusion.sampling",
    "comfy.latent_formats",
    "comfy.ldm.modules.attention",
    "comfy.model_base",
    "comfy.model_management",
    "comfy.model_patcher",
    "comfy.model_sampling",
    "comfy.ops",
    "comfy.patcher_extension",
    "comfy.sample",
    "comfy.samplers",
    "comfy.sd",
    "comfy.supported_models",
    "comfy.supported_models_base",
    "comfy.utils",
    "folder_paths",
}
"""All modules of the host that this package touches. Each more is one more that an update of the host can break."""


@cache
def all_tests() -> tuple[str, ...]:
    """Names of all test functions."""
    trees = (ast.parse(path.read_text("utf-8")) for path in TESTS.rglob("test_*.py"))
    return tuple(n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


def named(start: str) -> list[str]:
    """Names of all test functions that begin so."""
    return [name for name in all_tests() if name.startswith(start)]


@pytest.mark.parametrize("pain", PAINS)
def test_each_pain_has_a_test(pain: str) -> None:
    assert named(f"test_pain_{pain}"), f"no test_pain_{pain}_..."


def test_each_such_test_is_of_a_known_pain() -> None:
    strange = [n for n in named("test_pain_") if not any(n.startswith(f"test_pain_{pain}") for pain in PAINS)]
    assert not strange


def test_pain_breaks_when_the_host_is_updated_few_of_its_modules_are_touched() -> None:
    """What they do is tested in the host itself: `pytest -m comfyui`."""
    touched = set()
    for path in (ROOT / "nodes" / "comfyui").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            touched |= {name for name in names if name.split(".")[0] in ("comfy", "folder_paths", "nodes", "server")}
    assert touched == HOST_SURFACE
