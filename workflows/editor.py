"""The editor's form of a workflow (format 0.4 and 1) as a graph that can run.

What only exists in the editor goes away here: notes, reroutes, primitives, muted (mode 2) and
bypassed (mode 4) nodes, and subgraphs, whose nodes get the id "instance:inner" that the editor gives
them when it queues a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .checks import MAX_NODES, fail
from .contract import InputSpec, NodeSpec, read_spec, types_fit
from .drawing import BYPASSED, MUTED, Definition, Drawing, DrawnNode, read_drawing
from .graph import Graph, Link, Node, Place
from .widgets import WidgetValue, has_control, widget_values

MAX_DEPTH = 64
_REROUTES = ("Reroute", "Reroute (rgthree)")
_DROPPED = (*_REROUTES, "PrimitiveNode", "Note", "MarkdownNote")


@dataclass(frozen=True)
class _Value:
    """A plain value, and where the file keeps it."""

    value: Any
    place: Place | None


@dataclass(frozen=True)
class _Nothing:
    """An input without a source; `reason` is empty when nothing was ever linked."""

    reason: str = ""


@dataclass(frozen=True)
class _Scope:
    """The root graph, or one instance of a subgraph with the values that its parents gave it."""

    path: tuple[str, ...]
    drawing: Drawing
    parent: _Scope | None
    instance: DrawnNode | None
    promoted: Mapping[str, _Value]
    overrides: Mapping[tuple[str, str], _Value]


def to_graph(workflow: Mapping[str, Any], classes: Mapping[str, type], name: str) -> Graph:
    """The graph of a workflow in the editor's form.

    Nodes of unknown classes are kept, so that validation can name them. Raises WorkflowError when the
    file is not what the editor writes, or when its subgraphs contain themselves.
    """
    drawing, definitions = read_drawing(workflow, name)
    reader = _Reader(classes, definitions, name)
    root = _Scope((), drawing, None, None, {}, {})
    try:
        nodes = {node.id: node for node in reader.nodes(root)}
    except RecursionError as error:
        raise fail(name, "has subgraphs nested too deeply", "unpack some in the editor") from error
    return Graph(nodes, workflow)


class _Reader:
    """Walks scopes and follows links; class contracts are read once."""

    def __init__(self, classes: Mapping[str, type], definitions: Mapping[str, Definition], name: str) -> None:
        self.classes, self.definitions, self.name = classes, definitions, name
        self._specs: dict[str, NodeSpec | None] = {}
        self._inner: dict[tuple[str, ...], _Scope] = {}
        self._fields: dict[tuple[str, str], bool] = {}
        self._count = 0

    def spec(self, class_type: str) -> NodeSpec | None:
        if class_type not in self._specs:
            cls = self.classes.get(class_type)
            self._specs[class_type] = None if cls is None else read_spec(class_type, cls)
        return self._specs[class_type]

    def nodes(self, scope: _Scope) -> Iterator[Node]:
        """All nodes that run, those of subgraphs included, in the file's order."""
        for drawn in scope.drawing.nodes.values():
            self._count += 1
            if self._count > MAX_NODES:
                raise fail(self.name, f"has more than {MAX_NODES} nodes", "split it")
            if drawn.mode in (MUTED, BYPASSED) or drawn.type in _DROPPED:
                continue
            if drawn.type in self.definitions:
                yield from self.nodes(self.inner(scope, drawn))
            else:
                yield self._node(scope, drawn)

    def inner(self, scope: _Scope, instance: DrawnNode) -> _Scope:
        """The scope inside a subgraph's instance."""
        path = (*scope.path, instance.id)
        if path not in self._inner:
            if len(path) > MAX_DEPTH or self._contains_itself(scope, instance):
                title = self.definitions[instance.type].name
                raise fail(self.name, f'has a subgraph "{title}" that contains itself', "unpack it in the editor")
            definition = self.definitions[instance.type]
            promoted, overrides = self._given(scope, instance, definition)
            self._inner[path] = _Scope(path, definition.drawing, scope, instance, promoted, overrides)
        return self._inner[path]

    def _contains_itself(self, scope: _Scope | None, instance: DrawnNode) -> bool:
        while scope is not None and scope.instance is not None:
            if scope.instance.type == instance.type:
                return True
            scope = scope.parent
        return False

    # ---- one node -------------------------------------------------------------------------------

    def _node(self, scope: _Scope, drawn: DrawnNode) -> Node:
        spec = self.spec(drawn.type)
        values: dict[str, _Value] = {} if spec is None else self._own_values(scope, drawn, spec.inputs)
        inputs: dict[str, Any] = {name: value.value for name, value in values.items()}
        places = {name: value.place for name, value in values.items() if value.place is not None}
        absent = {}
        for index, slot in enumerate(drawn.inputs):
            source = self._follow_input(scope, drawn, index)
            if isinstance(source, Link):
                inputs[slot.name] = source
                places.pop(slot.name, None)
            elif isinstance(source, _Value):
                inputs[slot.name] = source.value
                places.pop(slot.name, None)
                if source.place is not None:
                    places[slot.name] = source.place
            elif source.reason:
                inputs.pop(slot.name, None)
                absent[slot.name] = source.reason
        node_id = ":".join((*scope.path, drawn.id))
        return Node(node_id, drawn.type, inputs, drawn.title, absent, places, drawn.models)

    def _own_values(self, scope: _Scope, drawn: DrawnNode, inputs: Mapping[str, InputSpec]) -> dict[str, _Value]:
        """Widget values of a node, after those that its subgraph's instance shows in its stead."""
        saved = widget_values(inputs, drawn.saved, drawn.named)
        own = {name: _Value(item.value, _place(drawn, item)) for name, item in saved.items()}
        own.update({name: v for (node, name), v in scope.overrides.items() if node == drawn.id and name in own})
        return own

    # ---- what a subgraph's instance gives to the inside -------------------------------------------

    def _given(
        self, scope: _Scope, instance: DrawnNode, definition: Definition
    ) -> tuple[dict[str, _Value], dict[tuple[str, str], _Value]]:
        """(values of the instance's own fields by input name, values for fields of inner nodes).

        Two ways are in use. `properties.proxyWidgets` lists (inner node, field), "-1" standing for
        an input of the subgraph; without it the fields are the inputs that end in a field inside.
        """
        linked = {
            (node.id, slot.name): ("-1", name) for name, ends in definition.targets.items() for node, slot in ends
        }
        proxies = [linked.get(key, key) for key in instance.proxies]
        fields = [name for name in definition.inputs if self._ends_in_field(instance.type, name)]
        keys: list[tuple[str, str]] = [("-1", name) for name in fields]
        if proxies:
            shown = [key for key in keys if key not in proxies]
            longer = isinstance(instance.saved, list) and len(instance.saved) >= len(shown) + len(proxies)
            keys = [*(shown if longer else ()), *proxies]
        values = dict(self._instance_values(instance, definition, keys))
        promoted = {name: value for (node, name), value in values.items() if node == "-1"}
        overrides = {key: value for key, value in values.items() if key[0] != "-1"}
        for (node, name), value in scope.overrides.items():  # a field shown through two levels
            if node == instance.id:
                promoted[name] = value
                overrides.update({key: value for key in proxies if key[1] == name and key[0] != "-1"})
        return promoted, overrides

    def _instance_values(
        self, instance: DrawnNode, definition: Definition, keys: list[tuple[str, str]]
    ) -> Iterator[tuple[tuple[str, str], _Value]]:
        saved = instance.saved if instance.saved is not None else instance.named
        if isinstance(saved, dict):
            for key in keys:
                if saved.get(key[1]) is not None:
                    yield key, _Value(saved[key[1]], None)
            return
        if not isinstance(saved, list):
            return
        surplus = len(saved) > len(keys)
        cursor = 0
        for key in keys:
            if cursor >= len(saved):
                return
            if saved[cursor] is not None:
                yield key, _Value(saved[cursor], (*instance.place, "widgets_values", cursor))
            cursor += 1
            spec = self._field(definition, key) if surplus else None
            if spec is not None and has_control(spec):
                cursor += 1

    def _field(self, definition: Definition, key: tuple[str, str]) -> InputSpec | None:
        """The declared input behind a field that an instance shows."""
        if key[0] == "-1":
            ends = [(node.type, slot.name) for node, slot in definition.targets.get(key[1], ())]
        else:
            inner = definition.drawing.nodes.get(key[0])
            ends = [] if inner is None else [(inner.type, key[1])]
        for class_type, name in ends:
            spec = self.spec(class_type)
            if spec is not None and name in spec.inputs:
                return spec.inputs[name]
        return None

    def _ends_in_field(self, subgraph: str, name: str) -> bool:
        """Whether a subgraph's input feeds a field inside, through further subgraphs too."""
        key = (subgraph, name)
        if key not in self._fields:
            self._fields[key] = False  # what a definition that contains itself gets
            self._fields[key] = any(
                slot.widget or (node.type in self.definitions and self._ends_in_field(node.type, slot.name))
                for node, slot in self.definitions[subgraph].targets.get(name, ())
            )
        return self._fields[key]

    # ---- following links ------------------------------------------------------------------------

    def _follow_input(self, scope: _Scope, node: DrawnNode, index: int) -> Link | _Value | _Nothing:
        """Where an input's value comes from, past all that only the editor knows."""
        wanted = node.inputs[index].type
        seen: set[tuple[tuple[str, ...], str, str, int]] = set()
        step: Any = ("in", scope, node, index)
        while isinstance(step, tuple):
            side, scope, node, index = step
            mark = (scope.path, node.id, side, index)
            if mark in seen:
                raise fail(self.name, f"has links that run in a circle at node {node.id}", "remove one of them")
            seen.add(mark)
            step = self._source(scope, node, index) if side == "in" else self._output(scope, node, index, wanted)
        return step

    def _source(self, scope: _Scope, node: DrawnNode, index: int) -> Any:
        """From an input along its link: the next step, a value, or nothing."""
        if index >= len(node.inputs):
            return _Nothing()
        link_id = node.inputs[index].link
        if link_id is None:
            return _Nothing()
        link = scope.drawing.links.get(link_id)
        if link is None:
            return _Nothing(f"its link {link_id} is not in the file: link it anew")
        return self._origin(scope, link.origin, link.slot)

    def _origin(self, scope: _Scope, origin: str, slot: int) -> Any:
        if scope.instance is not None and scope.parent is not None and origin == scope.drawing.input_node:
            names = self.definitions[scope.instance.type].inputs
            if slot >= len(names):
                return _Nothing(f"its subgraph has no input number {slot}: link it anew")
            name = names[slot]
            outer = next((i for i, s in enumerate(scope.instance.inputs) if s.name == name), None)
            if outer is not None and scope.instance.inputs[outer].link is not None:
                return ("in", scope.parent, scope.instance, outer)
            return scope.promoted.get(name, _Nothing())
        node = scope.drawing.nodes.get(origin)
        if node is None:
            return _Nothing(f"the node {origin} that it was linked to is not in the file: link it anew")
        return ("out", scope, node, slot)

    def _output(self, scope: _Scope, node: DrawnNode, slot: int, wanted: str) -> Any:
        """From an output inwards: a link if the node runs, else what stands behind it."""
        if node.mode == BYPASSED:
            index = _bypass(node, slot, wanted)
            if index is None:
                return _Nothing(f"{node.label} is bypassed and has no {wanted} input to pass on: use it again")
            return ("in", scope, node, index)
        if node.mode == MUTED:
            return _Nothing(f"{node.label}, which it is linked to, is muted: unmute it or link another")
        if node.type in self.definitions:
            return self._subgraph_output(scope, node, slot)
        if node.type in _REROUTES:
            return ("in", scope, node, 0)
        if node.type == "PrimitiveNode":
            if isinstance(node.saved, list) and node.saved:
                return _Value(node.saved[0], (*node.place, "widgets_values", 0))
            return _Nothing()
        return Link(":".join((*scope.path, node.id)), slot)

    def _subgraph_output(self, scope: _Scope, instance: DrawnNode, slot: int) -> Any:
        definition = self.definitions[instance.type]
        link = definition.sources.get(slot)
        if link is None:
            return _Nothing(f'output {slot} of subgraph "{definition.name}" has no link inside: link it')
        return self._origin(self.inner(scope, instance), link.origin, link.slot)


def _place(drawn: DrawnNode, item: WidgetValue) -> Place | None:
    return None if item.at is None else (*drawn.place, "widgets_values", item.at)


def _bypass(node: DrawnNode, slot: int, wanted: str) -> int | None:
    """Which input a bypassed node passes on: the one at the same place if its type fits, else the
    first of exactly the wanted type, else the first that fits."""
    inputs = node.inputs
    if wanted in ("*", ""):
        return (slot if slot < len(inputs) else 0) if inputs else None
    output = node.outputs[slot] if slot < len(node.outputs) else "*"

    def fits(kind: str) -> bool:
        return types_fit(kind, output) and types_fit(kind, wanted)

    if slot < len(inputs) and fits(inputs[slot].type):
        return slot
    exact = next((i for i, item in enumerate(inputs) if item.type == wanted), None)
    return exact if exact is not None else next((i for i, item in enumerate(inputs) if fits(item.type)), None)
