"""A workflow as data: nodes, links, and the order in which they run.

Graphs are immutable; changing a value makes a new graph. `validation.py` checks one against the
node classes, `execution.py` runs it, `formats.py` and `editor.py` read it from files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ..controlnet_core.errors import WorkflowError

Place = tuple[str | int, ...]
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Link:
    """An input that takes output number `slot` of the node `node`."""

    node: str
    slot: int


@dataclass(frozen=True)
class Node:
    """One step of a workflow.

    `inputs` maps a name to a `Link` or to a plain value. `absent` says why an input that was linked
    in the editor has nothing (its source is muted, for instance). `places` says where in the
    editor's JSON each plain value stands, so that a changed value can be written back. `models` are
    the files that the workflow's author recommends: {"name", "directory", "url"}.
    """

    id: str
    class_type: str
    inputs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    title: str = ""
    absent: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    places: Mapping[str, Place] = field(default_factory=lambda: _EMPTY)
    models: tuple[Mapping[str, str], ...] = ()

    @property
    def label(self) -> str:
        """How messages name this node: id, its title when a person gave it one, class."""
        titled = f' "{self.title}"' if self.title and self.title != self.class_type else ""
        return f"node {self.id}{titled} ({self.class_type})"

    def links(self) -> Iterator[tuple[str, Link]]:
        """(input name, link) of the inputs that are linked."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


@dataclass(frozen=True)
class Graph:
    """Nodes by id. `workflow` is the editor's JSON that it came from, None for the API form."""

    nodes: Mapping[str, Node]
    workflow: Mapping[str, Any] | None = None

    def with_value(self, node_id: str, name: str, value: Any) -> Graph:
        """This graph with one plain value changed, in the editor's JSON too.

        When that JSON has no place for the value it is dropped: a picture shall not carry a
        workflow that says something else than what was run.
        """
        node = self.nodes[node_id]
        place = node.places.get(name)
        workflow = None if self.workflow is None or place is None else _placed(self.workflow, place, value)
        changed = replace(node, inputs={**node.inputs, name: value})
        return Graph({**self.nodes, node_id: changed}, workflow)

    def to_api(self) -> dict[str, Any]:
        """The API form, as the host takes it and writes it into pictures."""
        return {
            node.id: {
                "inputs": {name: _api_value(value) for name, value in node.inputs.items()},
                "class_type": node.class_type,
                "_meta": {"title": node.title or node.class_type},
            }
            for node in self.nodes.values()
        }

    def order(self, targets: Iterable[str] | None = None) -> tuple[str, ...]:
        """Ids so that every node comes after those it needs; only what `targets` need.

        Nodes keep the file's order as far as links allow. Raises WorkflowError on a cycle, naming it.
        """
        done: dict[str, bool] = {}
        result: list[str] = []
        for target in self.nodes if targets is None else targets:
            self._visit(target, done, result)
        return tuple(result)

    def _visit(self, target: str, done: dict[str, bool], result: list[str]) -> None:
        """Depth-first without recursion, since a workflow may be one long chain."""
        if target in done or target not in self.nodes:
            return
        done[target] = False
        stack = [(target, self._sources(target))]
        while stack:
            current, sources = stack[-1]
            source = next(sources, None)
            if source is None:
                done[current] = True
                result.append(current)
                stack.pop()
            elif source not in done:
                done[source] = False
                stack.append((source, self._sources(source)))
            elif not done[source]:
                path = [entry[0] for entry in stack]
                raise WorkflowError(self._cycle_message(path[path.index(source) :]))

    def _sources(self, node_id: str) -> Iterator[str]:
        return (link.node for _, link in self.nodes[node_id].links() if link.node in self.nodes)

    def _cycle_message(self, path: list[str]) -> str:
        ring = [self.nodes[node_id].label for node_id in path]
        shown = ring if len(ring) <= 6 else [*ring[:5], f"{len(ring) - 5} more"]
        return f"the workflow has a cycle: {' <- '.join([*shown, ring[0]])}: remove one of these links"


def _api_value(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value


def _placed(tree: Any, place: Place, value: Any) -> Any:
    """`tree` with the value at `place` replaced; only the containers on the way are copied."""
    trail = [tree]
    for key in place[:-1]:
        trail.append(trail[-1][key])
    for container, key in zip(reversed(trail), reversed(place), strict=True):
        copied = list(container) if isinstance(container, list) else dict(container)
        copied[key] = value  # type: ignore[index,call-overload]
        value = copied
    return value
