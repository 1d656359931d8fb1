"""Read workflows from files: the API form, the editor's form, and pictures that carry them.

Files come from strangers. Every fault of a file ends in one WorkflowError that says where it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import MissingFileError, WorkflowError, unreadable
from ..controlnet_core.limits import WORKFLOW_BYTES
from . import editor, png
from .broadcasts import SENDERS
from .checks import MAX_NODES, as_dict, as_text, fail
from .graph import Graph, Link, Node
from .migrations import current_inputs, current_type

MAX_FILE_BYTES = 256 * 2**20
"""Size of a file, that is of a picture with a workflow in it."""


@dataclass(frozen=True)
class Document:
    """The content of a file. prompt: the API form. workflow: the editor's form. A picture may have both."""

    name: str
    prompt: Mapping[str, Any] | None = None
    workflow: Mapping[str, Any] | None = None


def to_graph(document: Document, classes: Mapping[str, type]) -> Graph:
    """Return the graph of a document. A picture's `prompt` is exactly what was run, so it is preferred."""
    if document.prompt is None:
        if document.workflow is None:
            raise fail(document.name, "holds no workflow", "give a workflow .json, or a PNG saved with one")
        return editor.to_graph(document.workflow, classes, document.name)
    graph = from_api(document.prompt, document.name)
    if document.workflow is None:
        return graph
    try:
        drawn = editor.to_graph(document.workflow, classes, document.name).nodes
    except WorkflowError:
        # The prompt is what runs. The editor's form is only passed on into the saved pictures.
        return replace(graph, workflow=document.workflow)
    nodes = {
        key: _with_drawn(node, drawn[key]) if key in drawn and drawn[key].class_type == node.class_type else node
        for key, node in graph.nodes.items()
    }
    return Graph(nodes, document.workflow)


def _with_drawn(node: Node, drawn: Node) -> Node:
    """Add what only the editor's form knows: where each value stands, so that a changed value can be written back.

    A prompt of an earlier release lacks the values of widgets that its node has gained since. The editor, which loads
    the other form, gives them their defaults.
    """
    gained = {name: value for name, value in drawn.inputs.items() if not isinstance(value, Link)}
    inputs = {**gained, **node.inputs}
    return replace(node, inputs=inputs, places=drawn.places, models=drawn.models, search_name=drawn.search_name)


def read_document(path: str | Path) -> Document:
    """Read and parse a file. Its content decides what it is, not its name."""
    path = Path(path)
    try:
        if path.is_dir():
            raise WorkflowError(f"{path} is a folder: give a workflow .json or a picture saved with one")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise WorkflowError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB: give a smaller file")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}: check its name and folder", path) from error
    except OSError as error:
        raise MissingFileError(unreadable(str(path), error), path) from error
    return parse_document(data, str(path))


def parse_document(data: bytes, name: str) -> Document:
    """Parse the bytes of a file. name: how messages call the file."""
    if png.is_png(data):
        texts = png.read_text(data, name)
        if "prompt" not in texts and "workflow" not in texts:
            raise fail(name, "is a picture without a workflow in it", "save it again with its metadata")
        return Document(name, _part(texts, "prompt", name), _part(texts, "workflow", name))
    return _classify(parse_json(data, name), name)


def _part(texts: Mapping[str, str], key: str, name: str) -> dict[str, Any] | None:
    if key not in texts:
        return None
    where = f"{name}, text {key}"
    parsed = parse_json(texts[key], where)
    return as_dict(parsed, where) if parsed else None


def _classify(data: Any, name: str) -> Document:
    if _is_drawn(data):
        return Document(name, workflow=data)
    if isinstance(data, dict) and "class_type" not in data:
        # Programs wrap a workflow: {"prompt": ...} is a request to a server, {"workflow": ..., "output": ...} is
        # what the editor's own function graphToPrompt returns.
        prompt = next((data[key] for key in ("prompt", "output") if _is_prompt(data.get(key))), None)
        workflow = data["workflow"] if _is_drawn(data.get("workflow")) else None
        if prompt or workflow:
            return Document(name, prompt, workflow)
        if _is_prompt(data):
            return Document(name, data)
    raise fail(name, f"is JSON but no workflow ({_summary(data)})", "give one saved or exported by the editor")


