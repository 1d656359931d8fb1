"""Changing values of a workflow from outside: `--set NODE.INPUT=VALUE` and `--seeds`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..controlnet_core.errors import WorkflowError
from ..nodes.folders import brief
from .contract import InputSpec, NodeSpec, read_spec
from .graph import Graph, Link, Node

SEED_INPUTS = ("seed", "noise_seed")
_SHOWN = 80
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def apply_settings(graph: Graph, classes: Mapping[str, type], settings: Sequence[str]) -> Graph:
    """The graph after each "NODE.INPUT=VALUE"; later ones win.

    Raises WorkflowError when a setting names no node or input, more than one node, or a value that
    does not fit the input's type.
    """
    for setting in settings:
        target, equals, text = setting.partition("=")
        shown = setting if len(setting) <= _SHOWN else f"{setting[:_SHOWN]}..."
        name, dot, key = target.strip().rpartition(".")
        if not (equals and dot and name and key):
            raise WorkflowError(f"--set {shown}: expected NODE.INPUT=VALUE, for instance --set 3.steps=8")
        node = find_node(graph, name.strip(), shown)
        graph = _set(graph, classes, node, key.strip(), text, shown)
    return graph


def find_node(graph: Graph, name: str, setting: str) -> Node:
    """The node with this id, else the only one with this title, else the only one of this class."""
    if name in graph.nodes:
        return graph.nodes[name]
    for attribute in ("title", "class_type"):
        found = [n for n in graph.nodes.values() if getattr(n, attribute).casefold() == name.casefold()]
        if len(found) == 1:
            return found[0]
        if found:
            labels = ", ".join(node.label for node in found)
            raise WorkflowError(f'--set {setting}: "{name}" may be {labels}: write its id')
    names = [n for node in graph.nodes.values() for n in (node.class_type, node.title)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    meant = f'did you mean "{near[0]}"?' if near else "`controlnet inspect FILE` lists them"
    raise WorkflowError(f'--set {setting}: the workflow has no node "{name}": {meant}')


def _set(graph: Graph, classes: Mapping[str, type], node: Node, key: str, text: str, setting: str) -> Graph:
    if node.class_type not in classes:
        raise WorkflowError(f"--set {setting}: {node.label} is of an unknown class: replace it in the workflow")
    spec = read_spec(node.class_type, classes[node.class_type])
    if key not in spec.inputs:
        raise WorkflowError(f"--set {setting}: {node.label} has no input {key}: {_fields(spec)}")
    if isinstance(node.inputs.get(key), Link):
        source = graph.nodes.get(node.inputs[key].node)
        giver = source.label if source else "a link"
        raise WorkflowError(f"--set {setting}: {node.label} takes {key} from {giver}: set it there")
    if not spec.inputs[key].is_widget:
        kind = spec.inputs[key].type
        raise WorkflowError(f"--set {setting}: {key} takes a {kind} from another node: link one in the editor")
    try:
        value = parse_value(spec.inputs[key], text)
    except ValueError as error:
        raise WorkflowError(f"--set {setting}: {key} {error}") from error
    return graph.with_value(node.id, key, value)


def _fields(spec: NodeSpec) -> str:
    names = [item.name for item in spec.inputs.values() if item.is_widget]
    return f"it has {', '.join(names)}" if names else "it has none that can be set"


def parse_value(spec: InputSpec, text: str) -> Any:
    """A value from the command line by its declared type. Raises ValueError in words for a person."""
    if spec.choices is not None:
        return next((choice for choice in spec.choices if str(choice) == text), text)
    if spec.type == "BOOLEAN":
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise ValueError(f"takes true or false, got {brief(text)}")
    if spec.type in ("INT", "FLOAT"):
        try:
            return int(text) if spec.type == "INT" else float(text)
        except ValueError:
            kind = "a whole number" if spec.type == "INT" else "a number"
            raise ValueError(f"takes {kind}, got {brief(text)}") from None
    return text


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "7", "1..8" or "1,4,9", each once. Raises WorkflowError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})(?:\.\.(\d{1,20}))?\s*", part)
        if not match:
            raise WorkflowError(f"--seeds {text}: expected for instance 7, 1..8 or 1,4,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= 10_000:
            raise WorkflowError(f"--seeds {text}: {part.strip()} is no range from low to high of at most 10000")
        seeds.extend(range(first, last + 1))
    return tuple(dict.fromkeys(seeds))


def with_seed(graph: Graph, classes: Mapping[str, type], seed: int) -> Graph:
    """The graph with this seed in every node that has one as a plain value.

    Raises WorkflowError when there is none.
    """
    found = False
    for node in graph.nodes.values():
        declared = read_spec(node.class_type, classes[node.class_type]).inputs if node.class_type in classes else {}
        for name in SEED_INPUTS:
            if name in declared and name in node.inputs and not isinstance(node.inputs[name], Link):
                graph, found = graph.with_value(node.id, name, seed), True
    if not found:
        raise WorkflowError("--seeds: no node of this workflow has a seed: leave the option out")
    return graph
