"""Group nodes of earlier editors: their inner nodes run under the ids of the editor's own prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.controlnet_core.errors import WorkflowError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.formats import parse_document, to_graph
from comfyui_controlnet_core.workflows.graph import Graph, Link
from comfyui_controlnet_core.workflows.overrides import apply_settings
from graphs import check


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, type]:
    folder: Path = tmp_path_factory.mktemp("home")
    return build_nodes(StandaloneHost(folder, folder, device="cpu"))


def node(node_id: int, kind: str, links: Any = (), values: Any = (), outputs: Any = ()) -> dict[str, Any]:
    inputs = [{"name": name, "type": type_, "link": link} for name, type_, link in links]
    shown = [{"name": type_, "type": type_} for type_ in outputs]
    saved = {"inputs": inputs, "outputs": shown, "widgets_values": list(values)}
    return {"id": node_id, "type": kind, "mode": 0, **saved}


def inner(index: int, kind: str, inputs: Any = (), values: Any = (), outputs: Any = ("IMAGE",)) -> dict[str, Any]:
    found = node(index, kind, [(name, "IMAGE", None) for name in inputs], values, outputs)
    return {**{key: value for key, value in found.items() if key != "id"}, "index": index}


SCALE = inner(1, "ImageScale", ["image"], ["nearest-exact", 8, 8, "disabled"])
GROUP = {
    "nodes": [
        inner(0, "Reroute", [""], outputs=["*"]),
        SCALE,
        inner(2, "ImageBlend", ["image1", "image2"], [0.5, "normal"]),
    ],
    # The origin null is outside: the link was there when the group was made.
    "links": [[None, 0, 0, 0, 7, "IMAGE"], [0, 0, 1, 0, 7, "IMAGE"], [1, 0, 2, 0, 7, "IMAGE"]],
    "external": [[SCALE, 0, "IMAGE"]],
    "config": {"2": {"input": {"image2": {"name": "over"}}}},
}
FIRST, SECOND = ["bilinear", 40, 24, "center", 0.25, "multiply"], ["area", 16, 8, "disabled", 0.75, "screen"]


def drawn(prefix: str = "workflow>", group: Any = GROUP) -> dict[str, Any]:
    """Two instances: the second one scales what the first one has scaled, over what the first one has blended."""
    inputs = [("IMAGE", "IMAGE"), ("over", "IMAGE")]
    instances = [
        node(number, f"{prefix}Pair", [(*item, link) for item, link in zip(inputs, links, strict=True)], values, "II")
        for number, links, values in ((5, (1, 2), FIRST), (6, (3, 4), SECOND))
    ]
    nodes = [
        node(1, "EmptyImage", (), [32, 32, 1, 0], ["IMAGE"]),
        *instances,
        node(9, "PreviewImage", [("images", "IMAGE", 5)]),
    ]
    links = [
        [1, 1, 0, 5, 0, "IMAGE"], [2, 1, 0, 5, 1, "IMAGE"], [3, 5, 0, 6, 0, "IMAGE"], [4, 5, 1, 6, 1, "IMAGE"],
        [5, 6, 1, 9, 0, "IMAGE"],
    ]  # fmt: skip
    return {"version": 0.4, "nodes": nodes, "links": links, "extra": {"groupNodes": {"Pair": group}}}


def read(data: Any, classes: dict[str, type]) -> Graph:
    return to_graph(parse_document(json.dumps(data).encode(), "test.json"), classes)


@pytest.mark.parametrize("prefix", ["workflow>", "workflow/"])
def test_instances_run_with_their_own_values(classes: dict[str, type], prefix: str) -> None:
    graph = read(drawn(prefix), classes)
    assert check(graph, classes)[1] == []
    assert list(graph.nodes) == ["1", "5:1", "5:2", "6:1", "6:2", "9"]
    first, second = graph.nodes["5:1"].inputs, graph.nodes["6:1"].inputs
    assert (first["upscale_method"], first["width"], first["height"], first["crop"]) == ("bilinear", 40, 24, "center")
    assert (second["upscale_method"], second["width"]) == ("area", 16)
    assert graph.nodes["5:2"].inputs["blend_factor"] == 0.25
    assert graph.nodes["6:2"].inputs["blend_mode"] == "screen"


def test_links_go_through_the_borders(classes: dict[str, type]) -> None:
    graph = read(drawn(), classes)
    assert graph.nodes["5:1"].inputs["image"] == Link("1", 0)
    assert graph.nodes["5:2"].inputs["image1"] == Link("5:1", 0)
    assert graph.nodes["5:2"].inputs["image2"] == Link("1", 0)
    assert graph.nodes["6:1"].inputs["image"] == Link("5:1", 0), "an inner output that is also used outside"
    assert graph.nodes["6:2"].inputs["image2"] == Link("5:2", 0)
    assert graph.nodes["9"].inputs["images"] == Link("6:2", 0)


def test_a_changed_value_is_written_into_its_instance(classes: dict[str, type]) -> None:
    data = drawn()
    graph = apply_settings(read(data, classes), classes, ["6:2.blend_factor=0.5"])
    assert graph.workflow is not None
    assert graph.workflow["nodes"][2]["widgets_values"] == [*SECOND[:4], 0.5, "screen"]
    assert graph.workflow["nodes"][1]["widgets_values"] == FIRST
    assert graph.workflow["extra"] == data["extra"] and "definitions" not in graph.workflow


def test_values_that_the_instance_lacks_are_those_of_the_group(classes: dict[str, type]) -> None:
    data = drawn()
    data["nodes"][2]["widgets_values"] = SECOND[:2]
    inputs = read(data, classes).nodes["6:1"].inputs
    assert (inputs["width"], inputs["height"]) == (16, 8)
    assert read(data, classes).nodes["6:2"].inputs["blend_mode"] == "normal"


@pytest.mark.parametrize(
    "group",
    [
        {"nodes": [inner(0, "workflow>Pair")], "links": []},
        {"nodes": [3]},
        {"nodes": [inner(0, "ImageScale")], "links": [[0, 0, "x", 0]]},
        {},
    ],
)
def test_a_definition_that_cannot_be_is_one_error(classes: dict[str, type], group: Any) -> None:
    with pytest.raises(WorkflowError):
        read(drawn(group=group), classes)
