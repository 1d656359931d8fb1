"""Graphs of files, and their checks, in the short forms that tests use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from comfyui_controlnet_core.workflows.formats import read_document, to_graph
from comfyui_controlnet_core.workflows.graph import Graph
from comfyui_controlnet_core.workflows.node_checks import Problem
from comfyui_controlnet_core.workflows.validation import check_outputs, require_runnable


def load_graph(path: str | Path, classes: Mapping[str, type]) -> Graph:
    """The graph of a .json or .png file, not yet checked."""
    return to_graph(read_document(path), classes)


def validate(graph: Graph, classes: Mapping[str, type]) -> Graph:
    """The graph with values converted as ComfyUI does. Raises the error of the first problem."""
    return require_runnable(graph, classes, strict=True).graph


def check(graph: Graph, classes: Mapping[str, type]) -> tuple[Graph, list[Problem]]:
    """The graph with converted values, and all problems."""
    checked = check_outputs(graph, classes)
    return checked.graph, checked.problems
