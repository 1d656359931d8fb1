"""Check a workflow against the node classes before anything runs.

Every problem names the node, the input and a remedy. The rules are ComfyUI's own: it accepts "20" for an INT and cuts
20.7 down to 20, for instance. What runs there passes here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..controlnet_core.errors import CoreError, MissingFileError, PathError, WorkflowError
from ..nodes.folders import brief
from .contract import NodeSpec, read_specs
from .equivalents import EDITOR_NODES, equivalents
from .graph import Graph, Node
from .known_values import KnownValues
from .node_checks import NodeChecker, Problem
from .prefixes import fill_prefixes

_SHOWN_CLASSES = 20
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


@dataclass(frozen=True)
class Checked:
    """A checked workflow. graph: with values converted to their declared types. outputs: ids of nodes that can run."""

    graph: Graph
    outputs: tuple[str, ...]
    problems: list[Problem]


def require_runnable(graph: Graph, classes: Mapping[str, type], *, strict: bool = False) -> Checked:
    """Check a workflow, and raise the error of `as_error` if no output node can run.

    strict: whether to raise for any problem. Otherwise output nodes with problems are left out, as in ComfyUI.
    """
    checked = check_outputs(graph, classes)
    if checked.problems and (strict or not checked.outputs):
        raise as_error(checked.problems)
    return checked


def as_error(problems: Sequence[Problem]) -> CoreError:
    """Return one error for a list of problems: the first message of the most serious kind, and the number of others.

    A path that leaves its folder (PathError) is more serious than a wrong workflow (WorkflowError), and a missing file
    (MissingFileError) is less serious.
    """
    rank = {PathError: 0, MissingFileError: 2}
    first = min(problems, key=lambda problem: rank.get(problem.error, 1))
    others = len(problems) - 1
    more = f" ({others} more: `controlnet validate` lists them)" if others else ""
    return first.error(first.message + more + _inside_comfyui(problems))


def _inside_comfyui(problems: Sequence[Problem]) -> str:
    """Where nodes of other packs are unknown: their names, and the option that runs them."""
    names = list(dict.fromkeys(problem.unknown for problem in problems if problem.unknown))
    if not names:
        return ""
    shown = ", ".join(brief(name) for name in names[:_SHOWN_CLASSES])
    rest = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return f". Not known without ComfyUI: {shown}{rest}: `controlnet run --comfyui DIR` runs them inside yours"


def check_outputs(graph: Graph, classes: Mapping[str, type]) -> Checked:
    """Check a workflow, and find the output nodes that can run in spite of the problems.

    As in ComfyUI, every class must be known, while inputs are checked only for nodes that an output node needs. An
    output node can run if neither it nor a node that it needs has a problem.
    """
    if not graph.nodes:
        return Checked(graph, (), [Problem("", "", "the workflow has no nodes: save it with at least one output node")])
    specs = read_specs(classes, [node.class_type for node in graph.nodes.values()])
    unknown = [node for node in graph.nodes.values() if node.class_type not in specs]
    problems = [Problem(node.id, "", _unknown_class(node, classes), unknown=node.class_type) for node in unknown]
    graph = Graph({key: _without_stray_links(node, specs) for key, node in graph.nodes.items()}, graph.workflow)
    graph = fill_prefixes(graph)
    outputs = [
        node.id for node in graph.nodes.values() if node.class_type in specs and specs[node.class_type].is_output
    ]
    if not outputs and not problems:
        problems.append(Problem("", "", "the workflow has no output node: add SaveImage to it"))
    try:
        needed = graph.order(outputs)
    except WorkflowError as error:
        return Checked(graph, (), [*problems, Problem("", "", str(error))])
    nodes = dict(graph.nodes)
    known = KnownValues(graph, classes, specs)
    faulty: set[str] = set()
    # Sources come first, so a fault is known before the nodes that it reaches.
    for node_id in needed:
        node = nodes[node_id]
        if node.class_type in specs:
            checker = NodeChecker(node, specs, graph, classes[node.class_type], known)
            found = checker.run()
            problems += found
            nodes[node_id] = replace(node, inputs=checker.values)
            if found or any(link.node in faulty for _, link in node.links()):
                faulty.add(node_id)
    # ComfyUI refuses a whole prompt with an unknown class, since it cannot know which nodes are output nodes.
    runnable = () if unknown else tuple(node_id for node_id in outputs if node_id not in faulty)
    return Checked(Graph(nodes, graph.workflow), runnable, problems)


def _without_stray_links(node: Node, specs: Mapping[str, NodeSpec]) -> Node:
    """Drop links into inputs that the class does not declare: they have no effect, also on what must run."""
    spec = specs.get(node.class_type)
    stray = {name for name, _ in node.links() if spec is not None and name not in spec.inputs}
    if not stray:
        return node
    return replace(node, inputs={name: value for name, value in node.inputs.items() if name not in stray})


def _unknown_class(node: Node, classes: Mapping[str, type]) -> str:
    name = node.class_type
    start = f"{node.label}: this class is not known here"
    known = equivalents().get(name)
    if known and known.ours in classes:
        return f"{start}: {f'{known.ours} {known.setting}'.strip()} does its work, replace it in the editor"
    if known and known.without:
        return f"{start}, and nothing here makes {known.without}: make the picture in the editor and load it"
    if name in EDITOR_NODES:
        return f"{start}: {EDITOR_NODES[name]}"
    if name.startswith(("workflow>", "workflow/")):
        return f"{start}: it is a group node, convert it to nodes or to a subgraph in the editor"
    near = _misspelled(name, classes)
    meant = f"did you mean {near}? " if near else ""
    return f"{start}: {meant}`controlnet nodes` lists those that are, or mute it in the editor"


def _misspelled(name: str, classes: Mapping[str, type]) -> str | None:
    """Return the class whose name differs by a typing error only, if there is one.

    Names of nodes that do different work often share most letters (CLIPVisionLoader and CLIPLoader, VAEEncodeTiled and
    VAEDecodeTiled). So each word must be close to the word in the same place.
    """
    words = _WORD.findall(name[:100])
    for found in difflib.get_close_matches(name, classes, n=5, cutoff=0.75):
        others = _WORD.findall(found)
        ratios = [difflib.SequenceMatcher(None, a, b).ratio() for a, b in zip(words, others, strict=False)]
        if len(words) == len(others) and min(ratios, default=0.0) >= 0.75:
            return found
    return None
