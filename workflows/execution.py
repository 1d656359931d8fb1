"""Run a validated workflow: one node after the other, unchanged nodes from the cache.

The rules are ComfyUI's: outputs are lists inside, a node runs once for each list item unless it declares INPUT_IS_LIST,
and a node whose class, values and sources are unchanged does not run again.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..controlnet_core.errors import CoreError, Interrupted, OutOfMemory, WorkflowError, WriteError
from .contract import NodeSpec, read_specs
from .graph import Graph, Link, Node

Outputs = tuple[list[Any], ...]
_STRENGTHS = {"CNCore_ApplyControlNet": "strength", "CNCore_ControlUnit": "strength", "CNCore_RegionPrompts": "weight"}
"""Our nodes that make units, and the input that leaves the unit out when it is 0."""
_HIDDEN = ("PROMPT", "EXTRA_PNGINFO", "UNIQUE_ID")
_MEMORY = "out of memory: use a smaller picture or batch, --dtype fp16, fewer control nets, or --device cpu"


@dataclass(frozen=True)
class NodeEvent:
    """Passed to `on_node` when a node starts, is done (with the seconds that it took), or comes from the cache."""

    state: Literal["start", "done", "cached"]
    node: Node
    index: int
    total: int
    seconds: float = 0.0


@dataclass(frozen=True)
class NodeResult:
    """The result of a node: one list per output, and what it shows in the editor (`ui`)."""

    outputs: Outputs
    ui: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Cache:
    """Results that are kept between runs of one process: those that the latest run used, as in ComfyUI."""

    results: dict[str, NodeResult] = field(default_factory=dict)
    fresh: Iterator[int] = field(default_factory=itertools.count)


@dataclass(frozen=True)
class RunResult:
    """Results by node id, for the nodes that were needed, in the order in which they ran."""

    nodes: Mapping[str, NodeResult]
    executed: tuple[str, ...]
    seconds: float

    def ui(self, kind: str) -> list[Any]:
        """Return all entries of one kind that output nodes showed, such as "images"."""
        return [entry for result in self.nodes.values() for entry in result.ui.get(kind, ())]


def execute(
    graph: Graph,
    classes: Mapping[str, type],
    *,
    outputs: Sequence[str] | None = None,
    cache: Cache | None = None,
    on_node: Callable[[NodeEvent], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Run output nodes of a graph that `validate` returned, and the nodes that they need.

    outputs: ids of the output nodes to run, default all. Raises Interrupted if `cancelled` returns true, OutOfMemory,
    or the node's own CoreError with the node's name in front. Any other error of a node becomes a CoreError that
    names it.
    """
    began = time.perf_counter()
    specs = read_specs(classes, [node.class_type for node in graph.nodes.values()])
    if outputs is None:
        outputs = [node.id for node in graph.nodes.values() if specs[node.class_type].is_output]
    # ComfyUI starts with the output nodes and runs only what they need.
    order = graph.order(outputs)
    run = GraphRun(graph, classes, specs, cache or Cache())
    executed = []
    for index, node_id in enumerate(order):
        if cancelled():
            raise Interrupted(f"stopped before {graph.nodes[node_id].label}; what was saved before stays")
        if run.step(node_id, index, len(order), on_node):
            executed.append(node_id)
    # Drop the results of earlier runs, as ComfyUI does: they may hold gigabytes.
    run.cache.results = {run.keys[node_id]: run.results[node_id] for node_id in order}
    return RunResult(run.results, tuple(executed), time.perf_counter() - began)


def idle_controls(graph: Graph, result: RunResult) -> list[str]:
    """Return a message for each node that adds no unit of control, so that no report can name one."""

    def value(node: Node, name: str) -> Any:
        given = node.inputs.get(name)
        if isinstance(given, Link):
            given = next(iter(result.nodes[given.node].outputs[given.slot]), None)
        return given

    notes = []
    for node in (graph.nodes[node_id] for node_id in result.nodes):
        is_native = node.class_type.startswith("ControlNetApply")
        if value(node, "strength" if is_native else _STRENGTHS.get(node.class_type, "")) == 0:
            notes.append(f"{node.label} had no effect: its strength is 0")
        elif is_native and _is_above(value(node, "start_percent"), value(node, "end_percent")):
            notes.append(f"{node.label} had no effect: its window ends before it starts")
    return notes


def _is_above(first: Any, second: Any) -> bool:
    return isinstance(first, (int, float)) and isinstance(second, (int, float)) and first > second


