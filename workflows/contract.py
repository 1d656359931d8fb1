"""Read the V1 node contract: the inputs that a node class declares, and which types fit together.

A V1 class answers `INPUT_TYPES()` with {"required": {name: (type, options)}, "optional": ..., "hidden": {name: kind}}.
A type is a name such as "IMAGE", a union "MODEL,CLIP", "*" for any, or a list of choices. No node is special here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from ..controlnet_core.errors import CoreError

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_DEFAULTS = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}


@dataclass(frozen=True)
class InputSpec:
    """One declared input. choices: the values of a "COMBO", None for other types."""

    name: str
    type: str
    required: bool
    choices: tuple[Any, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)

    @property
    def is_widget(self) -> bool:
        """Whether the editor shows a widget for it, so that it has a value without a link."""
        # Inputs of V3 nodes without a socket are widgets of any type, such as a curve.
        has_widget = self.type in WIDGET_TYPES or "widgetType" in self.options or self.options.get("socketless")
        return not self.options.get("forceInput") and bool(has_widget)

    @property
    def default(self) -> Any:
        """The value that the editor shows for a new node."""
        first = self.choices[0] if self.choices else _DEFAULTS.get(self.type)
        return self.options.get("default", first)


@dataclass(frozen=True)
class NodeSpec:
    """What the runner needs to know about a node class. inputs, hidden: by name. outputs: their types."""

    class_type: str
    inputs: Mapping[str, InputSpec]
    hidden: Mapping[str, str]
    outputs: tuple[Any, ...]
    output_names: tuple[str, ...]
    is_output: bool


def read_spec(class_type: str, cls: type) -> NodeSpec:
    """Return the contract of a V1 node class. Raises CoreError that names a class that does not keep it."""
    try:
        declared = cls.INPUT_TYPES()  # type: ignore[attr-defined]
        inputs = {
            name: _input_spec(name, entry, required=group == "required")
            for group in ("required", "optional")
            for name, entry in (declared.get(group) or {}).items()
        }
        # A hidden input is written as "PROMPT", and by some packs as ("PROMPT",).
        hidden = {
            name: str(kind if isinstance(kind, str) else kind[0])
            for name, kind in (declared.get("hidden") or {}).items()
        }
        outputs = tuple(getattr(cls, "RETURN_TYPES", ()))
    except CoreError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CoreError(
            f"node class {class_type} does not describe its inputs ({reason}): update or remove its pack"
        ) from error
    names = tuple(str(name) for name in getattr(cls, "RETURN_NAMES", ()) or outputs)
    return NodeSpec(class_type, inputs, hidden, outputs, names, bool(getattr(cls, "OUTPUT_NODE", False)))


def read_specs(classes: Mapping[str, type], names: Sequence[str]) -> dict[str, NodeSpec]:
    """Return the contracts of the known classes among `names`. Each is read once, since reading may list folders."""
    return {name: read_spec(name, classes[name]) for name in dict.fromkeys(names) if name in classes}


def _input_spec(name: str, entry: Any, *, required: bool) -> InputSpec:
    declared, *more = entry if isinstance(entry, (tuple, list)) else (entry,)
    options = more[0] if more and isinstance(more[0], Mapping) else _EMPTY
    if isinstance(declared, (list, tuple)):
        return InputSpec(name, "COMBO", required, tuple(declared), options)
    choices = tuple(options.get("options", ())) if declared == "COMBO" else None
    return InputSpec(name, str(declared), required, choices, options)


def types_fit(given: Any, wanted: str) -> bool:
    """Whether an output of type `given` may be linked to an input of type `wanted`.

    Types may be unions "A,B": one common name is enough, and "*" fits all.
    """
    given_names = {"COMBO"} if isinstance(given, (list, tuple)) else _names(str(given))
    wanted_names = _names(wanted)
    return bool(given_names & wanted_names) or "*" in given_names | wanted_names


@lru_cache(maxsize=1024)
def _names(union: str) -> frozenset[str]:
    return frozenset(name.strip() for name in union.split(",") if name.strip())
