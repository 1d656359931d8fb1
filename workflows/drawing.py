"""The editor's JSON as typed records: nodes, inputs, links and subgraph definitions, before links are followed.

Format 0.4 writes links as lists. Format 1 and subgraphs write them as objects. Both are read. The reroute points of
links and links with a loose end only concern the canvas and are skipped.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .checks import MAX_INPUTS, as_dict, as_id, as_index, as_list, as_text, fail
from .graph import Place, node_label
from .migrations import current_type

MUTED, BYPASSED = 2, 4
_INPUT_NODE, _OUTPUT_NODE = "-10", "-20"
# With ^, or a search that starts anew at each of n spaces would take quadratic time.
_NODE_PREFIX = re.compile(r"^\s*\d+\s*:\s*(?=\S)")


@dataclass(frozen=True)
class Slot:
    """An input of a saved node. is_widget: whether it is a widget that was converted to an input."""

    name: str
    type: str
    link: int | None
    is_widget: bool


@dataclass(frozen=True)
class DrawnLink:
    """A link from output `slot` of node `origin` to input `target_slot` of node `target`."""

    origin: str
    slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class DrawnNode:
    """A node as it stands in the file.

    outputs: their types. saved, named: `widgets_values` and `widgets_values_named`. proxies: (inner node id, widget)
    pairs that a subgraph's instance shows. models: files that the author recommends. search_name: its property "Node
    name for S&R". place: path to the node from the top of the JSON.
    """

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
    search_name: str
    place: Place

    @property
    def label(self) -> str:
        """The node's name in messages."""
        return node_label(self.id, self.title, self.type)


@dataclass(frozen=True)
class Drawing:
    """One canvas: its nodes and links, and the ids of a subgraph's own input and output node."""

    nodes: Mapping[str, DrawnNode]
    links: Mapping[int, DrawnLink]
    input_node: str = _INPUT_NODE
    output_node: str = _OUTPUT_NODE


@dataclass(frozen=True)
class Definition:
    """A subgraph.

    inputs: their names, which may be empty. targets: name -> the inner inputs that it feeds. sources: output number ->
    the inner link that feeds it.
    """

    name: str
    drawing: Drawing
    inputs: tuple[str, ...]
    targets: Mapping[str, Sequence[tuple[DrawnNode, Slot]]]
    sources: Mapping[int, DrawnLink]


def read_drawing(workflow: Mapping[str, Any], name: str) -> tuple[Drawing, dict[str, Definition]]:
    """Return the root canvas and all subgraph definitions by id, nested ones too.

    Raises WorkflowError with the place in the file where it differs from what the editor writes.
    """
    # Newer files keep all definitions at the top, older ones inside the subgraph that uses them.
    drawing = _drawing(workflow, name, ())
    definitions: dict[str, Definition] = {}
    pending: list[tuple[Any, Place]] = [(workflow, ())]
    while pending:
        holder, place = pending.pop()
        if holder.get("definitions") is None:
            continue
        subgraphs = as_dict(holder["definitions"], f"{name}, definitions").get("subgraphs") or []
        for index, entry in enumerate(as_list(subgraphs, f"{name}, definitions.subgraphs")):
            inner_place: Place = (*place, "definitions", "subgraphs", index)
            where = f"{name}, subgraph {index}"
            subgraph = as_dict(entry, where)
            definitions[as_text(subgraph.get("id"), f"{where}, id")] = _definition(subgraph, where, inner_place)
            pending.append((subgraph, inner_place))
    return drawing, definitions


def _definition(data: dict[str, Any], where: str, place: Place) -> Definition:
    drawing = _drawing(data, where, place)
    where_inputs = f"{where}, inputs, name"
    names = [as_text(entry.get("name"), where_inputs, may_be_empty=True) for entry in _dicts(data, "inputs", where)]
    targets: dict[str, list[tuple[DrawnNode, Slot]]] = {name: [] for name in names}
    for node in drawing.nodes.values():
        for slot in node.inputs:
            link = None if slot.link is None else drawing.links.get(slot.link)
            if link is not None and link.origin == drawing.input_node and link.slot < len(names):
                targets[names[link.slot]].append((node, slot))
    title = _text(data.get("name")) or "subgraph"
    return Definition(title, drawing, tuple(names), targets, _sources(data, drawing, where))


def _sources(data: dict[str, Any], drawing: Drawing, where: str) -> dict[int, DrawnLink]:
    """Output number -> the link that feeds it: the first that the output names, else the first in the file."""
    # Both places are needed: some files list links in linkIds that are gone, others leave linkIds empty.
    found: dict[int, DrawnLink] = {}
    for link in drawing.links.values():
        if link.target == drawing.output_node:
            found.setdefault(link.target_slot, link)
    for slot, output in enumerate(_dicts(data, "outputs", where)):
        ids = [as_index(item, f"{where}, linkIds") for item in _list(output, "linkIds", where)]
        named = next((drawing.links[number] for number in ids if number in drawing.links), None)
        if named is not None:
            found[slot] = named
    return found


