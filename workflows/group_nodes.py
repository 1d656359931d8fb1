"""The editor's group nodes, which were replaced by subgraphs in 2025: a file is brought to the form with subgraphs.

A node of type "workflow>NAME" (earlier "workflow/NAME") stands for the nodes in `extra.groupNodes.NAME`. Inner nodes
are numbered from 0, and links are lists (origin, slot, target, slot, ...), where an origin of null is outside. The
group's inputs are the inner ones without a link inside, node after node; its outputs are those that are not used inside
or marked as `external`; its widgets are those of all inner nodes. A prompt names inner nodes "instance:number", as with
subgraphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .checks import MAX_NODES, as_dict, as_index, as_list, fail
from .contract import NodeSpec
from .graph import Place
from .widgets import widget_values

Specs = Callable[[str], NodeSpec | None]
PREFIXES = ("workflow>", "workflow/")
_PRIMITIVE = "PrimitiveNode"
_INPUT_NODE, _OUTPUT_NODE = -10, -20


@dataclass
class Unfolded:
    """A workflow without group nodes.

    subgraphs: how many the file itself has. moved: place of an inner value of a group node -> its place in the file.
    """

    workflow: Mapping[str, Any]
    subgraphs: int = 0
    moved: dict[Place, Place] = field(default_factory=dict)

    def place_in_file(self, place: Place | None) -> Place | None:
        """Return the place of a value in the file, None without one.

        Values that only the definition of a group has are without one: a change would change other instances as well.
        """
        if place is None or self.workflow.get("definitions") is None or place[:2] != ("definitions", "subgraphs"):
            return place
        return self.moved.get(place) if int(place[2]) >= self.subgraphs else place


def unfold_groups(workflow: Mapping[str, Any], specs: Specs, name: str) -> Unfolded:
    """Return the workflow with a subgraph in place of each group node.

    specs: the contract of a class, None if it is unknown. Raises WorkflowError where a definition is not what the
    editor writes, or contains itself.
    """
    extra = workflow.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, dict) else None
    if not isinstance(groups, dict) or not groups:
        return Unfolded(workflow, MAX_NODES)
    held = workflow.get("definitions")
    known: list[Any] = list(held.get("subgraphs") or []) if isinstance(held, dict) else []
    made = Unfolded({}, len(known))
    root = list(as_list(workflow.get("nodes"), f"{name}, nodes"))
    pending: list[tuple[list[Any], Place, bool]] = [(root, ("nodes",), True)]
    count = 0
    while pending:
        nodes, place, is_root = pending.pop()
        for at, node in enumerate(nodes):
            group = _group_of(node, groups)
            if group is None:
                continue
            count += len(as_list(group.get("nodes"), f"{name}, group node, nodes"))
            if count > MAX_NODES:
                raise fail(name, "has group nodes that contain themselves, or too many nodes", "ungroup some")
            number = len(known)
            unfolding = _Unfolding(node, group, f"group node {number}", specs, name)
            nodes[at], definition = unfolding.run()
            known.append(definition)
            inner: Place = ("definitions", "subgraphs", number, "nodes")
            for key, source in unfolding.sources.items():
                # Values of an instance inside of another group belong to that group's definition.
                if is_root and source is not None:
                    made.moved[(*inner, key[0], "widgets_values", key[1])] = (*place, at, "widgets_values", source)
            pending.append((definition["nodes"], inner, False))
    definitions = {**(held if isinstance(held, dict) else {}), "subgraphs": known}
    made.workflow = {**workflow, "nodes": root, "definitions": definitions}
    return made


def _group_of(node: Any, groups: Mapping[str, Any]) -> Mapping[str, Any] | None:
    kind = node.get("type") if isinstance(node, dict) else None
    if not isinstance(kind, str) or not kind.startswith(PREFIXES):
        return None
    group = groups.get(kind[len(PREFIXES[0]) :])
    return group if isinstance(group, dict) else None


class _Unfolding:
    """One instance of a group. sources: (inner number, widget) -> index in the instance's values, None for its own."""

    def __init__(self, node: dict[str, Any], group: Mapping[str, Any], key: str, specs: Specs, name: str) -> None:
        self.node, self.key, self.specs = node, key, specs
        where = f"{name}, group node {str(node.get('id'))[:20]}"
        self.inner = [dict(as_dict(item, where)) for item in as_list(group.get("nodes"), where)]
        entries = [as_list(item, f"{where}, links") for item in as_list(group.get("links") or [], where)]
        # An origin of null is outside: the link was there when the group was made.
        inside = [item[:4] for item in entries if len(item) >= 4 and item[0] is not None]
        self.links = [tuple(as_index(value, f"{where}, links") for value in item) for item in inside]
        ends = [item[:2] for item in group.get("external") or () if isinstance(item, list) and len(item) >= 2]
        numbers = (item[0].get("index") if isinstance(item[0], dict) else item[0] for item in ends)
        self.external = {(number, item[1]) for number, item in zip(numbers, ends, strict=True)}
        settings = group.get("config")
        self.config: Mapping[str, Any] = settings if isinstance(settings, dict) else {}
        self.sources: dict[tuple[int, Any], int | None] = {}

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the node as an instance of a subgraph, and the subgraph."""
        numbers = itertools.count(1)
        for inner in self.inner:
            inner["inputs"] = [{**as_dict(slot, self.key), "link": None} for slot in inner.get("inputs") or []]
        links = []
        for origin, slot, target, at in self.links:
            links.append(self._link(next(numbers), origin, slot, target, at))
        instance_inputs, feeds = self._inputs()
        for index, (target, at) in enumerate(feeds):
            if target is not None:
                links.append(self._link(next(numbers), _INPUT_NODE, index, target, at))
        for index, (origin, slot) in enumerate(self._outputs()):
            number = next(numbers)
            links.append(_entry(number, origin, slot, _OUTPUT_NODE, index))
        self._fill_widgets()
        for number, inner in enumerate(self.inner):
            inner["id"] = number
        title = str(self.node["type"])[len(PREFIXES[0]) :]
        definition = {
            "id": self.key, "name": title, "nodes": self.inner, "links": links,
            "inputs": [{"name": entry["name"]} for entry in instance_inputs], "outputs": [],
        }  # fmt: skip
        return {**self.node, "type": self.key, "inputs": instance_inputs, "widgets_values": []}, definition

    def _link(self, number: int, origin: int, slot: int, target: int, at: int) -> dict[str, Any]:
        slots = self.inner[target]["inputs"] if target < len(self.inner) else []
        if at < len(slots):
            slots[at]["link"] = number
        return _entry(number, origin, slot, target, at)

    def _inputs(self) -> tuple[list[dict[str, Any]], list[tuple[int | None, int]]]:
        """Return the instance's inputs with a name of its own for each, and the inner input that each one feeds."""
        given = [as_dict(slot, self.key) for slot in self.node.get("inputs") or []]
        linked = {(target, at) for _, _, target, at in self.links}
        free = [
            (number, at, slot)
            for number, inner in enumerate(self.inner)
            for at, slot in enumerate(inner["inputs"])
            if (number, at) not in linked and self._is_shown(number, "input", slot.get("name"))
        ]
        sockets = [(number, at) for number, at, slot in free if "widget" not in slot]
        plain = [slot for slot in given if "widget" not in slot]
        # Inner widgets that were converted to inputs before the group was made are plain inputs of the group.
        order = sockets if len(plain) <= len(sockets) else [(number, at) for number, at, _ in free]
        ends = iter(order)
        feeds = [self._widget_end(slot) if "widget" in slot else next(ends, (None, 0)) for slot in given]
        return [{**slot, "name": f"{index} {slot.get('name')}"} for index, slot in enumerate(given)], feeds

    def _widget_end(self, slot: Mapping[str, Any]) -> tuple[int | None, int]:
        """Return the inner input behind a widget of the group that was converted to an input."""
        name = slot["widget"].get("name") if isinstance(slot["widget"], dict) else slot.get("name")
        for number, inner in enumerate(self.inner):
            spec = self.specs(str(inner.get("type")))
            for own in () if spec is None else spec.inputs.values():
                shown = self._settings(number, "input", own.name).get("name", own.name)
                if name in (shown, f"{inner.get('title') or inner.get('type')} {shown}") and own.is_widget:
                    ends = [at for at, item in enumerate(inner["inputs"]) if item.get("name") == own.name]
                    if not ends:
                        inner["inputs"].append({"name": own.name, "type": own.type, "widget": {"name": own.name}})
                    return number, ends[0] if ends else len(inner["inputs"]) - 1
        return None, 0

    def _outputs(self) -> Iterator[tuple[int, int]]:
        used = {(origin, slot) for origin, slot, _, _ in self.links}
        for number, inner in enumerate(self.inner):
            for slot, _ in enumerate(inner.get("outputs") or ()):
                is_free = (number, slot) not in used or (number, slot) in self.external
                if self._settings(number, "output", str(slot)).get("visible", is_free):
                    yield number, slot

    def _settings(self, number: int, side: str, name: Any) -> Mapping[str, Any]:
        settings = self.config.get(str(number))
        found = settings.get(side) if isinstance(settings, dict) else None
        entry = found.get(name) if isinstance(found, dict) else None
        return entry if isinstance(entry, dict) else {}

    def _is_shown(self, number: int, side: str, name: Any) -> bool:
        return self._settings(number, side, name).get("visible") is not False

    def _fill_widgets(self) -> None:
        """Give the inner nodes the values of the instance's widgets, which stand in one list."""
        values = self.node.get("widgets_values")
        given: Sequence[Any] = values if isinstance(values, list) else ()
        at = 0
        linked = {(target, slot) for _, _, target, slot in self.links}
        for number, inner in enumerate(self.inner):
            saved = inner.get("widgets_values")
            spec = self.specs(str(inner.get("type")))
            if not isinstance(saved, list) or not saved:
                continue
            if spec is None:
                # A primitive has one value, and maybe a word on what follows it. Of an unknown class all are taken.
                taken = given[at : at + len(saved)]
                inner["widgets_values"] = [*taken, *saved[len(taken) :]]
                self.sources.update({(number, index): at + index for index in range(len(taken))})
                at += len(saved)
                continue
            own = widget_values(spec.inputs, saved)
            names = {slot.get("name") for index, slot in enumerate(inner["inputs"]) if (number, index) in linked}
            places = [(name, item.at) for name, item in own.items() if isinstance(item.at, int)]
            ends = [place for _, place in places[1:]] + [len(saved)]
            inner["widgets_values"] = {name: item.value for name, item in own.items()}
            for (name, place), end in zip(places, ends, strict=True):
                self.sources[number, name] = None
                if name in names:
                    continue
                if at < len(given):
                    inner["widgets_values"][name] = given[at]
                    self.sources[number, name] = at
                # Behind a seed stands a word such as "randomize", behind a picture the upload button.
                at += end - place


def _entry(number: int, origin: int, slot: int, target: int, at: int) -> dict[str, Any]:
    return {"id": number, "origin_id": origin, "origin_slot": slot, "target_id": target, "target_slot": at}
