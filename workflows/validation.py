"""Check a workflow against the node classes before anything runs.

Every problem names the node, the input and a remedy. The rules are ComfyUI's own: it accepts "20" for an INT and cuts
20.7 down to 20, for instance. What runs there passes here.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import CoreError, MissingFileError, PathError, WorkflowError
from ..controlnet_core.picture_files import PICTURE_ENDINGS
from ..nodes.folders import brief, leaves_folder, name_fault
from .contract import WIDGET_TYPES, InputSpec, NodeSpec, read_specs, types_fit
from .equivalents import EDITOR_NODES, WITHOUT, equivalent
from .graph import Graph, Link, Node

_MODEL_ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf", ".yaml")
_KINDS = {
    "ckpt_name": "checkpoints", "checkpoint": "checkpoints", "unet_name": "diffusion_models", "vae_name": "vae",
    "clip_name": "text_encoders", "lora_name": "loras", "control_net_name": "controlnet", "control_net": "controlnet",
    "image": "input",
}  # fmt: skip
"""Inputs that name a file, and the kind of folder that it is looked for in."""
_SHOWN_CHOICES = 12
NUMBER_BYTES = len("_00001.safetensors")
"""Bytes that a node adds to a file name prefix."""


@dataclass(frozen=True)
class Problem:
    """One fault of a workflow. node, input: where it is, empty for the whole workflow. error: class to raise it as."""

    node: str
    input: str
    message: str
    error: type[CoreError] = WorkflowError


@dataclass(frozen=True)
class Checked:
    """A checked workflow. graph: with values converted to their declared types. outputs: ids of nodes that can run."""

    graph: Graph
    outputs: tuple[str, ...]
    problems: list[Problem]


def validate(graph: Graph, classes: Mapping[str, type]) -> Graph:
    """Return the graph with its values converted to their declared types, ready to run.

    Raises the error of `as_error` if there is any problem.
    """
    return require_runnable(graph, classes, strict=True).graph


def require_runnable(graph: Graph, classes: Mapping[str, type], *, strict: bool = False) -> Checked:
    """Check a workflow, and raise the error of `as_error` if no output node can run.

    strict: whether to raise for any problem. Otherwise output nodes with problems are left out, as in ComfyUI.
    """
    checked = check_outputs(graph, classes)
    if checked.problems and (strict or not checked.outputs):
        raise as_error(checked.problems)
    return checked


def as_error(problems: Sequence[Problem]) -> CoreError:
    """Return one error for a list of problems: the first message of the gravest kind, and the number of others.

    A path that leaves its folder (PathError) is graver than a wrong workflow (WorkflowError), a missing file
    (MissingFileError) is less grave.
    """
    gravity = {PathError: 0, MissingFileError: 2}
    first = min(problems, key=lambda problem: gravity.get(problem.error, 1))
    others = len(problems) - 1
    more = f" ({others} more: `controlnet validate` lists them)" if others else ""
    return first.error(first.message + more)


def check(graph: Graph, classes: Mapping[str, type]) -> tuple[Graph, list[Problem]]:
    """Return the graph with converted values, and all problems."""
    checked = check_outputs(graph, classes)
    return checked.graph, checked.problems


def check_outputs(graph: Graph, classes: Mapping[str, type]) -> Checked:
    """Check a workflow, and find the output nodes that can run in spite of the problems.

    As in ComfyUI, every class must be known, while inputs are checked only for nodes that an output node needs. An
    output node can run if neither it nor a node that it needs has a problem.
    """
    if not graph.nodes:
        return Checked(graph, (), [Problem("", "", "the workflow has no nodes: save it with at least one output node")])
    specs = read_specs(classes, [node.class_type for node in graph.nodes.values()])
    unknown = [node for node in graph.nodes.values() if node.class_type not in specs]
    problems = [Problem(node.id, "", _unknown_class(node, classes)) for node in unknown]
    graph = Graph({key: _without_stray_links(node, specs) for key, node in graph.nodes.items()}, graph.workflow)
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
    faulty: set[str] = set()
    for node_id in needed:  # sources come first
        node = nodes[node_id]
        if node.class_type in specs:
            checker = _NodeChecker(node, specs, graph, classes)
            found = list(checker.run())
            problems += found
            nodes[node_id] = replace(node, inputs=checker.values)
            if found or any(link.node in faulty for _, link in node.links()):
                faulty.add(node_id)
    runnable = () if unknown else tuple(node_id for node_id in outputs if node_id not in faulty)
    return Checked(Graph(nodes, graph.workflow), runnable, problems)


def _without_stray_links(node: Node, specs: Mapping[str, NodeSpec]) -> Node:
    """Drop links into inputs that the class does not declare: they have no effect, also on what must run."""
    spec = specs.get(node.class_type)
    stray = [name for name, _ in node.links() if spec is not None and name not in spec.inputs]
    if not stray:
        return node
    return replace(node, inputs={name: value for name, value in node.inputs.items() if name not in stray})


def _unknown_class(node: Node, classes: Mapping[str, type]) -> str:
    name = node.class_type
    start = f"{node.label}: this class is not known here"
    ours = equivalent(name)
    if ours and ours[0] in classes:
        return f"{start}: {' '.join(filter(None, ours))} does its work, replace it in the editor"
    if name in WITHOUT:
        return f"{start}, and nothing here makes {WITHOUT[name]}: make the picture in the editor and load it"
    if name in EDITOR_NODES:
        return f"{start}: {EDITOR_NODES[name]}"
    if name.startswith(("workflow>", "workflow/")):
        return f"{start}: it is a group node, convert it to nodes or to a subgraph in the editor"
    near = _misspelled(name, classes)
    meant = f"did you mean {near}? " if near else ""
    return f"{start}: {meant}`controlnet nodes` lists those that are, or mute it in the editor"


def _misspelled(name: str, classes: Mapping[str, type]) -> str | None:
    """Return the class whose name differs only by a slip of the pen, if there is one.

    Names of real nodes often share most letters (CLIPVisionLoader, CLIPLoader) and do different work, so a suggestion
    must have the same number of words, and a long one nearly all letters.
    """
    cutoff = 0.75 if len(name) < 8 else 0.85
    words = len(_WORD.findall(name[:100]))
    close = difflib.get_close_matches(name, classes, n=5, cutoff=cutoff)
    return next((found for found in close if len(_WORD.findall(found)) == words), None)


_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


class _NodeChecker:
    """The checks of one node; `values` are its inputs with literals converted."""

    def __init__(self, node: Node, specs: Mapping[str, NodeSpec], graph: Graph, classes: Mapping[str, type]) -> None:
        self.node, self.specs, self.graph = node, specs, graph
        self.spec = specs[node.class_type]
        self.cls = classes[node.class_type]
        self.values: dict[str, Any] = dict(node.inputs)
        self.own_checks, self.checks_all = _validator_arguments(self.cls)

    def run(self) -> Iterator[Problem]:
        found = False
        for spec in self.spec.inputs.values():
            for problem in self._input(spec):
                found = True
                yield problem
        if not found:
            yield from self._class_validator()

    def _problem(self, name: str, message: str, error: type[CoreError] = WorkflowError) -> Problem:
        where = f"{self.node.label}, input {name}" if name else self.node.label
        return Problem(self.node.id, name, f"{where}: {message}", error)

    def _input(self, spec: InputSpec) -> Iterator[Problem]:
        if spec.name not in self.values:
            if spec.required:
                yield self._problem(spec.name, self._missing(spec))
            return
        value = self.values[spec.name]
        if isinstance(value, Link):
            yield from self._link(spec, value)
        else:
            yield from self._literal(spec, value)

    def _missing(self, spec: InputSpec) -> str:
        reason = self.node.absent.get(spec.name)
        if reason:
            return f"is needed but has nothing, since {reason}"
        remedy = f"set it, for instance to {spec.default!r}" if spec.is_widget else f"link it to a {spec.type} output"
        return f"is needed but missing: {remedy}"

    def _link(self, spec: InputSpec, link: Link) -> Iterator[Problem]:
        source = self.graph.nodes.get(link.node)
        if source is None:
            yield self._problem(spec.name, f"is linked to node {link.node}, which is not there: link it anew")
            return
        if source.class_type not in self.specs:
            return
        outputs = self.specs[source.class_type].outputs
        if not 0 <= link.slot < len(outputs):
            yield self._problem(
                spec.name,
                f"takes output {link.slot} of {source.label}, which has {len(outputs)}: link it anew",
            )
        elif "input_types" not in self.own_checks and not types_fit(outputs[link.slot], spec.type):
            given = outputs[link.slot] if isinstance(outputs[link.slot], str) else "COMBO"
            yield self._problem(
                spec.name, f"takes {spec.type}, {source.label} gives {given}: link it to a {spec.type} output"
            )

    def _literal(self, spec: InputSpec, value: Any) -> Iterator[Problem]:
        try:
            value = convert(spec, value)
        except (TypeError, ValueError) as error:
            yield self._problem(spec.name, str(error))
            return
        self.values[spec.name] = value
        if spec.type == "STRING" and "embedding:" in value:
            yield from self._embeddings(spec, value)
        if spec.name == "filename_prefix":  # told before hours of sampling, not after
            yield from self._prefix(spec, value)
        if spec.name in self.own_checks or self.checks_all:
            return
        low, high = spec.options.get("min"), spec.options.get("max")
        if spec.type in ("INT", "FLOAT"):
            if low is not None and value < low:
                yield self._problem(spec.name, f"is {brief(value)}, the least is {low}: set at least that")
            elif high is not None and value > high:
                yield self._problem(spec.name, f"is {brief(value)}, the most is {high}: set at most that")
        elif spec.choices is not None:
            yield from self._choice(spec, value)

    def _embeddings(self, spec: InputSpec, prompt: str) -> Iterator[Problem]:
        """Find the files of textual inversions that a prompt names, if this node encodes prompts."""
        host = getattr(self.cls, "host", None)
        if not hasattr(host, "embedding_file") or all(item.type != "CLIP" for item in self.spec.inputs.values()):
            return
        from ..controlnet_core.models.prompt import embedding_names  # imports torch

        try:
            for name in embedding_names(prompt):
                host.embedding_file(name)
        except CoreError as error:
            yield self._problem(spec.name, str(error), type(error))

    def _prefix(self, spec: InputSpec, value: str) -> Iterator[Problem]:
        fault = name_fault(re.sub("%[^%]+%", "", value), ending=NUMBER_BYTES)
        if leaves_folder(value):
            yield self._problem(spec.name, f"{brief(value)} leaves the output folder: name a file inside it", PathError)
        elif fault:
            yield self._problem(spec.name, f"{brief(value)} {fault}: give another name", PathError)

    def _choice(self, spec: InputSpec, value: Any) -> Iterator[Problem]:
        choices = spec.choices or ()
        if value in choices:
            return
        same = next((c for c in choices if isinstance(c, str) and _as_path(c) == _as_path(value)), None)
        if same is not None:
            self.values[spec.name] = same
        elif leaves_folder(value):
            yield self._problem(
                spec.name,
                f"{brief(value)} leaves its folder: name a file inside the input or models folder",
                PathError,
            )
        elif _is_file(spec, value):
            yield self._problem(spec.name, self._missing_file(spec, value, choices), MissingFileError)
        else:
            yield self._problem(spec.name, _not_a_choice(value, choices))

    def _missing_file(self, spec: InputSpec, value: str, choices: tuple[Any, ...]) -> str:
        plain = value.replace("\\", "/").split("/")[-1]
        advice = next((model for model in self.node.models if model.get("name") == plain), None)
        start = f"there is no file {brief(value)}"
        if advice:
            folder = f"put it into models/{advice.get('directory', '')}".rstrip("/")
            source = f" (the workflow names {advice['url']})" if advice.get("url") else ""
            return f"{start}: {folder}{source}"
        folders = self._searched(spec.name)
        searched = f"; searched {', '.join(map(str, folders))}" if folders else ""
        near = difflib.get_close_matches(value, [c for c in choices if isinstance(c, str)], n=1, cutoff=0.6)
        if near:
            return f"{start}: the nearest is {near[0]!r}{searched}"
        return f"{start} among the {len(choices)} that are here: put it into its folder{searched}"

    def _searched(self, name: str) -> Sequence[Path]:
        """Return the folders in which the file of an input is looked for, as far as they are known."""
        host = getattr(self.cls, "host", None)
        kind = _KINDS.get(name.rstrip("12"))
        if host is None or kind is None:
            return ()
        return (host.input_dir,) if kind == "input" else host.folders(kind)

    def _class_validator(self) -> Iterator[Problem]:
        validator = getattr(self.cls, "VALIDATE_INPUTS", None)
        if validator is None:
            return
        arguments = {
            name: None if isinstance(value, Link) else value
            for name, value in self.values.items()
            if name in self.spec.inputs and (self.checks_all or name in self.own_checks)
        }
        if "input_types" in self.own_checks:
            arguments["input_types"] = self._received_types()
        try:
            verdict = validator(**arguments)
        except CoreError as error:
            yield self._problem("", str(error), type(error))
            return
        except Exception as error:
            yield self._problem("", f"its check failed ({type(error).__name__}: {error}): correct its inputs")
            return
        if verdict is not True:
            said = "its own check refused the inputs" if verdict is False else str(verdict)
            yield self._problem(next(iter(arguments), ""), said)

    def _received_types(self) -> dict[str, Any]:
        given = {}
        for name, link in self.node.links():
            source = self.graph.nodes.get(link.node)
            outputs = self.specs[source.class_type].outputs if source and source.class_type in self.specs else ()
            if 0 <= link.slot < len(outputs):
                given[name] = outputs[link.slot]
        return given


def _validator_arguments(cls: type) -> tuple[frozenset[str], bool]:
    """(names that VALIDATE_INPUTS takes, whether it takes all of them as keywords)."""
    validator = getattr(cls, "VALIDATE_INPUTS", None)
    if validator is None:
        return frozenset(), False
    spec = inspect.getfullargspec(validator)
    return frozenset(spec.args + spec.kwonlyargs) - {"cls", "self", "s"}, spec.varkw is not None


def convert(spec: InputSpec, value: Any) -> Any:
    """A plain value as its declared type. Raises ValueError or TypeError in words for a person."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"is {value}, which is no usable number: set a finite one")
    converter = _CONVERTERS.get(spec.type)
    if converter is not None:
        return converter(value)
    if spec.type in WIDGET_TYPES or spec.is_widget or "*" in spec.type:
        return value
    raise TypeError(f"takes a {spec.type} from another node, got {brief(value)}: link it to a {spec.type} output")


