"""Workflows as the editor saves them, written in a few words."""

from __future__ import annotations

import json
from typing import Any

from comfyui_controlnet_core.workflows.formats import parse_document, to_graph
from comfyui_controlnet_core.workflows.graph import Graph


def node(node_id: int, kind: str, links: Any = (), values: Any = (), **more: Any) -> dict[str, Any]:
    """A saved node. links: (input name, type, link id) of each input. values: of its widgets."""
    inputs = [{"name": name, "type": type_, "link": link} for name, type_, link in links]
    return {"id": node_id, "type": kind, "mode": 0, "inputs": inputs, "widgets_values": list(values), **more}


def saved(nodes: list[Any], links: list[Any], **more: Any) -> dict[str, Any]:
    """A saved workflow."""
    return {"version": 0.4, "nodes": nodes, "links": links, **more}


def read(data: Any, classes: dict[str, type]) -> Graph:
    """The graph of a saved workflow."""
    return to_graph(parse_document(json.dumps(data).encode(), "test.json"), classes)


EMPTY = node(1, "EmptyImage", (), [64, 64, 1, 0])


def preview(node_id: int = 3, link: int = 1) -> dict[str, Any]:
    """An output node that shows the image of a link."""
    return node(node_id, "PreviewImage", [("images", "IMAGE", link)])
