"""Change values of a workflow from the command line: `--set NODE.INPUT=VALUE` and `--seeds`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..controlnet_core.errors import WorkflowError
from .contract import InputSpec, read_spec
from .graph import Graph, Link, Node
from .node_checks import convert

SEED_INPUTS = ("seed", "noise_seed")
MAX_SEEDS = 10_000
_SHOWN = 80
_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def apply_settings(
    graph: Graph, classes: Mapping[str, type], settings: Sequence[str], *, option: str = "--set"
) -> Graph:
    """Return the graph after each "NODE.INPUT=VALUE"; later settings win. option: the name of the option in errors.

    Raises WorkflowError for a setting that names no node or input, or more than one node, or whose value does not fit
    the input's type.
    """
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, key = target.strip().rpartition(".")
        try:
            if not (equals and dot and name and key):
                raise ValueError(f"expected NODE.INPUT=VALUE, for instance {option} 3.steps=8")
            node = find_node(graph, name.strip())
            graph = graph.with_value(node.id, key.strip(), _value(graph, classes, node, key.strip(), text))
        except ValueError as error:
            shown = setting if len(setting) <= _SHOWN else f"{setting[:_SHOWN]}..."
            raise WorkflowError(f"{option} {shown}: {error}") from error
    return graph


def find_node(graph: Graph, name: str) -> Node:
    """Return the node with this id, else the only one with this title, else the only one of this class.

    Raises ValueError with a message for the user.
    """
    if name in graph.nodes:
        return graph.nodes[name]
    # A title is given by a person, so it is preferred to a class.
    for attribute in ("title", "class_type"):
        found = [n for n in graph.nodes.values() if getattr(n, attribute).casefold() == name.casefold()]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f'"{name}" may be {", ".join(node.label for node in found)}: write its id')
    names = [n for node in graph.nodes.values() for n in (node.class_type, node.title)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    meant = f'did you mean "{near[0]}"?' if near else "`controlnet inspect FILE` lists them"
    raise ValueError(f'the workflow has no node "{name}": {meant}')


def _value(graph: Graph, classes: Mapping[str, type], node: Node, key: str, text: str) -> Any:
    """Return the value of a setting. Raises ValueError if the node has no such input that can be set."""
    if node.class_type not in classes:
        raise ValueError(f"{node.label} is of an unknown class: replace it in the workflow")
    inputs = read_spec(node.class_type, classes[node.class_type]).inputs
    if key not in inputs:
        names = [item.name for item in inputs.values() if item.is_widget]
        has = f"it has {', '.join(names)}" if names else "it has none that can be set"
        raise ValueError(f"{node.label} has no input {key}: {has}")
    current = node.inputs.get(key)
    if isinstance(current, Link):
        source = graph.nodes[current.node].label if current.node in graph.nodes else "a link"
        raise ValueError(f"{node.label} takes {key} from {source}: set it there")
    if not inputs[key].is_widget:
        raise ValueError(f"{key} takes a {inputs[key].type} from another node: link one in the editor")
    try:
        return parse_value(inputs[key], text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} {error}") from error


def parse_value(spec: InputSpec, text: str) -> Any:
    """Return a value from the command line by its declared type.

    Raises ValueError or TypeError with a message for the user.
    """
    if spec.choices is not None:
        # Choices may be numbers. An unknown one is returned as it is: validation lists the choices.
        return next((choice for choice in spec.choices if str(choice) == text), text)
    if spec.type == "BOOLEAN" and text.lower() in _SWITCHES:
        return _SWITCHES[text.lower()]
    return convert(spec, text)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return seeds from "7", "1..8" or "1,4,9", each once. Raises WorkflowError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        # 20 digits hold every 64-bit seed.
        match = re.fullmatch(r"\s*(\d{1,20})(?:\.\.(\d{1,20}))?\s*", part)
        if not match:
            raise WorkflowError(f"--seeds {text[:40]}: expected for instance 7, 1..8 or 1,4,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + MAX_SEEDS:
            raise WorkflowError(f"--seeds: {part.strip()} is no range from low to high of at most {MAX_SEEDS}")
        seeds.extend(range(first, last + 1))
    return tuple(dict.fromkeys(seeds))


def with_seed(graph: Graph, classes: Mapping[str, type], seed: int) -> Graph:
    """Return the graph with this seed in every node that has one as a plain value.

    Raises WorkflowError if no node has one.
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
