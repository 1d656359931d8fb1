"""The editor's JSON as typed records: nodes, slots, links and subgraph definitions, nothing resolved.

Format 0.4 writes links as lists, format 1 and subgraphs as objects; both are read. Native reroutes
and floating links are lines on the canvas without meaning for a run, and are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checks import as_dict, as_id, as_index, as_list, as_text, fail
from .graph import Place

MUTED, BYPASSED = 2, 4
_INPUT_NODE, _OUTPUT_NODE = "-10", "-20"
_PREFIX = re.compile(r"\s*\d+\s*:\s*(?=\S)")


@dataclass(frozen=True)
class Slot:
    """An input of a drawn node; `widget` when it is a field turned into a socket."""

    name: str
    type: str
    link: int | None
    widget: bool


@dataclass(frozen=True)
class DrawnLink:
    """A line from output `slot` of node `origin` to input `target_slot` of node `target`."""

    origin: str
    slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class DrawnNode:
    """A node as it stands in the file; `place` is the way to it from the top of the JSON."""

    id: str
    type: str
    title: str
    mode: int
    inputs: tuple[Slot, ...]
    outputs: tuple[str, ...]
    saved: Any
    named: Any
    proxies: tuple[tuple[str, str], ...]
    models: tuple[Mapping[str, str], ...]
    place: Place

    @property
    def label(self) -> str:
        titled = f' "{self.title}"' if self.title and self.title != self.type else ""
        return f"node {self.id}{titled} ({self.type})"


@dataclass(frozen=True)
class Drawing:
    """One canvas: its nodes and links, and the ids of a subgraph's own input and output node."""

    nodes: Mapping[str, DrawnNode]
    links: Mapping[int, DrawnLink]
    input_node: str = _INPUT_NODE
    output_node: str = _OUTPUT_NODE


