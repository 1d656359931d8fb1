"""Which control files of a workflow act on which base, and whether they fit, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..controlnet_core.errors import CoreError, UnfitError
from .contract import NodeSpec, read_specs
from .graph import Graph, Node
from .validation import Problem, as_error

CONTROLLED_BY = frozenset({"CONDITIONING", "CONTROL_NET", "CNCORE_STACK"})
"""Types of links along which control comes to a sampler."""


@dataclass(frozen=True)
class Loader:
    """A node that loads a file: its output's type, the input that names the file, and the kind of folder."""

    gives: str
    input: str
    kind: str


LOADERS: Mapping[str, Loader] = MappingProxyType(
    {
        "CheckpointLoaderSimple": Loader("MODEL", "ckpt_name", "checkpoints"),
        "UNETLoader": Loader("MODEL", "unet_name", "diffusion_models"),
        "CNCore_LoadCheckpoint": Loader("MODEL", "checkpoint", "checkpoints"),
        "ControlNetLoader": Loader("CONTROL_NET", "control_net_name", "controlnet"),
        "DiffControlNetLoader": Loader("CONTROL_NET", "control_net_name", "controlnet"),
        "CNCore_LoadControlNet": Loader("CONTROL_NET", "control_net", "controlnet"),
    }
)


@dataclass(frozen=True)
class Use:
    """A control file that acts on a base at a node: the sampler, or the loader that completes the file."""

    net: Node
    base: Node
    at: Node


def check_fit(graph: Graph, classes: Mapping[str, type]) -> list[Problem]:
    """A problem for every control file that was not made for the base it acts on.

    Reads headers only. What the links do not tell (a net that was trained in the same workflow, say) is left to the
    run; so is a file that cannot be read, which its loader names.
    """
    return [problem for use in uses(graph, classes) for problem in _problem(use, classes)]


def require_fit(graph: Graph, classes: Mapping[str, type]) -> Graph:
    """The graph, ready to run. Raises UnfitError with the first problem of `check_fit`, before anything is loaded."""
    problems = check_fit(graph, classes)
    if problems:
        raise as_error(problems)
    return graph


def _problem(use: Use, classes: Mapping[str, type]) -> Iterator[Problem]:
    from ..controlnet_core.checkpoints.fit import misfit  # imports torch

    loader = LOADERS[use.net.class_type]
    try:
        why = misfit(_file(use.net, classes), _file(use.base, classes))
    except CoreError:
        return
    if why:
        where = f"{use.net.label}, input {loader.input}"
        acts = f"{use.at.label} uses it on the model of {use.base.label}"
        yield Problem(use.net.id, loader.input, f"{where}: {acts}, but {why}", UnfitError)


def _file(node: Node, classes: Mapping[str, type]) -> Path:
    from ..nodes import builtin

    loader = LOADERS[node.class_type]
    host = classes[node.class_type].host  # type: ignore[attr-defined]
    name = node.inputs[loader.input]
    included = {**builtin.checkpoints(host.assets_dir), **builtin.controlnets(host.assets_dir)}
    return included.get(name) or host.find(loader.kind, name)


def uses(graph: Graph, classes: Mapping[str, type]) -> list[Use]:
    """Every control file with the base that it acts on in a run, as far as links tell, each pair once."""
    specs = read_specs(classes, [node.class_type for node in graph.nodes.values()])
    outputs = [id for id, node in graph.nodes.items() if node.class_type in specs and specs[node.class_type].is_output]
    found: dict[tuple[str, str], Use] = {}
    for at in (graph.nodes[node_id] for node_id in graph.order(outputs)):
        base = _base(graph, specs, at)
        if base is not None:
            for net in _nets(graph, specs, at):
                found.setdefault((net.id, base.id), Use(net, base, at))
    return list(found.values())


def _base(graph: Graph, specs: Mapping[str, NodeSpec], node: Node) -> Node | None:
    """The loader whose MODEL a node takes, through nodes that change it; None where there is not just one."""
    while True:
        sources = list(_sources(graph, specs, node, frozenset({"MODEL"})))
        if len(sources) != 1:
            return None
        node = sources[0]
        if _loads(node, "MODEL"):
            return node


def _nets(graph: Graph, specs: Mapping[str, NodeSpec], at: Node) -> list[Node]:
    """The loaders of the nets that act at a node: itself, or those before it."""
    if _loads(at, "CONTROL_NET"):
        return [at]
    found: dict[str, Node] = {}
    seen, left = {at.id}, [at]
    while left:
        node = left.pop()
        for source in _sources(graph, specs, node, CONTROLLED_BY):
            if source.id not in seen:
                seen.add(source.id)
                left.append(source)
                if _loads(source, "CONTROL_NET"):
                    found[source.id] = source
    return list(found.values())


def _sources(graph: Graph, specs: Mapping[str, NodeSpec], node: Node, types: frozenset[str]) -> Iterator[Node]:
    """The nodes that a node takes inputs of these types from; not a net that it will not use."""
    spec = specs.get(node.class_type)
    for name, link in node.links():
        wanted = spec.inputs.get(name) if spec else None
        if wanted is None or wanted.type not in types or link.node not in graph.nodes:
            continue
        if wanted.type != "CONTROL_NET" or not _idle(node):
            yield graph.nodes[link.node]


def _idle(node: Node) -> bool:
    """Whether an apply node does nothing: its strength is 0, or its window ends before it starts."""
    start, end = node.inputs.get("start_percent", 0.0), node.inputs.get("end_percent", 1.0)
    known = isinstance(start, (int, float)) and isinstance(end, (int, float))
    return node.inputs.get("strength") == 0 or (known and start > end)


def _loads(node: Node, type: str) -> bool:
    """Whether the node loads a file of this type whose name is known before the run."""
    loader = LOADERS.get(node.class_type)
    return loader is not None and loader.gives == type and isinstance(node.inputs.get(loader.input), str)