def _drawing(data: Mapping[str, Any], where: str, place: Place) -> Drawing:
    entries = as_list(data.get("nodes"), f"{where}, nodes")
    nodes: dict[str, DrawnNode] = {}
    spare = _spare_ids(data, entries)
    for index, entry in enumerate(entries):
        here = f"{where}, nodes[{index}]"
        record = as_dict(entry, here)
        node_id = as_id(record.get("id"), f"{here}, id")
        # The editor gives a node a new id when its id is taken; links by this id belong to the first node.
        node_id = str(next(spare)) if node_id in nodes else node_id
        nodes[node_id] = _node(record, node_id, here, (*place, "nodes", index))
    links = dict(_link(entry, f"{where}, links") for entry in _list(data, "links", where))
    ends = (_io_node(data.get("inputNode"), _INPUT_NODE), _io_node(data.get("outputNode"), _OUTPUT_NODE))
    return Drawing(nodes, links, *ends)


def _spare_ids(data: Mapping[str, Any], entries: list[Any]) -> Iterator[int]:
    """Numbers above all node ids, beginning where the editor's own counter stands."""
    numbers = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    used = [number for number in (*numbers, data.get("last_node_id")) if isinstance(number, int) and number < 2**53]
    return itertools.count(max(used, default=0) + 1)


def _io_node(data: Any, usual: str) -> str:
    return str(data["id"]) if isinstance(data, dict) and "id" in data else usual


def _link(entry: Any, where: str) -> tuple[int, DrawnLink]:
    if isinstance(entry, dict):
        values = [entry.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    else:
        values = as_list(entry, where)
        if len(values) < 5:
            raise fail(where, f"has an entry of {len(values)} values, expected 6", "save it again in the editor")
    where = f"{where}, link {str(values[0])[:20]}"
    number, origin = as_index(values[0], where), as_id(values[1], where)
    slot, target = as_index(values[2], where), as_id(values[3], where)
    # -1 is the target slot of a link with a loose end
    return number, DrawnLink(origin, slot, target, -1 if values[4] == -1 else as_index(values[4], where))


def _node(data: dict[str, Any], node_id: str, where: str, place: Place) -> DrawnNode:
    where = f"{where} (id {node_id[:20]})"
    held = data.get("properties")
    properties: dict[str, Any] = held if isinstance(held, dict) else {}
    mode, saved, models = data.get("mode", 0), data.get("widgets_values"), properties.get("models")
    inputs = _dicts(data, "inputs", where)
    if len(inputs) > MAX_INPUTS:
        raise fail(where, f"has {len(inputs)} inputs, more than {MAX_INPUTS}", "split the node")
    return DrawnNode(
        node_id,
        current_type(as_text(data.get("type"), f"{where}, type")),
        _text(data.get("title")),
        mode if isinstance(mode, int) else 0,
        tuple(_slot(slot, f"{where}, inputs") for slot in inputs),
        tuple(_type(output.get("type")) for output in _dicts(data, "outputs", where)),
        saved if saved is None or isinstance(saved, dict) else as_list(saved, f"{where}, widgets_values"),
        data.get("widgets_values_named"),
        _proxies(properties.get("proxyWidgets")),
        tuple(model for model in models if _is_model(model)) if isinstance(models, list) else (),
        _text(properties.get("Node name for S&R")),
        place,
    )


def _list(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    return as_list(data.get(key) or [], f"{where}, {key}")


def _dicts(data: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    return [as_dict(item, f"{where}, {key}") for item in _list(data, key, where)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _slot(slot: dict[str, Any], where: str) -> Slot:
    # The input of a reroute has no name.
    name = as_text(slot.get("name"), f"{where}, name", may_be_empty=True)
    link = slot.get("link")
    number = None if link is None else as_index(link, f"{where}, link")
    return Slot(name, _type(slot.get("type")), number, slot.get("widget") is not None)


def _type(value: Any) -> str:
    """Return a slot's type. The editor writes a union as text or list, and 0 or -1 for "any"."""
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return value if isinstance(value, str) else "*"


def _proxies(value: Any) -> tuple[tuple[str, str], ...]:
    """Return (inner node id, widget) pairs. Some versions store them as JSON text, or as "12: name"."""
    # A value that cannot be read only concerns which widgets an instance shows, so it is no error.
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ()
    pairs = [item for item in value if isinstance(item, list) and len(item) >= 2] if isinstance(value, list) else []
    return tuple((str(item[0]), _NODE_PREFIX.sub("", str(item[1]))) for item in pairs)


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("directory"), str)
