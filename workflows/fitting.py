"""Find which control files of a workflow act on which base, and whether they fit, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..controlnet_core.errors import CoreError, UnfitError
from .contract import NodeSpec, read_specs
from .graph import Graph, Node
from .node_checks import Problem
from .validation import as_error

CONTROLLED_BY = frozenset({"CONDITIONING", "CONTROL_NET", "CNCORE_STACK"})
"""Types of links along which control reaches a sampler."""


@dataclass(frozen=True)
class Loader:
    """A node that loads a file. gives: its output's type; input: the input that names the file; kind: of folder."""

    gives: str
    input: str
    kind: str


LOADERS: Mapping[str, Loader] = MappingProxyType(
    {
        "CheckpointLoaderSimple": Loader("MODEL", "ckpt_name", "checkpoints"),
        "CheckpointLoader": Loader("MODEL", "ckpt_name", "checkpoints"),
        "UNETLoader": Loader("MODEL", "unet_name", "diffusion_models"),
        "CNCore_LoadCheckpoint": Loader("MODEL", "checkpoint", "checkpoints"),
        "ControlNetLoader": Loader("CONTROL_NET", "control_net_name", "controlnet"),
        "DiffControlNetLoader": Loader("CONTROL_NET", "control_net_name", "controlnet"),
        "CNCore_LoadControlNet": Loader("CONTROL_NET", "control_net", "controlnet"),
    }
)


@dataclass(frozen=True)
class Use:
    """A control file that acts on a base. at: the node where they meet, a sampler or the loader of a partial net."""

    net: Node
    base: Node
    at: Node


def check_fit(graph: Graph, classes: Mapping[str, type], outputs: Sequence[str] | None = None) -> list[Problem]:
    """Return a problem for every control file that was made for another base than the one it acts on.

    outputs: the output nodes that will run, default all. Only headers are read. What links do not tell (a net that is
    trained in the same workflow, say) is left to the run. So is a file that cannot be read: its loader reports it.
    """
    return [problem for use in uses(graph, classes, outputs) for problem in _problem(use, classes)]


def require_fit(graph: Graph, classes: Mapping[str, type], outputs: Sequence[str] | None = None) -> None:
    """Raise UnfitError with the first problem of `check_fit`, before anything is loaded."""
    problems = check_fit(graph, classes, outputs)
    if problems:
        raise as_error(problems)


def _problem(use: Use, classes: Mapping[str, type]) -> Iterator[Problem]:
    # Imported here, because it imports torch.
    from ..controlnet_core.checkpoints.fit import misfit

    loader = LOADERS[use.net.class_type]
    try:
        reason = misfit(_file(use.net, classes), _file(use.base, classes))
    except CoreError:
        # The file cannot be read. Its loader says so with more detail.
        return
    if reason:
        where = f"{use.net.label}, input {loader.input}"
        acts = f"{use.at.label} uses it on the model of {use.base.label}"
        yield Problem(use.net.id, loader.input, f"{where}: {acts}, but {reason}", UnfitError)


def _file(node: Node, classes: Mapping[str, type]) -> Path:
    from ..nodes import builtin

    loader = LOADERS[node.class_type]
    host = classes[node.class_type].host  # type: ignore[attr-defined]
    name = node.inputs[loader.input]
    # The built-in demo models are listed beside the files of the folders.
    included = {**builtin.checkpoints(host.assets_dir), **builtin.controlnets(host.assets_dir)}
    return included.get(name) or host.find(loader.kind, name)


def uses(graph: Graph, classes: Mapping[str, type], outputs: Sequence[str] | None = None) -> list[Use]:
    """Return every control file with the base that it acts on in a run, as far as links tell, each pair once."""
    specs = read_specs(classes, [node.class_type for node in graph.nodes.values()])
    if outputs is None:
        outputs = [key for key, node in graph.nodes.items() if specs[node.class_type].is_output]
    found: dict[tuple[str, str], Use] = {}
    # Nodes come after their sources, so one pass is enough. Following each node's links back would take quadratic time.
    bases: dict[str, Node | None] = {}
    nets: dict[str, dict[str, Node]] = {}
    for node in (graph.nodes[node_id] for node_id in graph.order(outputs)):
        models = list(_sources(graph, specs, node, frozenset({"MODEL"})))
        # With two models the links do not tell which one the control acts on.
        base = bases.get(models[0].id) if len(models) == 1 else None
        bases[node.id] = node if _loads(node, "MODEL") else base
        before = [nets.get(source.id, {}) for source in _sources(graph, specs, node, CONTROLLED_BY)]
        nets[node.id] = {key: net for held in before for key, net in held.items()}
        if _loads(node, "CONTROL_NET"):
            nets[node.id] = {node.id: node}
        if base is not None:
            for net in nets[node.id].values():
                found.setdefault((net.id, base.id), Use(net, base, node))
    return list(found.values())


def _sources(graph: Graph, specs: Mapping[str, NodeSpec], node: Node, types: frozenset[str]) -> Iterator[Node]:
    """Yield the nodes that a node takes inputs of these types from, except nets that it will not use."""
    spec = specs[node.class_type]
    for name, link in node.links():
        wanted = spec.inputs.get(name)
        if wanted is None or wanted.type not in types or link.node not in graph.nodes:
            continue
        if wanted.type != "CONTROL_NET" or not _is_idle(node):
            yield graph.nodes[link.node]


def _is_idle(node: Node) -> bool:
    """Whether an apply node has no effect: its strength is 0, or its window ends before it starts."""
    start, end = node.inputs.get("start_percent", 0.0), node.inputs.get("end_percent", 1.0)
    has_window = isinstance(start, (int, float)) and isinstance(end, (int, float))
    return node.inputs.get("strength") == 0 or (has_window and start > end)


def _loads(node: Node, kind: str) -> bool:
    """Whether the node loads a file of this type whose name is known before the run."""
    loader = LOADERS.get(node.class_type)
    return loader is not None and loader.gives == kind and isinstance(node.inputs.get(loader.input), str)
