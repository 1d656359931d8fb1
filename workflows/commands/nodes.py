"""`controlnet nodes [NAME]`: list the nodes, or describe one with its inputs, ranges and outputs."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from ...controlnet_core.errors import ValueRangeError
from ..contract import InputSpec, NodeSpec, read_spec
from ..session import add_folder_arguments, open_session

_SHOWN_CHOICES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nodes`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a node class to describe (default: list all)")
    add_folder_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the list, or the description of one node."""
    classes = open_session(args).classes
    if args.name is None:
        names = sorted(classes, key=lambda name: (_category(classes[name]), name))
    else:
        names = [_find(args.name, classes)]
    if args.json:
        # Choices of other packs may be of any type, hence default=str.
        print(json.dumps({name: as_dict(read_spec(name, classes[name]), classes[name]) for name in names}, default=str))
    elif args.name is None:
        print("\n".join(_overview({name: classes[name] for name in names})))
    else:
        print("\n".join(describe(read_spec(names[0], classes[names[0]]), classes[names[0]])))
    return 0


def _find(name: str, classes: Mapping[str, type]) -> str:
    # The prefix of our own nodes may be left out.
    wanted = (name.casefold(), f"cncore_{name}".casefold())
    found = next((key for key in classes if key.casefold() in wanted), None)
    if found is not None:
        return found
    near = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}?" if near else "`controlnet nodes` lists all"
    raise ValueRangeError(f"there is no node {name}: {meant}")


def _category(cls: type) -> str:
    return str(getattr(cls, "CATEGORY", ""))


def _text(cls: type) -> str:
    return " ".join(inspect.cleandoc(str(getattr(cls, "DESCRIPTION", "") or "")).split())


def _overview(classes: Mapping[str, type]) -> Iterator[str]:
    """Yield a line for each category and each node. classes: sorted by category."""
    width = max(map(len, classes), default=0)
    for category, names in groupby(classes, key=lambda name: _category(classes[name])):
        yield f"{category or 'no category'}:"
        for name in names:
            about = textwrap.shorten(_text(classes[name]), max(20, 106 - width), placeholder="...")
            yield f"  {name:<{width}}  {about}"


def describe(spec: NodeSpec, cls: type) -> Iterator[str]:
    """Yield the description of a node in lines: what it does, its inputs with ranges and defaults, its outputs."""
    yield f"{spec.class_type}  ({_category(cls)})"
    yield from textwrap.wrap(_text(cls), 100, initial_indent="  ", subsequent_indent="  ")
    for item in spec.inputs.values():
        yield f"  in   {item.name}: {_kind(item)}{'' if item.required else ', optional'}"
        tip = " ".join(str(item.options.get("tooltip", "")).split())
        yield from textwrap.wrap(tip, 100, initial_indent="         ", subsequent_indent="         ")
    for output in _outputs(spec):
        yield f"  out  {output['name']}: {output['type']}"


def _outputs(spec: NodeSpec) -> list[dict[str, str]]:
    pairs = zip(spec.output_names, spec.outputs, strict=False)
    return [{"name": name, "type": kind if isinstance(kind, str) else "COMBO"} for name, kind in pairs]


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
    """Return the description of a node for JSON."""
    inputs = [
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
    ]
    return {"category": _category(cls), "description": _text(cls), "inputs": inputs, "outputs": _outputs(spec)}
