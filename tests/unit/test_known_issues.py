"""Problems that users of other ControlNet packages report, and the tests that show how this package handles each."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import comfyui_controlnet_core
import pytest

ROOT = Path(comfyui_controlnet_core.__file__).parent
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Problem:
    """A problem, the threads that report it, and the names of the tests that show how it is handled here."""

    summary: str
    reports: tuple[str, ...]
    tests: tuple[str, ...]


PROBLEMS = (
    Problem(
        "a net of another base fails with 'mat1 and mat2 shapes cannot be multiplied'",
        ("sd-webui-controlnet#2105", "ComfyUI#1453", "ComfyUI#3210"),
        (
            "test_mat1_and_mat2_shapes_another_base_is_named_from_headers",
            "test_mat1_and_mat2_shapes_apply_compares_the_width_of_the_text",
            "test_mat1_and_mat2_shapes_a_run_ends_before_it_loads",
        ),
    ),
    Problem(
        "a control that does not fit is ignored",
        ("ComfyUI#3372", "ComfyUI#3022", "Advanced-ControlNet#212"),
        ("test_control_silently_dropped_an_adapter_on_another_base_is_an_error",),
    ),
    Problem(
        "a model file is not recognised",
        ("ComfyUI#4018", "ComfyUI#6194", "ComfyUI#6956", "diffusers#9976", "diffusers#9208"),
        ("test_file_not_recognised_a_relative_says_what_it_is",),
    ),
    Problem(
        "several nets are slow",
        ("ComfyUI#1807", "ComfyUI#1293"),
        (
            "test_slow_with_several_nets_nothing_runs_at_strength_zero_or_outside_the_window",
            "test_slow_with_several_nets_one_net_on_several_hints_runs_once",
        ),
    ),
    Problem(
        "out of memory",
        ("sd-webui-controlnet#628", "sd-webui-controlnet#375"),
        ("test_out_of_memory_as_many_pictures_as_fit",),
    ),
    Problem(
        "memory is held after a run",
        ("sd-webui-controlnet#360",),
        ("test_memory_held_after_a_run_a_backend_keeps_no_model_alive",),
    ),
    Problem(
        "an update of ComfyUI breaks the pack",
        ("Advanced-ControlNet#124", "Advanced-ControlNet#191"),
        ("test_few_modules_of_comfyui_are_imported",),
    ),
    Problem(
        "modes have no defined meaning",
        ("diffusers#4732", "diffusers#5017", "Advanced-ControlNet#24", "Advanced-ControlNet#87"),
        ("test_modes_undefined_each_multiplies_each_block_by_its_formula",),
    ),
    Problem(
        "results differ between tools",
        ("diffusers#4460", "ComfyUI#1921"),
        ("test_results_differ_between_tools_the_residuals_are_the_hosts",),
    ),
    Problem(
        "masks for parts of the picture do not work",
        ("diffusers#10799", "Advanced-ControlNet#153"),
        ("test_regional_masks_of_two_nets_add_up",),
    ),
    Problem(
        "two parts of a run have different dtypes",
        ("diffusers#9527",),
        ("test_dtype_mismatch_every_kind_runs_in_the_run_s_own",),
    ),
    Problem(
        "there is no trainer in ComfyUI",
        ("ControlNet#265",),
        ("test_the_training_node_makes_a_net_that_can_be_used_immediately",),
    ),
    Problem(
        "training does not converge",
        ("ControlNet#215", "ControlNet#685"),
        ("test_training_that_does_not_converge_the_probe_tells_a_net_for_edges_from_one_for_poses",),
    ),
    Problem(
        "it is unclear which strength acts when",
        ("Advanced-ControlNet#104",),
        ("test_which_strength_acts_when_does_not_depend_on_the_number_of_steps",),
    ),
    Problem(
        "it is unclear whether a hint is cropped",
        ("Advanced-ControlNet#248",),
        ("test_is_my_hint_cropped_not_with_pixel_perfect",),
    ),
)
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
"""All modules of ComfyUI that this package imports. An update of ComfyUI can break each of them."""


@cache
def all_tests() -> frozenset[str]:
    """Return the names of all test functions."""
    trees = (ast.parse(path.read_text("utf-8")) for path in TESTS.rglob("test_*.py"))
    return frozenset(n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.summary)
def test_each_problem_has_its_tests(problem: Problem) -> None:
    missing = [name for name in problem.tests if name not in all_tests()]
    assert not missing, "these tests were renamed or removed: update PROBLEMS"


def test_few_modules_of_comfyui_are_imported() -> None:
    """`pytest -m comfyui` tests that they work, inside ComfyUI."""
    imported = set()
    for path in (ROOT / "nodes" / "comfyui").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            imported |= {name for name in names if name.split(".")[0] in ("comfy", "folder_paths", "nodes", "server")}
    assert imported == HOST_SURFACE
