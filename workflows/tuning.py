"""Plan a search for a strength: which input is tried, how the result is measured, and how a run is made short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..controlnet_core.errors import WorkflowError
from .graph import Graph, Link, Node
from .overrides import apply_settings, find_node
from .sweep_cells import Shown, choose_shown


@dataclass(frozen=True)
class Tuning:
    """graph: the workflow with a node that measures. strength: the node whose strength is tried.

    samplers: nodes whose steps a short run has fewer of, and these steps.
    """

    shown: Shown
    strength: Node
    samplers: Mapping[str, int]

    @property
    def fidelity(self) -> str:
        """The node that measures."""
        assert self.shown.fidelity is not None  # `plan_tuning` refuses a workflow without one
        return self.shown.fidelity

    @property
    def start(self) -> float:
        """The strength that the workflow has."""
        return float(self.strength.inputs["strength"])

    @property
    def steps(self) -> int:
        """Steps of a full run."""
        return max(self.samplers.values(), default=1)

    def graph_of(self, strength: float, steps: int, graph: Graph | None = None) -> Graph:
        """Return the graph with this strength, and with so many of its `steps`."""
        # The graph of a search has a node that measures; the one that is saved has not.
        made = (graph or self.shown.graph).with_value(self.strength.id, "strength", strength)
        for name, own in self.samplers.items():
            # Samplers in a row keep their proportions.
            made = made.with_value(name, "steps", max(1, round(own * steps / self.steps)))
        return made


def plan_tuning(
    graph: Graph, classes: Mapping[str, type], node: str | None = None, picture: str | None = None
) -> Tuning:
    """Plan the search. node: the one whose strength is tried, the only one with a strength if None. picture: see
    `choose_shown`.

    Raises WorkflowError where there is no such node, or several; where its strength comes from another node; where the
    fidelity cannot be measured.
    """
    chosen = _named(graph, classes, node) if node else _only_one(graph)
    shown = choose_shown(graph, classes, [chosen.id], picture)
    if chosen.id not in graph.order([shown.output]):
        raise WorkflowError(
            f"{graph.nodes[shown.output].label} shows a picture that does not depend on {chosen.label}: name another "
            "one with --picture"
        )
    if shown.fidelity is None:
        raise WorkflowError(
            "the fidelity to the hint is not measured: add Control Fidelity to the workflow, link the picture and the "
            "hint to it, and choose the kind"
        )
    before = [graph.nodes[name] for name in graph.order([shown.picture.node])]
    # Steps between given ends are not shortened: the ends would be others.
    samplers = {
        n.id: n.inputs["steps"]
        for n in before
        if isinstance(n.inputs.get("steps"), int) and not {"start_at_step", "start_step"} & set(n.inputs)
    }
    return Tuning(shown, chosen, samplers)


def _controls(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes.values() if isinstance(n.inputs.get("control_net"), Link) and "strength" in n.inputs]


def _only_one(graph: Graph) -> Node:
    # A node with strength 0 is there to show the picture without control.
    found = [n for n in _controls(graph) if not isinstance(n.inputs["strength"], Link) and n.inputs["strength"] != 0]
    if len(found) != 1:
        which = ", ".join(node.label for node in found) or "none"
        raise WorkflowError(
            f"expected one node that applies a ControlNet with a strength other than 0, found {which}: "
            "name one with --node"
        )
    return found[0]


def _named(graph: Graph, classes: Mapping[str, type], name: str) -> Node:
    # Settings report a wrong node, one without a strength, and a strength that is linked, in the same words.
    apply_settings(graph, classes, [f"{name}.strength=1"], option="--node")
    return find_node(graph, name)