def _to_int(value: Any) -> int:
    if isinstance(value, (int, float, str)):
        try:
            return int(value)
        except (ValueError, OverflowError):
            pass
    raise TypeError(f"takes a whole number, got {brief(value)}")


def _to_float(value: Any) -> float:
    if isinstance(value, (int, float, str)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise TypeError(f"takes a number, got {brief(value)}")


def _to_string(value: Any) -> str:
    if isinstance(value, (str, int, float)):
        return str(value)
    raise TypeError(f"takes text, got {brief(value)}")


def _to_bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, (bool, int, float)):
        return bool(value)
    raise TypeError(f"takes true or false, got {brief(value)}")


_CONVERTERS = {"INT": _to_int, "FLOAT": _to_float, "STRING": _to_string, "BOOLEAN": _to_bool}


def _as_path(value: Any) -> Any:
    return value.replace("\\", "/") if isinstance(value, str) else value


def _is_file(spec: InputSpec, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return bool(spec.options.get("image_upload")) or value.lower().endswith((*_MODEL_ENDINGS, *PICTURE_ENDINGS))


def _not_a_choice(value: Any, choices: tuple[Any, ...]) -> str:
    if not choices:
        return f"is {brief(value)}, but there is nothing to choose from: put a file into its folder"
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.6)
    shown = ", ".join(str(choice) for choice in choices[:_SHOWN_CHOICES])
    rest = f" and {len(choices) - _SHOWN_CHOICES} more" if len(choices) > _SHOWN_CHOICES else ""
    meant = f"did you mean {near[0]!r}? it" if near else "it"
    return f"is {brief(value)}, which is no choice: {meant} takes {shown}{rest}"
