"""`controlnet inspect FILE`: describe a model, a workflow or a picture by its content."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...controlnet_core.errors import MissingFileError, reading
from .. import png
from ..bundled import find_workflow
from ..formats import Document, read_document
from ..overrides import SEED_INPUTS
from ..paths import exists, user_path
from ..terminal import printable

_SHOWN = 90
_FORMS = {"prompt": "API form", "workflow": "editor's form"}
_MODEL_ENDINGS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `inspect`."""
    parser.add_argument("file", metavar="FILE", help="a model file or folder, a workflow .json, or a picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Describe the file. Its name does not matter."""
    path = _find(args.file)
    if path.is_dir() or not _may_be_workflow(path):
        from ...controlnet_core.checkpoints.inspect import inspect_file

        report = inspect_file(path)
        print(json.dumps(report.as_dict()) if args.json else printable("\n".join(report.lines())))
        return 0
    document = read_document(path)
    print(json.dumps(as_dict(document)) if args.json else printable("\n".join(lines(document))))
    return 0


def _find(name: str) -> Path:
    path = user_path(name)
    if exists(path):
        return path
    # A bundled name such as canny_to_image is accepted too, but the error must not suggest one for a model file.
    try:
        return find_workflow(name)
    except MissingFileError:
        raise MissingFileError(f"there is no file {name}: check its name and folder", path) from None


def _may_be_workflow(path: Path) -> bool:
    """Whether a file is a PNG, or a text that begins as JSON does."""
    # The index of a model in shards is JSON too, but no workflow.
    if path.name.endswith(".json") and ".index." in path.name:
        return False
    with reading(path), path.open("rb") as file:
        head = file.read(64)
    is_json = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    # A safetensors file begins with the length of its JSON in 8 bytes, which can look like a brace.
    return png.is_png(head) or (is_json and b"\0" not in head)


def as_dict(document: Document) -> dict[str, Any]:
    """Return the facts of a workflow for JSON."""
    # Nothing is resolved here, so that a workflow with unknown nodes can be inspected too.
    rows = list(_nodes(document))
    models = {value for *_, inputs in rows for value in inputs.values() if _is_model(value)}
    seeds = [inputs[name] for *_, inputs in rows for name in SEED_INPUTS if isinstance(inputs.get(name), int)]
    return {
        "path": document.name,
        "forms": [key for key in _FORMS if getattr(document, key) is not None],
        "version": (document.workflow or {}).get("version"),
        "nodes": [{"id": node_id, "class": kind, "title": title} for node_id, kind, title, _ in rows],
        "models": sorted(models),
        "seeds": seeds,
    }


def lines(document: Document) -> list[str]:
    """Return the facts of a workflow as text, one per line."""
    facts = as_dict(document)
    forms = ", ".join(_FORMS[key] for key in facts["forms"])
    version = f" {facts['version']}" if facts["version"] is not None else ""
    counted = sorted(Counter(node["class"] for node in facts["nodes"]).items())
    result = [
        f"file:     {document.name}",
        f"what:     workflow ({forms}{version}), {len(facts['nodes'])} nodes",
        *(f"model:    {name}" for name in facts["models"]),
        *(f"seed:     {seed}" for seed in facts["seeds"]),
        f"classes:  {', '.join(f'{n} x {name}' if n > 1 else name for name, n in counted)}",
    ]
    for node in facts["nodes"]:
        title = f"  {node['title']}" if node["title"] and node["title"] != node["class"] else ""
        result.append(f"node:     {node['id']:>4}  {node['class']}{title}"[:_SHOWN])
    return result


def _nodes(document: Document) -> Iterator[tuple[str, str, str, dict[Any, Any]]]:
    """Yield (id, class, title, inputs) of each node, of the prompt if there is one. Links are not followed.

    The editor's form stores values without the names of their inputs; there the keys are numbers.
    """
    if document.prompt is not None:
        for key, node in document.prompt.items():
            if isinstance(node, dict):
                meta, inputs = node.get("_meta"), node.get("inputs")
                title = meta.get("title") if isinstance(meta, dict) else ""
                yield (
                    str(key),
                    str(node.get("class_type")),
                    str(title or ""),
                    inputs if isinstance(inputs, dict) else {},
                )
        return
    for node in (document.workflow or {}).get("nodes", []):
        if isinstance(node, dict):
            saved = node.get("widgets_values")
            values = saved if isinstance(saved, dict) else dict(enumerate(saved)) if isinstance(saved, list) else {}
            yield str(node.get("id")), str(node.get("type")), str(node.get("title") or ""), values


def _is_model(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(_MODEL_ENDINGS)
