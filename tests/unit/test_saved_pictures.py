"""What pictures carry, and what the editor does with file name prefixes when it sends a prompt."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from comfyui_controlnet_core.controlnet_core.errors import WorkflowError
from comfyui_controlnet_core.nodes import build_nodes
from comfyui_controlnet_core.nodes.standalone.host import StandaloneHost
from comfyui_controlnet_core.workflows.formats import parse_document, to_graph
from comfyui_controlnet_core.workflows.graph import Graph, Link
from comfyui_controlnet_core.workflows.prefixes import fill_prefixes
from graphs import check
from PIL import Image
from PIL.PngImagePlugin import PngInfo


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, type]:
    folder: Path = tmp_path_factory.mktemp("home")
    return build_nodes(StandaloneHost(folder, folder, device="cpu"))


def node(node_id: int, kind: str, links: Any = (), values: Any = (), **more: Any) -> dict[str, Any]:
    """A saved node. links: (input name, type, link id) of each input."""
    inputs = [{"name": name, "type": type_, "link": link} for name, type_, link in links]
    return {"id": node_id, "type": kind, "mode": 0, "inputs": inputs, "widgets_values": list(values), **more}


def saved(nodes: list[Any], links: list[Any]) -> dict[str, Any]:
    return {"version": 0.4, "nodes": nodes, "links": links}


def read(data: Any, classes: dict[str, type]) -> Graph:
    return to_graph(parse_document(json.dumps(data).encode(), "test.json"), classes)


EMPTY = node(1, "EmptyImage", (), [64, 64, 1, 0])
PREVIEW = node(3, "PreviewImage", [("images", "IMAGE", 1)])


def saved_picture(**texts: Any) -> bytes:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, json.dumps(value))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def test_a_text_whose_checksum_is_old_is_read_as_the_editor_reads_it(classes: dict[str, type]) -> None:
    """Tools that edit the text of a picture leave the checksum; a text that is cut off is damage."""
    drawn = saved([EMPTY, PREVIEW], [[1, 1, 0, 3, 0, "IMAGE"]])
    data = saved_picture(workflow=drawn)
    edited = data.replace(b"[64, 64, 1, 0]", b"[32, 64, 1, 0]")
    assert len(edited) == len(data) and edited != data
    graph = to_graph(parse_document(edited, "a.png"), classes)
    assert graph.nodes["1"].inputs["width"] == 32
    with pytest.raises(WorkflowError, match="cut short or damaged"):
        parse_document(edited[: edited.index(b"EmptyImage")], "a.png")


def test_a_prompt_of_an_earlier_release_gets_the_widgets_that_its_nodes_have_gained(classes: dict[str, type]) -> None:
    decode = node(2, "VAEDecodeTiled", [("samples", "LATENT", 1), ("vae", "VAE", 2)], [])
    drawn = saved(
        [node(1, "EmptyLatentImage", (), [64, 64, 1]), node(4, "CheckpointLoaderSimple", (), ["a"]), decode],
        [[1, 1, 0, 2, 0, "LATENT"], [2, 4, 2, 2, 1, "VAE"]],
    )
    prompt = {
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 64, "batch_size": 1}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
        "2": {"class_type": "VAEDecodeTiled", "inputs": {"samples": ["1", 0], "vae": ["4", 2]}},
    }
    graph = to_graph(parse_document(saved_picture(prompt=prompt, workflow=drawn), "a.png"), classes)
    assert graph.nodes["1"].inputs["width"] == 32, "the prompt is what was run"
    assert graph.nodes["2"].inputs["samples"] == Link("1", 0)
    assert (graph.nodes["2"].inputs["tile_size"], graph.nodes["2"].inputs["overlap"]) == (512, 64)


def test_a_text_in_utf8_is_read_as_the_editor_reads_it(classes: dict[str, type]) -> None:
    """Tools write UTF-8 into chunks that should be Latin-1. Latin-1 that is no UTF-8 stays what it is."""
    for text, encoding in (("조각상", "utf-8"), ("café", "latin-1")):
        drawn = saved([node(1, "CLIPTextEncode", (), ["A" * len(text.encode(encoding))])], [])
        data = saved_picture(workflow=drawn)
        changed = data.replace(b"A" * len(text.encode(encoding)), text.encode(encoding))
        assert to_graph(parse_document(changed, "a.png"), classes).nodes["1"].inputs["text"] == text


# ---- file name prefixes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "filled"),
    [
        ("%Name.text%/%Steps.value%-a", "night_city/7-a"),
        ("%EmptyImage.width%x%EmptyImage.height%", "64x32"),
        ("%Other.text%", "%Other.text%"),
        ("%Name.other%-%a.b.c%", "%Name.other%-%a.b.c%"),
        ("%date:yyyy%", "%date:yyyy%"),
    ],
)
def test_a_prefix_takes_values_by_search_name_then_by_title(classes: dict[str, type], prefix: str, filled: str) -> None:
    """A search name, which is a property and mostly the class, goes before a title. Dates are filled when saved."""
    by_name = {"properties": {"Node name for S&R": "Name"}, "title": "x"}
    nodes = [
        node(1, "EmptyImage", (), [64, 32, 1, 0]),
        node(4, "PrimitiveString", (), ["wrong"], title="Name"),
        node(5, "CLIPTextEncode", (), ["night/city"], **by_name),
        node(6, "PrimitiveInt", (), [7, "fixed"], title="Steps"),
        node(2, "SaveImage", [("images", "IMAGE", 1)], [prefix]),
    ]
    graph = read(saved(nodes, [[1, 1, 0, 2, 0, "IMAGE"]]), classes)
    checked, problems = check(graph, classes)
    assert not problems
    assert checked.nodes["2"].inputs["filename_prefix"] == filled
    assert fill_prefixes(graph, dates=True).nodes["2"].inputs["filename_prefix"] == filled.replace(
        "%date:yyyy%", str(time.localtime().tm_year)
    )
