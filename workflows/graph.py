"""A workflow as data: nodes, links, and the order in which they run.

Graphs are immutable: changing a value makes a new graph. `validation.py` checks a graph against the node classes,
`execution.py` runs it, `formats.py` and `editor.py` read it from files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ..controlnet_core.errors import WorkflowError

Place = tuple[str | int, ...]
"""Path to a value in the editor's JSON: keys and indices, from the top."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


def node_label(node_id: str, title: str, class_type: str) -> str:
    """Return how messages name a node: id, its title if a person gave it one, class."""
    titled = f' "{title}"' if title and title != class_type else ""
    return f"node {node_id}{titled} ({class_type})"


@dataclass(frozen=True)
class Link:
    """An input that takes output number `slot` of the node `node`."""

    node: str
    slot: int


@dataclass(frozen=True)
class Node:
    """One step of a workflow.

    inputs: name -> `Link` or plain value. absent: name -> why an input that was linked in the editor has no value (its
    source is muted, for instance). places: name -> where the plain value stands in the editor's JSON, so that a changed
    value can be written back. models: files that the workflow's author recommends, {"name", "directory", "url"}.
    search_name: the name in the editor's property "Node name for S&R", by which file name prefixes take its values.
    """

    id: str
    class_type: str
    inputs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    title: str = ""
    absent: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    places: Mapping[str, Place] = field(default_factory=lambda: _EMPTY)
    models: tuple[Mapping[str, str], ...] = ()
    search_name: str = ""

    @property
    def label(self) -> str:
        """The node's name in messages."""
        return node_label(self.id, self.title, self.class_type)

    def links(self) -> Iterator[tuple[str, Link]]:
        """Return (input name, link) of the linked inputs."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


@dataclass(frozen=True)
class Graph:
    """Nodes by id. workflow: the editor's JSON that the graph was read from, None for the API form."""

    nodes: Mapping[str, Node]
    workflow: Mapping[str, Any] | None = None

    def with_value(self, node_id: str, name: str, value: Any) -> Graph:
        """Return this graph with one plain value changed, in the editor's JSON too."""
        node = self.nodes[node_id]
        place = node.places.get(name)
        # Without a place the JSON is dropped: a saved picture must not carry a workflow that differs from what ran.
        workflow = None if self.workflow is None or place is None else _placed(self.workflow, place, value)
        changed = replace(node, inputs={**node.inputs, name: value})
        return Graph({**self.nodes, node_id: changed}, workflow)

    def to_api(self) -> dict[str, Any]:
        """Return the API form, which ComfyUI takes as a prompt and writes into pictures."""
        return {
            node.id: {
                "inputs": {name: _api_value(value) for name, value in node.inputs.items()},
                "class_type": node.class_type,
                "_meta": {"title": node.title or node.class_type},
            }
            for node in self.nodes.values()
        }

    def order(self, targets: Iterable[str] | None = None) -> tuple[str, ...]:
        """Return node ids, each after those that it needs; only `targets` (default: all) and what they need.

        Nodes keep the file's order as far as links allow. Raises WorkflowError that names a cycle.
        """
        done: dict[str, bool] = {}
        result: list[str] = []
        for target in self.nodes if targets is None else targets:
            self._visit(target, done, result)
        return tuple(result)

    def _visit(self, target: str, done: dict[str, bool], result: list[str]) -> None:
        """Visit depth-first. Without recursion, because a workflow may be one chain of thousands of nodes."""
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
            # A source that is begun but not done is further down on the stack: the links run in a circle.
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
    """Return `tree` with the value at `place` replaced. Only the containers on the path are copied."""
    trail = [tree]
    for key in place[:-1]:
        trail.append(trail[-1][key])
    for container, key in zip(reversed(trail), reversed(place), strict=True):
        copied = list(container) if isinstance(container, list) else dict(container)
        copied[key] = value  # type: ignore[index,call-overload]
        value = copied
    return value
