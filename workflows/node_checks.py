"""Check the inputs of one node against what its class declares. The rules are ComfyUI's own."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import CoreError, MissingFileError, PathError, WorkflowError
from ..nodes.computed import COMPUTED
from ..nodes.folders import brief, leaves_folder, name_fault
from .contract import WIDGET_TYPES, InputSpec, NodeSpec, types_fit
from .graph import Graph, Link, Node
from .known_values import KnownValues

_FILE_ENDINGS = (
    ".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf", ".yaml",
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff",
)  # fmt: skip
_KINDS = {
    "ckpt_name": "checkpoints", "checkpoint": "checkpoints", "unet_name": "diffusion_models", "vae_name": "vae",
    "clip_name": "text_encoders", "lora_name": "loras", "control_net_name": "controlnet", "control_net": "controlnet",
    "model_name": "upscale_models", "hypernetwork_name": "hypernetworks", "image": "input",
}  # fmt: skip
"""Inputs that name a file, and the kind of folder that it is looked for in."""
_SHOWN_CHOICES = 12
NUMBER_BYTES = len("_00001.safetensors")
"""Bytes that a node adds to a file name prefix."""


@dataclass(frozen=True)
class Problem:
    """One fault of a workflow. node, input: where it is, empty for the whole workflow. error: class to raise it as.

    unknown: the class of the node where that is the fault.
    """

    node: str
    input: str
    message: str
    error: type[CoreError] = WorkflowError
    unknown: str = ""


class NodeChecker:
    """The checks of one node. values: its inputs, with plain values converted to their declared types by `run`.

    known: what its sources will give, as far as that is known; the node itself is added to it.
    """

    def __init__(self, node: Node, specs: Mapping[str, NodeSpec], graph: Graph, cls: type, known: KnownValues) -> None:
        self.node, self.specs, self.graph, self.cls, self.known = node, specs, graph, cls, known
        self.spec = specs[node.class_type]
        self.values: dict[str, Any] = dict(node.inputs)
        self.own_checks, self.checks_all = _validator_arguments(cls)

    def run(self) -> list[Problem]:
        """Check all inputs, and if these have no problem, call the checks of the class itself."""
        found = [problem for spec in self.spec.inputs.values() if (problem := self._input(spec)) is not None]
        if found:
            return found
        problem = self._class_validator() or self._files() or self._value_of_node()
        return [] if problem is None else [problem]

    def _problem(self, name: str, message: str, error: type[CoreError] = WorkflowError) -> Problem:
        where = f"{self.node.label}, input {name}" if name else self.node.label
        return Problem(self.node.id, name, f"{where}: {message}", error)

    def _input(self, spec: InputSpec) -> Problem | None:
        if spec.name not in self.values:
            return self._problem(spec.name, self._missing(spec)) if spec.required else None
        value = self.values[spec.name]
        if isinstance(value, Link):
            fault = self._link_fault(spec, value)
            return self._problem(spec.name, fault) if fault else self._linked_prompt(spec, value)
        try:
            value = self.values[spec.name] = convert(spec, value)
        except (TypeError, ValueError) as error:
            return self._problem(spec.name, str(error))
        return self._value(spec, value)

    def _missing(self, spec: InputSpec) -> str:
        reason = self.node.absent.get(spec.name)
        if reason:
            return f"is needed but has nothing, since {reason}"
        remedy = f"set it, for instance to {spec.default!r}" if spec.is_widget else f"link it to a {spec.type} output"
        return f"is needed but missing: {remedy}"

    def _link_fault(self, spec: InputSpec, link: Link) -> str:
        source = self.graph.nodes.get(link.node)
        if source is None:
            return f"is linked to node {link.node}, which is not there: link it again"
        if source.class_type not in self.specs:
            return ""
        outputs = self.specs[source.class_type].outputs
        if not 0 <= link.slot < len(outputs):
            return f"takes output {link.slot} of {source.label}, which has {len(outputs)}: link it again"
        given = outputs[link.slot]
        if "input_types" in self.own_checks or types_fit(given, spec.type):
            return ""
        name = given if isinstance(given, str) else "COMBO"
        return f"takes {spec.type}, {source.label} gives {name}: link it to a {spec.type} output"

    def _value(self, spec: InputSpec, value: Any) -> Problem | None:
        # Without this check the error would come after hours of sampling.
        if spec.name == "filename_prefix":
            fault = name_fault(re.sub("%[^%]+%", "", value), ending=NUMBER_BYTES)
            if leaves_folder(value):
                message = f"{brief(value)} leaves the output folder: name a file inside it"
                return self._problem(spec.name, message, PathError)
            if fault:
                return self._problem(spec.name, f"{brief(value)} {fault}: give another name", PathError)
        if spec.type == "STRING" and "embedding:" in value:
            return self._embeddings(spec, value)
        # As in ComfyUI, a class that checks an input itself is not checked for range and choice.
        if spec.name in self.own_checks or self.checks_all:
            return None
        if spec.choices is not None:
            return self._choice(spec, spec.choices, value)
        low, high = spec.options.get("min"), spec.options.get("max")
        if spec.type in ("INT", "FLOAT") and low is not None and value < low:
            return self._problem(spec.name, f"is {brief(value)}, the least is {low}: set at least that")
        if spec.type in ("INT", "FLOAT") and high is not None and value > high:
            return self._problem(spec.name, f"is {brief(value)}, the most is {high}: set at most that")
        return None

    def _linked_prompt(self, spec: InputSpec, link: Link) -> Problem | None:
        """Find the files that prompts name which arrive over a link. All other rules are for widgets, as in ComfyUI."""
        texts = (self.known.of(link) or ()) if spec.type == "STRING" else ()
        named = (text for text in texts if isinstance(text, str) and "embedding:" in text)
        return next((problem for text in named if (problem := self._embeddings(spec, text)) is not None), None)

    def _embeddings(self, spec: InputSpec, prompt: str) -> Problem | None:
        """Find the files of textual inversions that a prompt names, if this node encodes prompts."""
        host: Any = getattr(self.cls, "host", None)
        if not hasattr(host, "embedding_file") or all(item.type != "CLIP" for item in self.spec.inputs.values()):
            return None
        # Imported here, because it imports torch.
        from ..controlnet_core.models.prompt import embedding_names

        try:
            for name in embedding_names(prompt):
                host.embedding_file(name)
        except CoreError as error:
            return self._problem(spec.name, str(error), type(error))
        return None

    def _choice(self, spec: InputSpec, choices: Sequence[Any], value: Any) -> Problem | None:
        if value in choices:
            return None
        # A workflow from Windows names files in subfolders with backslashes.
        same = next((c for c in choices if isinstance(c, str) and _as_path(c) == _as_path(value)), None)
        if same is not None:
            self.values[spec.name] = same
            return None
        if leaves_folder(value):
            message = f"{brief(value)} leaves its folder: name a file inside the input or models folder"
            return self._problem(spec.name, message, PathError)
        is_file = bool(spec.options.get("image_upload")) or str(value).lower().endswith(_FILE_ENDINGS)
        if isinstance(value, str) and is_file:
            return self._problem(spec.name, self._missing_file(spec, value, choices), MissingFileError)
        return self._problem(spec.name, _not_a_choice(value, choices))

    def _missing_file(self, spec: InputSpec, value: str, choices: Sequence[Any]) -> str:
        plain = _as_path(value).split("/")[-1]
        advice = next((model for model in self.node.models if model.get("name") == plain), None)
        start = f"there is no file {brief(value)}"
        if advice:
            folder = f"put it into models/{advice.get('directory', '')}".rstrip("/")
            source = f" (the workflow names {advice['url']})" if advice.get("url") else ""
            return f"{start}: {folder}{source}"
        folders = self._searched(spec.name)
        searched = f"; searched {', '.join(map(str, folders))}" if folders else ""
        # Advice of the author is better than a guess, so this comes last.
        near = difflib.get_close_matches(value, [c for c in choices if isinstance(c, str)], n=1, cutoff=0.6)
        if near:
            return f"{start}: the nearest is {near[0]!r}{searched}"
        return f"{start} among the {len(choices)} that are here: put it into its folder{searched}"

    def _searched(self, name: str) -> Sequence[Path]:
        """Return the folders in which the file of an input is looked for, as far as they are known."""
        host, kind = getattr(self.cls, "host", None), _KINDS.get(name.rstrip("12"))
        if host is None or kind is None:
            return ()
        return (host.input_dir,) if kind == "input" else host.folders(kind)

    def _class_validator(self) -> Problem | None:
        validator = getattr(self.cls, "VALIDATE_INPUTS", None)
        if validator is None:
            return None
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
            return self._problem("", str(error), type(error))
        except Exception as error:
            return self._problem("", f"its check failed ({type(error).__name__}: {error}): correct its inputs")
        if verdict is True:
            return None
        message = "its own check refused the inputs" if verdict is False else str(verdict)
        return self._problem(next(iter(arguments), ""), message)

    def _files(self) -> Problem | None:
        """Ask a class of ours for files that a run would not find."""
        check = getattr(self.cls, "check_files", None)
        if check is None:
            return None
        values = {name: self._known(value) for name, value in self.values.items() if name in self.spec.inputs}
        try:
            check(**values)
        except CoreError as error:
            return self._problem("", str(error), type(error))
        return None

    def _known(self, value: Any) -> Any:
        given = self.known.of(value) if isinstance(value, Link) else [value]
        # A list of several values means several runs of the node.
        return given[0] if given and len(given) == 1 else COMPUTED

    def _value_of_node(self) -> Problem | None:
        error = self.known.add(replace(self.node, inputs=self.values))
        return None if error is None else Problem(self.node.id, "", str(error), type(error))

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
    # int() does what ComfyUI does: it reads "20" and cuts 20.7 down to 20.
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"takes a whole number, got {brief(value)}") from error


def _to_float(value: Any) -> float:
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = float(value)
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


def _not_a_choice(value: Any, choices: Sequence[Any]) -> str:
    if not choices:
        return f"is {brief(value)}, but there is nothing to choose from: put a file into its folder"
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.6)
    shown = ", ".join(str(choice) for choice in choices[:_SHOWN_CHOICES])
    rest = f" and {len(choices) - _SHOWN_CHOICES} more" if len(choices) > _SHOWN_CHOICES else ""
    meant = f"did you mean {near[0]!r}? it" if near else "it"
    return f"is {brief(value)}, which is no choice: {meant} takes {shown}{rest}"
