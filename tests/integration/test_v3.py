"""Our nodes in ComfyUI's V3 schema, in ComfyUI itself.

Needs COMFYUI_DIR as `test_comfyui.py` does, of a release that has this schema.
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
    pytest.mark.skipif(not (FOLDER / "comfy_api/latest").exists(), reason="this release has V1 nodes only"),
]


host = load_script(Path(__file__).with_name("test_comfyui.py"))
pack = host.pack


@pytest.fixture(scope="module")
def facts(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scenario found."""
    return host.run_scenarios(pack, tmp_path_factory.mktemp("v3"), SCENARIOS="v3_schema")[0]["v3"]


def test_all_nodes_are_v3_classes_with_the_description_of_v1(facts: dict[str, Any]) -> None:
    assert facts["is v3"] is True
    assert facts["differences"] == {}


def test_v1_and_v3_give_the_same_picture(facts: dict[str, Any]) -> None:
    assert facts["same picture"] is True


def test_inputs_are_checked_before_a_run(facts: dict[str, Any]) -> None:
    by_v3, by_v1 = facts["check"]
    assert by_v3 == by_v1
    assert "no such thing" in by_v3
