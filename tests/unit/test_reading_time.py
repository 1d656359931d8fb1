"""Reading a workflow takes linear time and a bounded amount of work, whatever the file holds."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
from comfyui_controlnet_core.controlnet_core.errors import CoreError, WorkflowError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.file_prefix import expand_prefix
from comfyui_controlnet_core.nodes.pictures import annotated_file
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.fitting import uses
from comfyui_controlnet_core.workflows.widgets import dynamic_prompt
from drawn_workflows import EMPTY, node, preview, read, saved
from graphs import check


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, type]:
    folder = tmp_path_factory.mktemp("home")
    return build_nodes(StandaloneHost(folder, folder, device="cpu"))


API = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def reroutes(count: int) -> dict[str, Any]:
    """A chain of reroutes, each of which feeds an output node too."""
    nodes, links = [EMPTY], [[1, 1, 0, 2, 0, "IMAGE"]]
    for n in range(2, 2 * count, 2):
        nodes += [node(n, "Reroute", [("", "*", n - 1)], outputs=[{"type": "IMAGE"}]), preview(n + 1, n)]
        links += [[n, n, 0, n + 1, 0, "IMAGE"], [n + 1, n, 0, n + 2, 0, "IMAGE"]]
    return saved(nodes, links)


def loras(count: int) -> dict[str, Any]:
    """A chain of nodes that change a model and its control, which all are asked for their base and their nets."""
    api: dict[str, Any] = {"0": {"class_type": "Load", "inputs": {}}}
    for n in range(1, count):
        api[str(n)] = {"class_type": "Change", "inputs": {"model": [str(n - 1), 0], "control": [str(n - 1), 1]}}
    return {**api, "end": {"class_type": "Show", "inputs": {"model": [str(count - 1), 0]}}}


def link_class(inputs: dict[str, Any], outputs: tuple[str, ...], *, is_output: bool = False) -> type:
    types = classmethod(lambda cls: {"required": inputs})
    return type("Linked", (), {"INPUT_TYPES": types, "RETURN_TYPES": outputs, "OUTPUT_NODE": is_output})


CHAIN = {
    "Load": link_class({}, ("MODEL", "CONDITIONING")),
    "Change": link_class({"model": ("MODEL",), "control": ("CONDITIONING",)}, ("MODEL", "CONDITIONING")),
    "Show": link_class({"model": ("MODEL",)}, (), is_output=True),
}


def seconds(work: Any) -> float:
    """Processor time of the fastest of three runs, so that other programs do not count."""
    # `timeit` does the same. Otherwise Python might collect garbage of earlier tests while the time is measured.
    gc.collect()
    gc.disable()
    try:
        times = []
        for _ in range(3):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
    finally:
        gc.enable()
    return min(times)


@pytest.mark.parametrize(
    "work",
    [
        lambda n, classes: read(reroutes(n), classes),
        lambda n, classes: uses(read(loras(n), CHAIN), CHAIN),
        lambda n, classes: check(read(loras(n), CHAIN), CHAIN),
        lambda n, classes: check(read(stray(n * 10), classes), classes),
        lambda n, classes: dynamic_prompt("/* " * (n * 20)),
        lambda n, classes: dynamic_prompt("{a|" * (n * 20)),
        lambda n, classes: read(proxied(" " * (n * 20)), classes),
        lambda n, classes: read(proxied("1" * (n * 20)), classes),
        lambda n, classes: attempt(lambda: annotated_file(" " * (n * 50) + "[inputs", classes["LoadImage"].host)),
        lambda n, classes: expand_prefix("%" * (n * 50), 8, 8),
    ],
    ids=[
        "reroutes",
        "fit",
        "check",
        "stray links",
        "comments",
        "alternatives",
        "spaces",
        "digits",
        "file name",
        "prefix",
    ],
)
def test_reading_takes_linear_time(classes: dict[str, type], work: Any) -> None:
    """Four times the size takes about four times as long; with quadratic time it was sixteen times."""
    small, large = (seconds(lambda: work(n, classes)) for n in (600, 2400))  # noqa: B023
    assert large < 9 * small + 0.05


def proxied(widget: str) -> dict[str, Any]:
    definition = {"id": "abc", "nodes": [EMPTY], "links": []}
    instance = node(5, "abc", (), (), properties={"proxyWidgets": [["1", widget]]})
    return saved([instance], [], definitions={"subgraphs": [definition]})


def stray(count: int) -> dict[str, Any]:
    """Many links into inputs that the class does not declare."""
    inputs = {f"x{n}": ["1", 0] for n in range(count)}
    return {"1": API["1"], "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0], **inputs}}}


def attempt(work: Any) -> None:
    with pytest.raises(CoreError):
        work()


def test_bypassed_nodes_that_each_wanted_type_walks_anew_are_refused(classes: dict[str, type]) -> None:
    nodes, links = [EMPTY], [[1, 1, 0, 2, 0, "*"]]
    for n in range(2, 4800, 2):
        bypassed = node(n, "Blur", [("a", "*", n - 1)], mode=4, outputs=[{"type": "*"}])
        nodes += [bypassed, node(n + 1, "PreviewImage", [("images", f"T{n},IMAGE", n)])]
        links += [[n, n, 0, n + 1, 0, "x"], [n + 1, n, 0, n + 2, 0, "*"]]
    with pytest.raises(WorkflowError, match="chains of reroutes or bypassed nodes"):
        read(saved(nodes, links), classes)


def test_a_workflow_with_endless_inputs_is_refused(classes: dict[str, type]) -> None:
    many = saved([node(1, "Switch", [("a", "IMAGE", None)] * 501)], [])
    with pytest.raises(WorkflowError, match="has 501 inputs, more than 500"):
        read(many, classes)
