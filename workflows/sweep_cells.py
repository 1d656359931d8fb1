"""What a sweep shows in each cell: the picture of an output node, and how well it follows the hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..controlnet_core.errors import WorkflowError
from ..nodes.sweep_sheet import MEASURES
from .contract import read_specs
from .graph import Graph, Link, Node
from .overrides import find_node

FIDELITY = "CNCore_ControlFidelity"
KIND_OF_CONDITION: Mapping[str, str] = MappingProxyType(
    {
        "canny": "canny",
        "mlsd": "lines",
        "softedge": "soft_edge",
        "scribble": "scribble",
        "lineart": "lineart",
        "seg": "segmentation",
    }
)
"""What a preprocessor makes -> the kind by which Control Fidelity measures it without a network."""


@dataclass(frozen=True)
class Shown:
    """graph: with what measures each picture. picture: the IMAGE of a cell. fidelity: the node that measures it, or
    None; measure: its name, such as "F1".
    """

    graph: Graph
    picture: Link
    output: str
    fidelity: str | None = None
    measure: str = ""

    @property
    def targets(self) -> list[str]:
        """The nodes to run for a cell. Output nodes are not among them: a cell saves no picture of its own."""
        return [self.picture.node, *([self.fidelity] if self.fidelity else [])]


def choose_shown(graph: Graph, classes: Mapping[str, type], swept: Sequence[str], named: str | None) -> Shown:
    """Return what the cells show. swept: names of the swept nodes. named: the output node, chosen if None.

    Raises WorkflowError where no output node shows an image that depends on what is swept.
    """
    output = _named_output(graph, named) if named else _find_output(graph, classes, swept)
    picture = output.inputs["images"]
    shown = Shown(graph, picture, output.id)
    own = next(
        (n for n in graph.nodes.values() if n.class_type == FIDELITY and n.inputs.get("picture") == picture), None
    )
    if own is not None:
        # The workflow measures it already, perhaps with a map of its own.
        return Shown(graph, picture, output.id, own.id, MEASURES.get(str(own.inputs.get("kind")), "F1"))
    for node_id in reversed(graph.order([picture.node])):
        inputs = graph.nodes[node_id].inputs
        if isinstance(inputs.get("control_net"), Link) and isinstance(inputs.get("image"), Link):
            kind = hint_kind(graph, classes, inputs["image"])
            if kind:
                return _measured(shown, inputs["image"], kind)
    return shown


def _named_output(graph: Graph, name: str) -> Node:
    try:
        node = find_node(graph, name)
    except ValueError as error:
        raise WorkflowError(f"--picture {name[:80]}: {error}") from error
    if not isinstance(node.inputs.get("images"), Link):
        raise WorkflowError(f"--picture {name[:80]}: {node.label} shows no images: name a SaveImage or PreviewImage")
    return node


def _find_output(graph: Graph, classes: Mapping[str, type], swept: Sequence[str]) -> Node:
    specs = read_specs(classes, [node.class_type for node in graph.nodes.values()])
    ids = {find_node(graph, name).id for name in swept}
    found = []
    for node in graph.nodes.values():
        spec = specs.get(node.class_type)
        if spec is not None and spec.is_output and isinstance(node.inputs.get("images"), Link):
            depends = len(ids & set(graph.order([node.id])))
            # A picture that is saved is what the workflow is for; previews show hints too.
            found.append((depends, not node.class_type.startswith("Preview"), node))
    best = max(found, key=lambda entry: entry[:2], default=None)
    if best is None or not best[0]:
        raise WorkflowError(
            "no output node shows an image that depends on what is swept: add SaveImage to the workflow"
        )
    return best[2]


def hint_kind(graph: Graph, classes: Mapping[str, type], link: Link) -> str | None:
    """Return the kind of a hint that Control Fidelity can measure, as far as the nodes that make it tell."""
    from ..preprocessors import get, names

    node = graph.nodes.get(link.node)
    while node is not None:
        if node.class_type == "Canny":
            return "canny"
        cls: Any = classes.get(node.class_type)
        family = getattr(cls, "family", None)
        name = node.inputs.get("kind") or (family.kinds[0] if family is not None else node.inputs.get("view"))
        if isinstance(name, str):
            # The exact hints of the demo scenes are called as what they show.
            condition = get(name).condition if name in names() else name
            return KIND_OF_CONDITION.get(condition, name if name in KIND_OF_CONDITION.values() else None)
        # A resized hint is still one; anything else may have changed it.
        source = node.inputs.get("image") if node.class_type.startswith("ImageScale") else None
        node = graph.nodes.get(source.node) if isinstance(source, Link) else None
    return None


def _measured(shown: Shown, hint: Link, kind: str) -> Shown:
    """Return `shown` with a Control Fidelity node of its own."""
    name = "sweep_fidelity"
    inputs = {"picture": shown.picture, "hint": hint, "kind": kind, "tolerance": 2.0}
    node = Node(name, FIDELITY, inputs)
    graph = Graph({**shown.graph.nodes, name: node}, shown.graph.workflow)
    return Shown(graph, shown.picture, shown.output, name, MEASURES.get(kind, "F1"))