def _is_drawn(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def _is_prompt(data: Any) -> bool:
    return isinstance(data, dict) and any(isinstance(node, dict) and "class_type" in node for node in data.values())


def _summary(data: Any) -> str:
    if isinstance(data, dict):
        keys = ", ".join(str(key)[:24] for key in list(data)[:4])
        return f"an object with {keys or 'nothing in it'}"
    return {list: "a list", str: "a text", type(None): "null"}.get(type(data), "a number")


def parse_json(data: bytes | str, name: str) -> Any:
    """Parse JSON. NaN and Infinity pass, because ComfyUI writes NaN; the user of a value checks it."""
    if len(data) > WORKFLOW_BYTES.number:
        size = f"has {len(data):,} {WORKFLOW_BYTES.unit}, expected at most {WORKFLOW_BYTES.number:,}"
        raise fail(name, size, "give a workflow .json or a PNG saved with one")
    try:
        return json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except UnicodeDecodeError as error:
        raise fail(name, f"is no UTF-8 text (byte {error.start})", "give a workflow .json or a PNG") from error
    except RecursionError as error:
        raise fail(name, "is nested too deeply to be a workflow", "give another file") from error
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}: {error.msg}"[:100]
        raise fail(name, f"is no valid JSON ({reason})", "save it again in the editor") from error
    except ValueError as error:
        # Python refuses to read an integer of more than 4300 digits.
        raise fail(name, "holds a number of thousands of digits", "give another value") from error


def from_api(data: Mapping[str, Any], name: str) -> Graph:
    """Return the graph of an API form: {id: {"class_type": ..., "inputs": ..., "_meta": {"title": ...}}}."""
    # Checked before the nodes are built: a small file can list millions of them.
    if len(data) > MAX_NODES:
        raise fail(name, f"has {len(data)} nodes, more than {MAX_NODES}", "split it")
    nodes = {str(key): value for key, value in data.items() if not _is_left_out(str(key), value)}
    return Graph({key: _api_node(key, value, name, data) for key, value in nodes.items()})


def _is_left_out(key: str, value: Any) -> bool:
    """Whether an entry is a note that a program left beside the nodes, such as "_comment", or a node that only sends
    values in the editor: the links that it made stand in the other nodes."""
    kind = value.get("class_type") if isinstance(value, dict) else None
    return (key.startswith("_") and not kind) or (isinstance(kind, str) and kind in SENDERS)


def _api_node(key: str, value: Any, name: str, data: Mapping[str, Any]) -> Node:
    where = f"{name}, node {key[:40]}"
    node = as_dict(value, where)
    class_type = current_type(as_text(node.get("class_type"), f"{where}, class_type"))
    given = as_dict(node.get("inputs", {}), f"{where}, inputs")
    inputs = {name: _api_input(item, data) for name, item in given.items()}
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return Node(key, class_type, current_inputs(class_type, inputs), title if isinstance(title, str) else "")


def _api_input(value: Any, data: Mapping[str, Any]) -> Any:
    """Return a link for [node id, output number]; any other list is a value, also one in {"__value__": [...]}."""
    if isinstance(value, dict) and set(value) == {"__value__"}:
        return value["__value__"]
    if isinstance(value, list) and len(value) == 2:
        source, slot = value
        # ComfyUI writes ids as text. Some programs write numbers, which could also be a size such as [512, 768].
        is_id = isinstance(source, str) or (isinstance(source, int) and str(source) in data)
        if is_id and isinstance(slot, (int, float)) and slot == slot // 1:
            return Link(str(source), int(slot))
    return value
