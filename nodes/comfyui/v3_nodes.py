"""Our nodes in ComfyUI's V3 schema, made from our V1 classes and their fields.

Releases of ComfyUI with `comfy_api.latest` take V3 classes in NODE_CLASS_MAPPINGS. They run the class methods on a
copy of the class, which cannot be changed while it runs. Progress and interruption have no other functions there:
`comfy.utils.ProgressBar` feeds the new progress state, and older clients too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any

from comfy_api.latest import io

from ..fields import OPTIONS, Field, Output, list_choices

TYPES = {"INT": io.Int, "FLOAT": io.Float, "BOOLEAN": io.Boolean, "STRING": io.String, "COMBO": io.Combo}
"""Types with a widget. All others are sockets, which need no class of their own."""
CHECKS = {"VALIDATE_INPUTS": "validate_inputs", "IS_CHANGED": "fingerprint_inputs"}
"""Class methods of a V1 class that V3 calls by another name, with the same arguments."""
EXTRA = {"widget_type": "widgetType", "force_input": "forceInput"}
"""Options of a field that go into the description of an input as they are."""
SCHEMA_OPTIONS = frozenset(option.name for option in fields(io.Schema))


def v3_nodes(classes: Mapping[str, type]) -> dict[str, type]:
    """V3 classes by ID for our V1 classes, which are bound to a host."""
    return {name: v3_node(name, cls) for name, cls in classes.items()}


def v3_node(node_id: str, cls: Any) -> type:
    """The V3 class of a V1 class, which is its attribute `v1`."""

    def define_schema(_: type) -> io.Schema:
        # At each call, as INPUT_TYPES: lists of files change.
        return schema(node_id, cls)

    def execute(own: Any, **inputs: Any) -> Any:
        # Hidden inputs come with the copy of the class that ComfyUI runs, not as arguments.
        hidden = {name: getattr(own.hidden, name, None) for name in cls.HIDDEN}
        result = getattr(cls(), cls.FUNCTION)(**{**hidden, **inputs})
        # Not by `NodeOutput.from_dict`, which fails in 0.3.64.
        given = result if isinstance(result, dict) else {"result": result, "ui": None}
        return io.NodeOutput(*given["result"], ui=given["ui"])

    methods: dict[str, Callable[..., Any]] = {"define_schema": define_schema, "execute": execute}
    # The functions themselves: ComfyUI reads the names of their arguments.
    methods |= {new: getattr(cls, old).__func__ for old, new in CHECKS.items() if hasattr(cls, old)}
    attributes: dict[str, Any] = {name: classmethod(function) for name, function in methods.items()}
    attributes |= {"v1": cls, "__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (io.ComfyNode,), attributes)


def schema(node_id: str, cls: Any) -> io.Schema:
    """What ComfyUI knows of a node: its inputs and outputs, and where it stands in the menus."""
    options = {
        "display_name": cls.DISPLAY_NAME,
        "category": cls.CATEGORY,
        "description": cls.DESCRIPTION,
        "inputs": [v3_input(field, cls.host) for field in cls.INPUTS],
        "outputs": [v3_output(output) for output in cls.OUTPUTS],
        "hidden": [io.Hidden[name] for name in cls.HIDDEN],
        "is_output_node": getattr(cls, "OUTPUT_NODE", False),
        "search_aliases": getattr(cls, "SEARCH_ALIASES", []),
    }
    # Older releases of the schema have no search words.
    return io.Schema(node_id, **{name: value for name, value in options.items() if name in SCHEMA_OPTIONS})


def v3_input(field: Field, host: Any) -> io.Input:
    """An input of a V3 node."""
    given: dict[str, Any] = {name: getattr(field, name) for name in OPTIONS if name not in EXTRA}
    if field.choices is not None:
        given["options"] = list_choices(field.choices, host)
    make = TYPES.get(field.type, io.Custom(field.type)).Input
    # An option of a later release than this one has no effect here.
    known = signature(make.__init__).parameters
    options = {name: value for name, value in given.items() if value is not None and name in known}
    made = make(field.name, optional=field.optional, **options)
    # Not as V3's own options: `widget_type` changes the type of the socket too, so that no link would fit, and a socket
    # of a type with a widget has no `force_input`.
    extra = {key: value for name, key in EXTRA.items() if (value := getattr(field, name)) is not None}
    if extra:
        made.extra_dict = {**(made.extra_dict or {}), **extra}
    return made


def v3_output(output: Output) -> io.Output:
    """An output of a V3 node. Its ID stays ComfyUI's own: links are saved by position."""
    return io.Custom(output.type).Output(display_name=output.name, tooltip=output.tooltip)
