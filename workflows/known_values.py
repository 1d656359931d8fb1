"""What nodes will give, as far as a workflow's plain values alone decide it: before anything is loaded.

A prompt often comes from a text field or a primitive, so the files that it names are known before the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..controlnet_core.errors import CoreError
from .contract import NodeSpec
from .execution import Cache, GraphRun
from .graph import Graph, Link, Node


class KnownValues:
    """Outputs of the nodes that say of themselves that they only compute values (`nodes.node.Node.COMPUTES_VALUES`)."""

    def __init__(self, graph: Graph, classes: Mapping[str, type], specs: Mapping[str, NodeSpec]) -> None:
        self._classes = classes
        self._run = GraphRun(graph, classes, specs, Cache())

    def add(self, node: Node) -> CoreError | None:
        """Compute the outputs of a checked node whose sources were added before. Returns the error of a run, if any.

        Nodes that do more than compute values, and those behind them, are left out.
        """
        cls = self._classes[node.class_type]
        if not getattr(cls, "COMPUTES_VALUES", False) or any(self.of(link) is None for _, link in node.links()):
            return None
        try:
            self._run.results[node.id] = self._run.run_node(node)
        except CoreError as error:
            return error
        return None

    def of(self, link: Link) -> list[Any] | None:
        """The list of values that a link carries, None if only a run knows it."""
        result = self._run.results.get(link.node)
        return result.outputs[link.slot] if result is not None and link.slot < len(result.outputs) else None