@dataclass(frozen=True)
class Definition:
    """A subgraph: its canvas, its inputs by name with what they feed inside, what feeds its outputs."""

    name: str
    drawing: Drawing
    targets: Mapping[str, tuple[tuple[DrawnNode, Slot], ...]]
    sources: Mapping[int, DrawnLink]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of their slots."""
        return tuple(self.targets)


def read_drawing(workflow: Mapping[str, Any], name: str) -> tuple[Drawing, dict[str, Definition]]:
    """The root canvas and all subgraph definitions, nested ones too.

    Raises WorkflowError with the place in the file where something else stands than the editor writes.
    """
    drawing = _drawing(workflow, name, ())
    definitions: dict[str, Definition] = {}
    pending: list[tuple[Any, Place]] = [(workflow, ())]
    while pending:
        holder, place = pending.pop()
        held = holder.get("definitions")
        if held is None:
            continue
        subgraphs = as_dict(held, f"{name}, definitions").get("subgraphs") or []
        for index, entry in enumerate(as_list(subgraphs, f"{name}, definitions.subgraphs")):
            inner_place: Place = (*place, "definitions", "subgraphs", index)
            where = f"{name}, subgraph {index}"
            subgraph = as_dict(entry, where)
            definitions[as_text(subgraph.get("id"), f"{where}, id")] = _definition(subgraph, where, inner_place)
            pending.append((subgraph, inner_place))
    return drawing, definitions


def _definition(data: dict[str, Any], where: str, place: Place) -> Definition:
    title = data.get("name")
    drawing = _drawing(data, where, place)
    inputs = as_list(data.get("inputs") or [], f"{where}, inputs")
    names = [as_text(as_dict(i, f"{where}, inputs").get("name"), f"{where}, inputs, name") for i in inputs]
    if len(set(names)) < len(names):
        raise fail(where, "has two inputs of the same name", "rename one in the editor")
    fed: dict[int, list[tuple[DrawnNode, Slot]]] = {}
    for node in drawing.nodes.values():
        for slot in node.inputs:
            link = None if slot.link is None else drawing.links.get(slot.link)
            if link is not None and link.origin == drawing.input_node:
                fed.setdefault(link.slot, []).append((node, slot))
    targets = {name: tuple(fed.get(index, ())) for index, name in enumerate(names)}
    return Definition(title if isinstance(title, str) else "subgraph", drawing, targets, _sources(data, drawing, where))


def _sources(data: dict[str, Any], drawing: Drawing, where: str) -> dict[int, DrawnLink]:
    """Output number -> the link that feeds it: the first that the output names, else the first drawn."""
    found: dict[int, DrawnLink] = {}
    for link in drawing.links.values():
        if link.target == drawing.output_node:
            found.setdefault(link.target_slot, link)
    for slot, output in enumerate(as_list(data.get("outputs") or [], f"{where}, outputs")):
        ids = _link_ids(as_dict(output, f"{where}, outputs").get("linkIds"), where)
        named = next((drawing.links[i] for i in ids if i in drawing.links), None)
        if named is not None:
            found[slot] = named
    return found


def _link_ids(value: Any, where: str) -> tuple[int, ...]:
    return tuple(as_index(item, f"{where}, linkIds") for item in as_list(value or [], f"{where}, linkIds"))


def _drawing(data: Mapping[str, Any], where: str, place: Place) -> Drawing:
    nodes: dict[str, DrawnNode] = {}
    for index, entry in enumerate(as_list(data.get("nodes"), f"{where}, nodes")):
        node = _node(as_dict(entry, f"{where}, nodes[{index}]"), f"{where}, nodes[{index}]", (*place, "nodes", index))
        if node.id in nodes:
            raise fail(where, f"has two nodes with the id {node.id}", "open and save it in the editor")
        nodes[node.id] = node
    links = dict(_link(entry, f"{where}, links") for entry in as_list(data.get("links") or [], f"{where}, links"))
    return Drawing(
        nodes,
        links,
        _io_node(data.get("inputNode"), _INPUT_NODE),
        _io_node(data.get("outputNode"), _OUTPUT_NODE),
    )


def _io_node(data: Any, usual: str) -> str:
    return str(data["id"]) if isinstance(data, dict) and "id" in data else usual


def _link(entry: Any, where: str) -> tuple[int, DrawnLink]:
    if isinstance(entry, dict):
        keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        values = [entry.get(key) for key in keys]
    else:
        values = as_list(entry, where)
        if len(values) < 5:
            raise fail(where, f"has an entry of {len(values)} values, expected 6", "save it again in the editor")
    where = f"{where}, link {str(values[0])[:20]}"
    return as_index(values[0], where), DrawnLink(
        as_id(values[1], where),
        as_index(values[2], where),
        as_id(values[3], where),
        _slot_number(values[4], where),
    )


def _slot_number(value: Any, where: str) -> int:
    """The editor writes -1 as the target slot of lines that end in mid-air."""
    return -1 if value == -1 else as_index(value, where)


def _node(data: dict[str, Any], where: str, place: Place) -> DrawnNode:
    node_id = as_id(data.get("id"), f"{where}, id")
    where = f"{where} (id {node_id[:20]})"
    held = data.get("properties")
    properties: dict[str, Any] = held if isinstance(held, dict) else {}
    title = data.get("title")
    mode = data.get("mode", 0)
    return DrawnNode(
        node_id,
        as_text(data.get("type"), f"{where}, type"),
        title if isinstance(title, str) else "",
        mode if isinstance(mode, int) else 0,
        tuple(_slot(item, f"{where}, inputs") for item in as_list(data.get("inputs") or [], f"{where}, inputs")),
        tuple(
            _type(as_dict(item, f"{where}, outputs").get("type"))
            for item in as_list(data.get("outputs") or [], f"{where}, outputs")
        ),
        _values(data.get("widgets_values"), where),
        data.get("widgets_values_named"),
        _proxies(properties.get("proxyWidgets")),
        tuple(m for m in _list_or_empty(properties.get("models")) if _is_model(m)),
        place,
    )


def _values(value: Any, where: str) -> Any:
    if value is None or isinstance(value, dict):
        return value
    return as_list(value, f"{where}, widgets_values")


def _slot(value: Any, where: str) -> Slot:
    slot = as_dict(value, where)
    link = slot.get("link")
    return Slot(
        as_text(slot.get("name"), f"{where}, name", may_be_empty=True),  # a reroute's input has none
        _type(slot.get("type")),
        None if link is None else as_index(link, f"{where}, link"),
        slot.get("widget") is not None,
    )


def _type(value: Any) -> str:
    """A slot's type; the editor writes a union as text or list, and 0 or -1 for "any"."""
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return value if isinstance(value, str) else "*"


def _proxies(value: Any) -> tuple[tuple[str, str], ...]:
    """(inner node id, field) pairs; some versions store them as JSON text, or with "12: " in front."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ()
    return tuple(
        (str(item[0]), _PREFIX.sub("", str(item[1])))
        for item in _list_or_empty(value)
        if isinstance(item, list) and len(item) >= 2
    )


def _list_or_empty(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("directory"), str)
