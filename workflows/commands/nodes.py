"""`controlnet nodes [NAME]`: the list of nodes, or one with its inputs, ranges and outputs."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ...controlnet_core.errors import ValueRangeError
from ..contract import InputSpec, NodeSpec, read_spec
from ..session import add_folder_arguments, open_session

_SHOWN_CHOICES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nodes`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a class to describe; without it all are listed")
    add_folder_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """List or describe."""
    classes = open_session(args).classes
    if args.name is None:
        found = {name: classes[name] for name in sorted(classes, key=lambda key: (_category(classes[key]), key))}
    else:
        name = _find(args.name, classes)
        found = {name: classes[name]}
    if args.json:
        print(json.dumps({name: as_dict(read_spec(name, cls), cls) for name, cls in found.items()}, default=str))
    elif args.name is None:
        print("\n".join(_overview(found)))
    else:
        (name, cls), *_ = found.items()
        print("\n".join(describe(read_spec(name, cls), cls)))
    return 0


def _find(name: str, classes: Mapping[str, type]) -> str:
    same = [key for key in classes if key.casefold() in (name.casefold(), f"cncore_{name}".casefold())]
    if same:
        return same[0]
    near = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}?" if near else "`controlnet nodes` lists all"
    raise ValueRangeError(f"there is no node {name}: {meant}")


def _category(cls: type) -> str:
    return str(getattr(cls, "CATEGORY", ""))


def _text(cls: type) -> str:
    return " ".join(inspect.cleandoc(str(getattr(cls, "DESCRIPTION", "") or "")).split())


def _overview(found: Mapping[str, type]) -> Iterator[str]:
    category = None
    width = max((len(name) for name in found), default=0)
    for name, cls in found.items():
        if _category(cls) != category:
            category = _category(cls)
            yield f"{category or 'no category'}:"
        about = textwrap.shorten(_text(cls), max(20, 106 - width), placeholder="...")
        yield f"  {name:<{width}}  {about}"


def describe(spec: NodeSpec, cls: type) -> Iterator[str]:
    """A node for people: what it does, its inputs with ranges and defaults, its outputs."""
    yield f"{spec.class_type}  ({_category(cls)})"
    yield from textwrap.wrap(_text(cls), 100, initial_indent="  ", subsequent_indent="  ")
    for item in spec.inputs.values():
        need = "" if item.required else ", optional"
        yield f"  in   {item.name}: {_kind(item)}{need}"
        tip = " ".join(str(item.options.get("tooltip", "")).split())
        yield from textwrap.wrap(tip, 100, initial_indent="         ", subsequent_indent="         ")
    for name, kind in zip(spec.output_names, spec.outputs, strict=False):
        yield f"  out  {name}: {kind if isinstance(kind, str) else 'COMBO'}"


def _kind(item: InputSpec) -> str:
    if item.choices is not None:
        shown = ", ".join(str(choice) for choice in item.choices[:_SHOWN_CHOICES])
        more = f", and {len(item.choices) - _SHOWN_CHOICES} more" if len(item.choices) > _SHOWN_CHOICES else ""
        return f"one of {shown or '(nothing there yet)'}{more}"
    parts = [item.type]
    if "min" in item.options or "max" in item.options:
        parts.append(f"{item.options.get('min', '')} to {item.options.get('max', '')}")
    if item.is_widget and item.type != "STRING":
        parts.append(f"default {item.default}")
    return ", ".join(parts)


def as_dict(spec: NodeSpec, cls: type) -> dict[str, Any]:
    """A node for programs."""
    return {
        "category": _category(cls),
        "description": _text(cls),
        "inputs": [
            {
                "name": item.name,
                "type": item.type,
                "required": item.required,
                "choices": None if item.choices is None else list(item.choices),
                "default": item.default if item.is_widget else None,
                "min": item.options.get("min"),
                "max": item.options.get("max"),
            }
            for item in spec.inputs.values()
        ],
        "outputs": [
            {"name": name, "type": kind if isinstance(kind, str) else "COMBO"}
            for name, kind in zip(spec.output_names, spec.outputs, strict=False)
        ],
    }
