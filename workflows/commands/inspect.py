"""`controlnet inspect FILE`: what a model, a workflow or a picture file is."""

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `inspect`."""
    parser.add_argument("file", metavar="FILE", help="a model file or folder, a workflow .json, or a picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Describe the file by its content; its name does not matter."""
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
    try:
        return find_workflow(name)
    except MissingFileError:
        raise MissingFileError(f"there is no file {name}: check its name and folder", path) from None


def _may_be_workflow(path: Path) -> bool:
    """PNG, or text that begins as JSON does (a safetensors file begins with a length of 8 bytes)."""
    if path.name.endswith(".json") and ".index." in path.name:  # the index of a model in shards
        return False
    with reading(path), path.open("rb") as file:
        head = file.read(64)
    return png.is_png(head) or (head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") and b"\0" not in head)


def as_dict(document: Document) -> dict[str, Any]:
    """The facts of a workflow, ready for JSON."""
    drawn = document.workflow or {}
    rows = list(_nodes(document))
    return {
        "path": document.name,
        "forms": [key for key in ("prompt", "workflow") if getattr(document, key) is not None],
        "version": drawn.get("version"),
        "nodes": [{"id": node_id, "class": kind, "title": title} for node_id, kind, title, _ in rows],
        "models": sorted({value for *_, values in rows for value in values if _is_model(value)}),
        "seeds": _seeds(document),
    }


def lines(document: Document) -> list[str]:
    """The same for people, one fact per line."""
    facts = as_dict(document)
    form = {"prompt": "API form", "workflow": "editor's form"}
    forms = ", ".join(form[key] for key in facts["forms"])
    version = f" {facts['version']}" if facts["version"] is not None else ""
    result = [
        f"file:     {document.name}",
        f"what:     workflow ({forms}{version}), {len(facts['nodes'])} nodes",
    ]
    result += [f"model:    {name}" for name in facts["models"]]
    result += [f"seed:     {seed}" for seed in facts["seeds"]]
    counted = Counter(node["class"] for node in facts["nodes"])
    result.append(f"classes:  {', '.join(f'{n} x {name}' if n > 1 else name for name, n in sorted(counted.items()))}")
    for node in facts["nodes"]:
        title = f"  {node['title']}" if node["title"] and node["title"] != node["class"] else ""
        result.append(f"node:     {node['id']:>4}  {node['class']}{title}"[:_SHOWN])
    return result


def _nodes(document: Document) -> Iterator[tuple[str, str, str, list[Any]]]:
    """(id, class, title, plain values) of each node, of the prompt if there is one; nothing is resolved."""
    if document.prompt is not None:
        for key, node in document.prompt.items():
            if isinstance(node, dict):
                meta, inputs = node.get("_meta"), node.get("inputs")
                title = meta.get("title") if isinstance(meta, dict) else ""
                values = list(inputs.values()) if isinstance(inputs, dict) else []
                yield str(key), str(node.get("class_type")), str(title or ""), values
        return
    for node in (document.workflow or {}).get("nodes", []):
        if isinstance(node, dict):
            saved = node.get("widgets_values")
            values = list(saved.values()) if isinstance(saved, dict) else saved if isinstance(saved, list) else []
            yield str(node.get("id")), str(node.get("type")), str(node.get("title") or ""), values


def _is_model(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith((".safetensors", ".ckpt", ".pth", ".pt", ".bin"))


def _seeds(document: Document) -> list[Any]:
    found = []
    for node in (document.prompt or {}).values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict):
            found += [inputs[name] for name in SEED_INPUTS if isinstance(inputs.get(name), int)]
    return found
