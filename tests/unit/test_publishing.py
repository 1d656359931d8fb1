"""What ComfyUI's registry and editor read: pyproject.toml, icon and banner, subgraph blueprints, .comfyignore."""

from __future__ import annotations

import json
import re
from pathlib import Path

import draw_subgraphs
import pytest
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.contract import read_spec
from PIL import Image

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
INPUT, OUTPUT = -10, -20
"""IDs of the two ends of a subgraph."""


def value(key: str) -> str:
    """A string of pyproject.toml (Python 3.10 has no reader of TOML)."""
    return re.findall(rf'^{re.escape(key)} = "(.*)"$', PROJECT, re.MULTILINE)[0]


@pytest.mark.parametrize(("key", "ratio", "most"), [("Icon", 1.0, 400), ("Banner", 21 / 9, 10_000)])
def test_pictures_for_the_registry(key: str, ratio: float, most: int) -> None:
    path = ROOT / value(key).split("/main/")[1]
    with Image.open(path) as picture:
        assert picture.width / picture.height == pytest.approx(ratio, rel=1e-3)
        assert picture.width <= most


def test_the_lowest_release_is_the_one_in_the_readme() -> None:
    lowest = value("requires-comfyui").removeprefix(">=")
    assert f"ComfyUI {lowest} or newer" in (ROOT / "README.md").read_text("utf-8")


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == value("version")


def test_what_is_not_published_exists_and_is_not_needed() -> None:
    ignored = (ROOT / ".comfyignore").read_text("utf-8").split()
    assert all((ROOT / name).exists() for name in ignored)
    needed = {
        "__init__.py",
        "nodes/",
        "controlnet_core/",
        "preprocessors/",
        "workflows/",
        "web/",
        "locales/",
        "LICENSE",
    }
    assert not needed & set(ignored)


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_fits_our_nodes(path: Path) -> None:
    drawn = json.loads(path.read_text("utf-8"))
    (outside,), (graph,) = drawn["nodes"], drawn["definitions"]["subgraphs"]
    assert outside["type"] == graph["id"]
    classes = build_nodes(StandaloneHost(device="cpu", dtype="fp32"))
    specs = {node["id"]: read_spec(node["type"], classes[node["type"]]) for node in graph["nodes"]}
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link in graph["links"]:
        source, target = link["origin_id"], link["target_id"]
        if source == INPUT:
            assert link["id"] in graph["inputs"][link["origin_slot"]]["linkIds"]
        else:
            assert specs[source].outputs[link["origin_slot"]] == link["type"]
            assert link["id"] in nodes[source]["outputs"][link["origin_slot"]]["links"]
        if target == OUTPUT:
            assert link["id"] in graph["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert nodes[target]["inputs"][link["target_slot"]]["link"] == link["id"]
    names = [end["name"] for end in graph["inputs"]]
    assert [item["name"] for item in outside["inputs"]] == names
    assert len(outside["properties"]["proxyWidgets"]) == len(outside["widgets_values"])
    assert all(name in names for _, name in outside["properties"]["proxyWidgets"])


def test_blueprints_are_those_that_are_drawn() -> None:
    classes = build_nodes(StandaloneHost(device="cpu", dtype="fp32"))
    drawn = {graph["nodes"][0]["title"]: graph for graph in (draw_subgraphs.controlled_image(classes),)}
    assert drawn == {path.stem: json.loads(path.read_text("utf-8")) for path in BLUEPRINTS}
