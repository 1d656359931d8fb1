"""File name prefixes that take values of other nodes, such as "%KSampler.seed%": what the editor does with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..nodes.file_prefix import fill_as_editor
from .graph import Graph, Link

PREFIX = "filename_prefix"


def fill_prefixes(graph: Graph, *, dates: bool = False) -> Graph:
    """Return the graph with the placeholders of file name prefixes replaced by values of its nodes.

    The editor does this when it sends a prompt, so ComfyUI itself does not know these placeholders. dates: whether
    those of the form %date:...% are replaced as well.
    """
    asking = {key: node for key, node in graph.nodes.items() if "%" in str(node.inputs.get(PREFIX, ""))}
    if not asking:
        return graph

    def find(name: str, item: str) -> Any:
        # The editor looks for the search name, then for the title; files of programs have neither, but a class.
        for attribute in ("search_name", "title", "class_type"):
            node = next((node for node in graph.nodes.values() if getattr(node, attribute) == name), None)
            if node is not None:
                value = node.inputs.get(item)
                return None if isinstance(value, (Link, list, dict)) else value
        return None

    filled = {
        key: replace(node, inputs={**node.inputs, PREFIX: fill_as_editor(node.inputs[PREFIX], find, dates=dates)})
        for key, node in asking.items()
        if isinstance(node.inputs[PREFIX], str)
    }
    return Graph({**graph.nodes, **filled}, graph.workflow)
