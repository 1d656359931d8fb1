"""Reading workflows from files: the API form, the editor's form, and pictures that carry them.

Files come from strangers: whatever is wrong with one ends in a single WorkflowError that says where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import MissingFileError, WorkflowError
from . import editor, png
from .checks import MAX_NODES, as_dict, as_list, as_text, fail
from .graph import Graph, Link, Node

MAX_BYTES = 256 * 2**20
MAX_JSON = 64 * 2**20


@dataclass(frozen=True)
class Document:
    """What a file holds: `prompt` (API form), `workflow` (the editor's form), or both (a picture)."""

    name: str
    prompt: Mapping[str, Any] | None = None
    workflow: Mapping[str, Any] | None = None


def load_graph(path: str | Path, classes: Mapping[str, type]) -> Graph:
    """The graph of a .json or .png file, not yet validated.

    Raises MissingFileError when there is no such file, WorkflowError when it holds no workflow.
    """
    return to_graph(read_document(path), classes)


def to_graph(document: Document, classes: Mapping[str, type]) -> Graph:
    """The graph of a document. A picture's `prompt` says exactly what was run, so it comes first."""
    if document.prompt is None:
        if document.workflow is None:
            raise fail(document.name, "holds no workflow", "give a workflow .json, or a PNG saved with one")
        return editor.to_graph(document.workflow, classes, document.name)
    graph = from_api(document.prompt, document.name)
    if document.workflow is None:
        return graph
    return _with_places(graph, document.workflow, classes, document.name)


def _with_places(graph: Graph, workflow: Mapping[str, Any], classes: Mapping[str, type], name: str) -> Graph:
    """The graph with the editor's form beside it, and where that form keeps each value."""
    try:
        drawn = editor.to_graph(workflow, classes, name).nodes
    except WorkflowError:
        return replace(graph, workflow=workflow)  # passed on as it came; the prompt is what runs
    nodes = {
        key: replace(node, places=drawn[key].places, models=drawn[key].models)
        if key in drawn and drawn[key].class_type == node.class_type
        else node
        for key, node in graph.nodes.items()
    }
    return Graph(nodes, workflow)


def read_document(path: str | Path) -> Document:
    """Read and parse a file; what it is is told by its content, not by its name."""
    path = Path(path)
    try:
        if path.is_dir():
            raise WorkflowError(f"{path} is a folder: give a workflow .json or a picture saved with one")
        if path.stat().st_size > MAX_BYTES:
            raise WorkflowError(f"{path} is larger than {MAX_BYTES >> 20} MB: give a smaller file")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}: check its name and folder", path) from error
    except OSError as error:
        raise MissingFileError(f"{path} cannot be read ({error.strerror or error}): check it", path) from error
    return parse_document(data, str(path))


def parse_document(data: bytes, name: str) -> Document:
    """The same for bytes in memory; `name` is used in messages."""
    if png.is_png(data):
        texts = png.read_text(data, name)
        if "prompt" not in texts and "workflow" not in texts:
            raise fail(name, "is a picture without a workflow in it", "save it again with its metadata")
        return Document(name, _part(texts, "prompt", name), _part(texts, "workflow", name))
    if len(data) > MAX_JSON:
        raise fail(name, f"is larger than {MAX_JSON >> 20} MB and no PNG", "give a workflow .json or a PNG")
    return _classify(parse_json(data, name), name)


def _part(texts: Mapping[str, str], key: str, name: str) -> dict[str, Any] | None:
    if key not in texts:
        return None
    where = f"{name}, text {key}"
    parsed = parse_json(texts[key], where)
    return as_dict(parsed, where) if parsed else None


def _classify(data: Any, name: str) -> Document:
    if isinstance(data, dict):
        if isinstance(data.get("nodes"), list):
            return Document(name, workflow=data)
        if isinstance(data.get("prompt"), dict) and "class_type" not in data:
            return _classify_prompt(data["prompt"], name)
        if data:
            return _classify_prompt(data, name)
    raise _no_workflow(data, name)


def _classify_prompt(data: dict[str, Any], name: str) -> Document:
    if not any(isinstance(node, dict) and "class_type" in node for node in data.values()):
        raise _no_workflow(data, name)
    return Document(name, prompt=data)


def _no_workflow(data: Any, name: str) -> WorkflowError:
    return fail(name, f"is JSON but no workflow ({_summary(data)})", "give one saved or exported by the editor")


def _summary(data: Any) -> str:
    if isinstance(data, dict):
        keys = ", ".join(str(key)[:24] for key in list(data)[:4])
        return f"an object with {keys or 'nothing in it'}"
    return {"list": "a list", "str": "a text", "NoneType": "null"}.get(type(data).__name__, "a number")


def parse_json(data: bytes | str, name: str) -> Any:
    """JSON with NaN and Infinity let through (the host writes NaN); whoever uses a value checks it."""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise fail(name, f"is no UTF-8 text (byte {error.start})", "give a workflow .json or a PNG") from error
    except RecursionError as error:
        raise fail(name, "is nested too deeply to be a workflow", "give another file") from error
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):  # Python reads no whole number of thousands of digits
            raise fail(name, "holds a number of thousands of digits", "give another value") from error
        said = f"line {error.lineno}: {error.msg}"
        raise fail(name, f"is no valid JSON ({said[:100]})", "save it again in the editor") from error


def from_api(data: Mapping[str, Any], name: str) -> Graph:
    """The graph of an API form: {id: {"class_type": ..., "inputs": ..., "_meta": {"title": ...}}}."""
    if len(data) > MAX_NODES:
        raise fail(name, f"has {len(data)} nodes, more than {MAX_NODES}", "split it")
    return Graph({str(key): _api_node(str(key), value, name) for key, value in data.items()})


def _api_node(key: str, value: Any, name: str) -> Node:
    where = f"{name}, node {key[:40]}"
    node = as_dict(value, where)
    class_type = as_text(node.get("class_type"), f"{where}, class_type")
    inputs = as_dict(node.get("inputs", {}), f"{where}, inputs")
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return Node(
        key,
        class_type,
        {name: _api_input(item, f"{where}, input {name}") for name, item in inputs.items()},
        title if isinstance(title, str) else "",
    )


def _api_input(value: Any, where: str) -> Any:
    """A list is always a link; a list meant as a value comes wrapped as {"__value__": [...]}."""
    if isinstance(value, dict) and set(value) == {"__value__"}:
        return value["__value__"]
    if not isinstance(value, list):
        return value
    source, slot = as_list(value, where, length=2)
    if isinstance(source, (str, int)) and isinstance(slot, (int, float)) and slot == slot // 1:
        return Link(str(source), int(slot))
    raise fail(where, f"is {str(value)[:60]}, no link", "write a link as [node id, output number]")
