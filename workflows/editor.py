"""Turn a workflow in the editor's form (format 0.4 and 1) into a graph that can run.

This does what the editor does when it queues a prompt. Nodes that only exist in the editor go away: notes, reroutes,
primitives, Set/Get pairs, muted (mode 2) and bypassed (mode 4) nodes. Subgraphs are replaced by their inner nodes,
which get the ids "instance:inner".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache as keep
from typing import Any

from .broadcasts import SENDERS, Target, broadcast_links
from .checks import MAX_NODES, fail
from .contract import InputSpec, read_spec, types_fit
from .drawing import BYPASSED, MUTED, Definition, Drawing, DrawnNode, read_drawing
from .graph import Graph, Link, Node, Place
from .group_nodes import Specs, Unfolded, unfold_groups
from .migrations import current_inputs
from .widgets import has_control, prompt_value, widget_values

MAX_DEPTH = 64
MAX_STEPS = 500_000
"""Links that are followed, and inputs of bypassed nodes that are compared; a real workflow needs a few thousand."""
_SET_NODES = frozenset({"SetNode", "easy setNode"})
_GET_NODES = frozenset({"GetNode", "easy getNode"})
_PASSING = frozenset({"Reroute", "Reroute (rgthree)"}) | _SET_NODES
_PRIMITIVE = "PrimitiveNode"
_RGTHREE = (
    "Bookmark", "Label", "Fast Muter", "Fast Bypasser", "Fast Groups Muter", "Fast Groups Bypasser",
    "Fast Actions Button", "Node Collector", "Node Combiner", "Mute / Bypass Relay", "Mute / Bypass Repeater",
    "Random Unmuter",
)  # fmt: skip
EDITOR_ONLY = frozenset(
    {*_PASSING, *_GET_NODES, *SENDERS, _PRIMITIVE, "Note", "MarkdownNote", *(f"{name} (rgthree)" for name in _RGTHREE)}
)
"""Types of nodes that the editor never sends to run."""


@dataclass(frozen=True)
class _Value:
    """A plain value, and where the file stores it. is_primitive: whether it comes from a PrimitiveNode."""

    value: Any
    place: Place | None
    is_primitive: bool = False


@dataclass(frozen=True)
class _Nothing:
    """An input without a source. reason: why, empty if nothing was linked."""

    reason: str = ""


@dataclass(frozen=True)
class _Point:
    """A point reached while links are followed: input (or output) number `index` of a node."""

    is_input: bool
    scope: _Scope
    node: DrawnNode
    index: int


_End = Link | _Value | _Nothing
_Step = _End | _Point


@dataclass(frozen=True)
class _Scope:
    """The root graph, or one instance of a subgraph.

    path: ids of the instances from the root. promoted: values of the instance's own widgets, by subgraph input.
    overrides: values for widgets of inner nodes, by node id and widget.
    """

    path: tuple[str, ...]
    drawing: Drawing
    parent: _Scope | None
    instance: DrawnNode | None
    promoted: Mapping[str, _Value]
    overrides: Mapping[str, Mapping[str, _Value]]


def to_graph(workflow: Mapping[str, Any], classes: Mapping[str, type], name: str) -> Graph:
    """Return the graph of a workflow in the editor's form.

    Nodes of unknown classes are kept, so that validation can name them. Raises WorkflowError if the file is not what
    the editor writes, or if a subgraph contains itself.
    """
    specs = keep(lambda kind: read_spec(kind, classes[kind]) if kind in classes else None)
    unfolded = unfold_groups(workflow, specs, name)
    drawing, definitions = read_drawing(unfolded.workflow, name)
    reader = _Reader(specs, unfolded, definitions, name)
    reader.broadcasts = broadcast_links(workflow, drawing, name)
    root = _Scope((), drawing, None, None, {}, {})
    try:
        nodes = {node.id: node for node in reader.nodes(root)}
    except RecursionError as error:
        raise fail(name, "has subgraphs nested too deeply", "unpack some in the editor") from error
    return Graph(nodes, workflow)


class _Reader:
    """Walks through scopes and follows links. Class contracts are read once."""

    def __init__(self, spec: Specs, unfolded: Unfolded, definitions: Mapping[str, Definition], name: str) -> None:
        self.spec, self.unfolded, self.definitions, self.name = spec, unfolded, definitions, name
        self.broadcasts: Mapping[Target, Target] = {}
        self._inner: dict[tuple[str, ...], _Scope] = {}
        self._has_widget: dict[tuple[str, str], bool] = {}
        self._setters: dict[tuple[str, ...], dict[str, DrawnNode]] = {}
        self._followed: dict[Any, _End | None] = {}
        self._node_count = self._step_count = 0

    def nodes(self, scope: _Scope) -> Iterator[Node]:
        """Yield all nodes that run, those of subgraphs included, in the file's order."""
        for drawn in scope.drawing.nodes.values():
            self._node_count += 1
            if self._node_count > MAX_NODES:
                raise fail(self.name, f"has more than {MAX_NODES} nodes", "split it")
            # Links through bypassed nodes are followed when their targets are read.
            if drawn.mode in (MUTED, BYPASSED) or drawn.type in EDITOR_ONLY:
                continue
            if drawn.type in self.definitions:
                yield from self.nodes(self.inner(scope, drawn))
            else:
                yield self._node(scope, drawn)

    def inner(self, scope: _Scope, instance: DrawnNode) -> _Scope:
        """Return the scope inside an instance of a subgraph."""
        path = (*scope.path, instance.id)
        if path not in self._inner:
            definition = self.definitions[instance.type]
            if len(path) > MAX_DEPTH or _contains_itself(scope, instance):
                title = definition.name
                raise fail(self.name, f'has a subgraph "{title}" that contains itself', "unpack it in the editor")
            self._inner[path] = _Scope(
                path, definition.drawing, scope, instance, *self._instance_widgets(scope, instance, definition)
            )
        return self._inner[path]

    # ---- one node -------------------------------------------------------------------------------

    def _node(self, scope: _Scope, drawn: DrawnNode) -> Node:
        spec = self.spec(drawn.type)
        declared: Mapping[str, InputSpec] = {} if spec is None else spec.inputs
        values: dict[str, Any] = self._own_values(scope, drawn, declared)
        absent = {}
        for index, slot in enumerate(drawn.inputs):
            source = self._follow_input(scope, drawn, index)
            if isinstance(source, _Nothing):
                source = self._broadcast(scope, drawn, index, source)
            if isinstance(source, _Value) and source.is_primitive:
                # The editor copies a primitive's value into the widget, which then sends it as its own.
                source = _Value(prompt_value(declared.get(slot.name), source.value), source.place)
            if not isinstance(source, _Nothing):
                values[slot.name] = source
            # Without a reason nothing was linked, and the widget keeps its own value.
            elif source.reason:
                values.pop(slot.name, None)
                absent[slot.name] = source.reason
        inputs = {name: item.value if isinstance(item, _Value) else item for name, item in values.items()}
        found = ((name, self.unfolded.place_in_file(v.place)) for name, v in values.items() if isinstance(v, _Value))
        places = {name: place for name, place in found if place}
        node_id = ":".join((*scope.path, drawn.id))
        inputs = current_inputs(drawn.type, inputs)
        return Node(node_id, drawn.type, inputs, drawn.title, absent, places, drawn.models, drawn.search_name)

    def _own_values(self, scope: _Scope, drawn: DrawnNode, inputs: Mapping[str, InputSpec]) -> dict[str, Any]:
        """Return the widget values of a node; a widget that the subgraph's instance shows has the instance's value."""
        saved = widget_values(inputs, drawn.saved, drawn.named)
        own = {
            name: _Value(item.value, None if item.at is None else (*drawn.place, "widgets_values", item.at))
            for name, item in saved.items()
        }
        shown = scope.overrides.get(drawn.id, {})
        return {**own, **{name: value for name, value in shown.items() if name in own}}

    # ---- widgets of a subgraph's instance ---------------------------------------------------------

    def _instance_widgets(
        self, scope: _Scope, instance: DrawnNode, definition: Definition
    ) -> tuple[dict[str, _Value], dict[str, dict[str, _Value]]]:
        """Return what an instance gives to its inside: `promoted` and `overrides` of `_Scope`.

        The format has two ways. `properties.proxyWidgets` lists (inner node, widget), where "-1" stands for an input of
        the subgraph. Without it the widgets are the subgraph's inputs that end in a widget inside.
        """
        linked = {
            (node.id, slot.name): ("-1", name) for name, ends in definition.targets.items() for node, slot in ends
        }
        proxies = [linked.get(key, key) for key in instance.proxies]
        keys = [("-1", name) for name in definition.inputs if self._ends_in_widget(instance.type, name)]
        if proxies:
            proxied = set(proxies)
            shown = [key for key in keys if key not in proxied]
            # Some versions store the values of all widgets, some only those of the listed ones.
            is_longer = isinstance(instance.saved, list) and len(instance.saved) >= len(shown) + len(proxies)
            keys = [*(shown if is_longer else ()), *proxies]
        values = dict(self._instance_values(instance, definition, keys))
        # A widget may be shown through two levels of subgraphs.
        for name, value in scope.overrides.get(instance.id, {}).items():
            values["-1", name] = value
            values.update({key: value for key in proxies if key[1] == name and key[0] != "-1"})
        promoted: dict[str, _Value] = {}
        overrides: dict[str, dict[str, _Value]] = {}
        for (node, name), value in values.items():
            (promoted if node == "-1" else overrides.setdefault(node, {}))[name] = value
        return promoted, overrides

    def _instance_values(
        self, instance: DrawnNode, definition: Definition, keys: list[tuple[str, str]]
    ) -> Iterator[tuple[tuple[str, str], _Value]]:
        saved = instance.saved if instance.saved is not None else instance.named
        if isinstance(saved, dict):
            yield from ((key, _Value(saved[key[1]], None)) for key in keys if saved.get(key[1]) is not None)
            return
        values = saved if isinstance(saved, list) else []
        has_surplus = len(values) > len(keys)
        at = 0
        for key in keys:
            if at >= len(values):
                return
            if values[at] is not None:
                yield key, _Value(values[at], (*instance.place, "widgets_values", at))
            spec = self._widget_spec(definition, key) if has_surplus else None
            # An instance also stores "control_after_generate" after a seed.
            at += 2 if spec is not None and has_control(spec) else 1

    def _widget_spec(self, definition: Definition, key: tuple[str, str]) -> InputSpec | None:
        """Return the declared input behind a widget that an instance shows."""
        if key[0] == "-1":
            ends = [(node.type, slot.name) for node, slot in definition.targets.get(key[1], ())]
        else:
            inner = definition.drawing.nodes.get(key[0])
            ends = [] if inner is None else [(inner.type, key[1])]
        specs = [(self.spec(class_type), name) for class_type, name in ends]
        return next((spec.inputs[name] for spec, name in specs if spec is not None and name in spec.inputs), None)

    def _ends_in_widget(self, subgraph: str, name: str) -> bool:
        """Whether a subgraph's input feeds a widget inside, also through further subgraphs."""
        key = (subgraph, name)
        if key not in self._has_widget:
            # This is the answer if the search comes back to this input, in a definition that contains itself.
            self._has_widget[key] = False
            self._has_widget[key] = any(
                slot.is_widget or (node.type in self.definitions and self._ends_in_widget(node.type, slot.name))
                for node, slot in self.definitions[subgraph].targets.get(name, ())
            )
        return self._has_widget[key]

    # ---- following links ------------------------------------------------------------------------

    def _follow_input(self, scope: _Scope, node: DrawnNode, index: int) -> Link | _Value | _Nothing:
        """Return where an input's value comes from, through everything that only exists in the editor.

        Results are kept for each point on the way, so that many inputs behind one long chain take linear time.
        """
        return self._follow(_Point(True, scope, node, index), node.inputs[index].type)

    def _follow(self, start: _Point, wanted: str) -> _End:
        marks = []
        step: _Step = start
        while isinstance(step, _Point):
            mark = (step.scope.path, step.node.id, step.is_input, step.index, wanted)
            if mark in self._followed:
                known = self._followed[mark]
                # None marks a point whose end is not known yet: the link leads back to it.
                if known is None:
                    raise fail(
                        self.name, f"has links that run in a circle at node {step.node.id}", "remove one of them"
                    )
                step = known
                continue
            self._step_count += 1
            if self._step_count > MAX_STEPS:
                fault = f"has chains of reroutes or bypassed nodes with more than {MAX_STEPS} steps"
                raise fail(self.name, fault, "link nodes directly")
            self._followed[mark] = None
            marks.append(mark)
            step = self._source(step) if step.is_input else self._output(step, wanted)
        self._followed.update(dict.fromkeys(marks, step))
        return step

    def _broadcast(self, scope: _Scope, node: DrawnNode, index: int, nothing: _Nothing) -> _End:
        """Return what a node of Use Everywhere sends to an input without a source, `nothing` if no one does."""
        sent = self.broadcasts.get((node.id, index)) if not scope.path else None
        origin = None if sent is None else scope.drawing.nodes.get(sent[0])
        if sent is None or origin is None:
            return nothing
        return self._follow(_Point(False, scope, origin, sent[1]), node.inputs[index].type)

    def _source(self, at: _Point) -> _Step:
        """From an input along its link."""
        link_id = at.node.inputs[at.index].link if at.index < len(at.node.inputs) else None
        if link_id is None:
            return _Nothing()
        link = at.scope.drawing.links.get(link_id)
        if link is None:
            return _Nothing(f"its link {link_id} is not in the file: link it again")
        return self._origin(at.scope, link.origin, link.slot)

    def _origin(self, scope: _Scope, origin: str, slot: int) -> _Step:
        if scope.instance is not None and scope.parent is not None and origin == scope.drawing.input_node:
            names, outer = self.definitions[scope.instance.type].inputs, scope.instance.inputs
            if slot >= len(names):
                return _Nothing(f"its subgraph has no input number {slot}: link it again")
            # Instances list their inputs in the same order, but may leave some out. Several names may be empty.
            same = slot < len(outer) and outer[slot].name == names[slot]
            index = slot if same else next((i for i, item in enumerate(outer) if item.name == names[slot]), None)
            if index is not None and outer[index].link is not None:
                return _Point(True, scope.parent, scope.instance, index)
            return scope.promoted.get(names[slot], _Nothing())
        node = scope.drawing.nodes.get(origin)
        if node is None:
            return _Nothing(f"the node {origin} that it was linked to is not in the file: link it again")
        return _Point(False, scope, node, slot)

    def _output(self, at: _Point, wanted: str) -> _Step:
        """From an output into its node: a link if the node runs, else what stands before the node."""
        scope, node = at.scope, at.node
        # The editor resolves these before it looks at the mode: a muted reroute still passes its link on.
        if node.type in _PASSING:
            return _Point(True, scope, node, 0)
        # A bypassed Get node has no input that it could pass on.
        if node.type in _GET_NODES and node.mode != BYPASSED:
            return self._get_node(scope, node)
        if node.type == _PRIMITIVE:
            if isinstance(node.saved, list) and node.saved:
                return _Value(node.saved[0], (*node.place, "widgets_values", 0), is_primitive=True)
            return _Nothing()
        if node.mode == MUTED:
            return _Nothing(f"{node.label}, which it is linked to, is muted: unmute it or link another")
        if node.mode == BYPASSED:
            self._step_count += len(node.inputs)
            index = _bypass(node, at.index, wanted)
            if index is None:
                return _Nothing(f"{node.label} is bypassed and has no {wanted} input to pass on: use it again")
            return _Point(True, scope, node, index)
        if node.type in self.definitions:
            definition = self.definitions[node.type]
            link = definition.sources.get(at.index)
            if link is None:
                return _Nothing(f'output {at.index} of subgraph "{definition.name}" has no link inside: link it')
            return self._origin(self.inner(scope, node), link.origin, link.slot)
        return Link(":".join((*scope.path, node.id)), at.index)

    def _get_node(self, scope: _Scope, node: DrawnNode) -> _Step:
        """Return the input of the Set node of the same name, in this canvas or one around it."""
        name = _variable(node)
        place: _Scope | None = scope
        while place is not None:
            if place.path not in self._setters:
                found = [item for item in place.drawing.nodes.values() if item.type in _SET_NODES]
                # The editor takes the first node of a name, so it must be written last.
                self._setters[place.path] = {_variable(item): item for item in reversed(found)}
            setter = self._setters[place.path].get(name)
            if setter is not None:
                return _Point(True, place, setter, 0)
            place = place.parent
        return _Nothing(f"{node.label} reads {name!r}, and no Set node has this name: add one or link it directly")


def _contains_itself(scope: _Scope | None, instance: DrawnNode) -> bool:
    while scope is not None and scope.instance is not None:
        if scope.instance.type == instance.type:
            return True
        scope = scope.parent
    return False


def _variable(node: DrawnNode) -> str:
    """Return the name that a Set or Get node stores."""
    return str(node.saved[0]) if isinstance(node.saved, list) and node.saved else ""


def _bypass(node: DrawnNode, slot: int, wanted: str) -> int | None:
    """Return which input a bypassed node passes on, by the editor's rule.

    The input with the output's number if its type fits, else the first of exactly the wanted type, else the first
    whose type fits.
    """
    inputs = node.inputs
    # An input of any type takes what stands in the same place.
    if wanted in ("*", ""):
        return (slot if slot < len(inputs) else 0) if inputs else None
    output = node.outputs[slot] if slot < len(node.outputs) else "*"
    fitting = [i for i, item in enumerate(inputs) if types_fit(item.type, output) and types_fit(item.type, wanted)]
    if slot in fitting:
        return slot
    exact = [i for i, item in enumerate(inputs) if item.type == wanted]
    return next(iter([*exact, *fitting]), None)
