"""Every name of ComfyUI that we use, with the releases that have it: `host_names.tsv`, made by `host_names.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from load_script import load_script

program = load_script(Path(__file__).with_name("host_names.py"))
OLDEST, NEWEST = "0.3.40", "0.33.0"
V3_NAMES = (
    "Boolean", "Combo", "ComfyNode", "Custom", "Float", "Hidden", "Input", "Int", "NodeOutput", "Output", "Schema",
    "String",
)  # fmt: skip
SOMETIMES = {
    "comfy.model_patcher.CoreModelPatcher": "asked for with a default",
    "comfy.patcher_extension.WrappersMP.PREDICT_NOISE": "asked for with a default",
    "comfy_api.latest.ComfyAPI": "imported where the server has node replacements",
    "comfy_api.latest.io": "without it the nodes are V1 classes",
    "comfy_api.latest.io.NodeReplace": "imported where the server has node replacements",
    **{f"comfy_api.latest.io.{name}": "without it the nodes are V1 classes" for name in V3_NAMES},
}
"""Names that some supported releases lack, and what we do about it."""


def test_the_table_has_the_names_that_we_use() -> None:
    assert set(program.table()) == program.used_names(), "python tests/integration/host_names.py COMFYUI_DIR..."


@pytest.mark.parametrize(("name", "releases"), program.table().items())
def test_every_release_has_a_name_that_we_rely_on(name: str, releases: set[str]) -> None:
    assert NEWEST in releases
    assert (OLDEST not in releases) == (name in SOMETIMES)


@pytest.mark.comfyui
@pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR is not set: no host to look into")
def test_the_table_is_right_about_this_release() -> None:
    checkout = Path(os.environ["COMFYUI_DIR"])
    release = program.release_of(checkout)
    known = {name for name, releases in program.table().items() if release in releases}
    found = program.names_in(checkout, os.environ.get("COMFYUI_PYTHON", sys.executable))
    assert found == known