class GraphRun:
    """One pass over a graph. keys, results: of the nodes that are done, by node id."""

    def __init__(self, graph: Graph, classes: Mapping[str, type], specs: Mapping[str, NodeSpec], cache: Cache) -> None:
        self.graph, self.classes, self.specs, self.cache = graph, classes, specs, cache
        self.keys: dict[str, str] = {}
        self.results: dict[str, NodeResult] = {}

    def step(self, node_id: str, index: int, total: int, on_node: Callable[[NodeEvent], None]) -> bool:
        """Get one node's result. Returns whether the node had to run."""
        node = self.graph.nodes[node_id]
        self.keys[node_id] = self._key(node)
        known = self.cache.results.get(self.keys[node_id])
        if known is not None:
            self.results[node_id] = known
            on_node(NodeEvent("cached", node, index, total))
            return False
        on_node(NodeEvent("start", node, index, total))
        began = time.perf_counter()
        result = self.run_node(node)
        self.results[node_id] = self.cache.results[self.keys[node_id]] = result
        on_node(NodeEvent("done", node, index, total, time.perf_counter() - began))
        return True

    def _key(self, node: Node) -> str:
        """Return a digest of class, values and the keys of the sources. Equal keys mean equal results."""
        cls, spec = self.classes[node.class_type], self.specs[node.class_type]
        parts: list[Any] = [node.class_type]
        # A node that knows its own id may depend on it, so equal nodes do not share a result.
        if "UNIQUE_ID" in spec.hidden.values() or getattr(cls, "NOT_IDEMPOTENT", False):
            parts.append(node.id)
        changed = self._is_changed(node, cls)
        # By ComfyUI's convention NaN, which is unequal to itself, means that the node runs each time
        parts.append(("fresh", next(self.cache.fresh)) if changed != changed else changed)
        for name in sorted(node.inputs):
            value = node.inputs[name]
            linked = isinstance(value, Link)
            parts.append((name, self.keys[value.node], value.slot) if linked else (name, repr(value)))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _is_changed(self, node: Node, cls: type) -> Any:
        probe = getattr(cls, "IS_CHANGED", None)
        if probe is None:
            return False
        try:
            return probe(**{n: None if isinstance(v, Link) else v for n, v in self._declared(node).items()})
        except CoreError as error:
            raise _named(error, node) from error
        except Exception:
            # ComfyUI's rule: if this method fails, the node counts as changed.
            return float("nan")

    def _declared(self, node: Node) -> dict[str, Any]:
        spec = self.specs[node.class_type]
        return {name: value for name, value in node.inputs.items() if name in spec.inputs}

    def run_node(self, node: Node) -> NodeResult:
        """The result of a node, past the cache. Raises a CoreError that names it."""
        cls, spec = self.classes[node.class_type], self.specs[node.class_type]
        try:
            function = getattr(cls(), cls.FUNCTION)  # type: ignore[attr-defined]
            returned = [function(**arguments) for arguments in self._calls(node, cls, spec)]
            return _collect(returned, cls)
        except CoreError as error:
            raise _named(error, node) from error
        except MemoryError as error:
            raise _named(OutOfMemory(_MEMORY), node) from error
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            # Readers name their files themselves, so that this is a file that cannot be written.
            raise WriteError(f"{node.label}: {error.strerror or error}{where}: check disk and folder") from error
        except Exception as error:
            if _is_out_of_memory(error):
                raise _named(OutOfMemory(_MEMORY), node) from error
            raise CoreError(f"{node.label} failed: {type(error).__name__}: {error}") from error

    def _calls(self, node: Node, cls: type, spec: NodeSpec) -> Iterable[dict[str, Any]]:
        """Return the keyword arguments of each call. Shorter lists repeat their last item."""
        lists = {
            name: self.results[value.node].outputs[value.slot] if isinstance(value, Link) else [value]
            for name, value in self._declared(node).items()
        }
        lists.update({name: [self._hidden(kind, node)] for name, kind in spec.hidden.items() if kind in _HIDDEN})
        if getattr(cls, "INPUT_IS_LIST", False):
            return [lists]
        if not lists:
            return [{}]
        # An empty list means that the node does not run at all.
        if not all(lists.values()):
            return []
        count = max(len(values) for values in lists.values())
        return [{name: values[min(i, len(values) - 1)] for name, values in lists.items()} for i in range(count)]

    def _hidden(self, kind: str, node: Node) -> Any:
        if kind == "PROMPT":
            return self.graph.to_api()
        if kind == "EXTRA_PNGINFO":
            return {"workflow": self.graph.workflow} if self.graph.workflow is not None else {}
        return node.id


def _collect(returned: Sequence[Any], cls: type) -> NodeResult:
    """Join the results of all calls of one node: a list for each output and for each kind of `ui`."""
    rows, ui = [], {}
    for value in returned:
        if isinstance(value, Mapping):
            if "expand" in value:
                raise WorkflowError("it expands into further nodes, which only ComfyUI can run: replace it")
            for kind, entries in (value.get("ui") or {}).items():
                ui.setdefault(kind, []).extend(entries)
            value = value.get("result")
        if value is not None:
            rows.append(value)
    count = len(getattr(cls, "RETURN_TYPES", ()))
    for row in rows:
        if not isinstance(row, (tuple, list)) or len(row) < count:
            raise CoreError(f"did not return a tuple of {count} outputs: report it to the author of the node")
    as_list = tuple(getattr(cls, "OUTPUT_IS_LIST", ())) or (False,) * count
    outputs = tuple(
        [item for row in rows for item in row[slot]] if as_list[slot] else [row[slot] for row in rows]
        for slot in range(count)
    )
    return NodeResult(outputs, ui)


def _named(error: CoreError, node: Node) -> CoreError:
    """Return the error with the node's name in front of its message."""
    error.args = (f"{node.label}: {error}", *error.args[1:])
    return error


def _is_out_of_memory(error: Exception) -> bool:
    # By name: torch.AcceleratorError does not exist in older versions, and torch need not be imported here.
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
        return "memory" in str(error).lower()
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
