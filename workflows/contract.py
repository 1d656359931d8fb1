"""Reading the V1 node contract: what inputs a node class declares, and which types fit together.

A V1 class answers `INPUT_TYPES()` with {"required": {name: (type, options)}, "optional": ...,
"hidden": {name: kind}}; a type is a name such as "IMAGE", a union "MODEL,CLIP", "*", or a list of
choices. Nothing here knows a particular node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..controlnet_core.errors import CoreError

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_FALLBACK = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}


@dataclass(frozen=True)
class InputSpec:
    """One declared input. `type` is "COMBO" when `choices` holds the values that may be picked."""

    name: str
    type: str
    required: bool
    choices: tuple[Any, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)

    @property
    def is_widget(self) -> bool:
        """True when the editor shows a field for it, so that it has a value without a link."""
        if self.options.get("forceInput"):
            return False
        return self.type in WIDGET_TYPES or "widgetType" in self.options

    @property
    def default(self) -> Any:
        """The value that the editor shows before anybody touches the field."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return _FALLBACK.get(self.type)


@dataclass(frozen=True)
class NodeSpec:
    """All that the runner needs to know of a node class."""

    class_type: str
    inputs: Mapping[str, InputSpec]
    hidden: Mapping[str, str]
    outputs: tuple[Any, ...]
    output_names: tuple[str, ...]
    is_output: bool


def read_spec(class_type: str, cls: type) -> NodeSpec:
    """The contract of a V1 node class.

    Raises CoreError when the class does not keep the contract, naming it.
    """
    try:
        declared = cls.INPUT_TYPES()  # type: ignore[attr-defined]
        inputs = {
            name: _input_spec(name, entry, required=group == "required")
            for group in ("required", "optional")
            for name, entry in (declared.get(group) or {}).items()
        }
        hidden = {name: _first(entry) for name, entry in (declared.get("hidden") or {}).items()}
        outputs = tuple(getattr(cls, "RETURN_TYPES", ()))
    except CoreError:
        raise
    except Exception as error:
        raise CoreError(
            f"node class {class_type} does not describe its inputs ({type(error).__name__}: {error}): "
            "update or remove the pack that it comes from"
        ) from error
    names = tuple(getattr(cls, "RETURN_NAMES", ()) or outputs)
    return NodeSpec(
        class_type,
        inputs,
        hidden,
        outputs,
        tuple(str(n) for n in names),
        bool(getattr(cls, "OUTPUT_NODE", False)),
    )


def read_specs(classes: Mapping[str, type], names: Sequence[str]) -> dict[str, NodeSpec]:
    """Specs of those of `names` that exist, each read once (reading may list folders)."""
    return {name: read_spec(name, classes[name]) for name in dict.fromkeys(names) if name in classes}


def _first(entry: Any) -> str:
    return str(entry[0]) if isinstance(entry, (tuple, list)) else str(entry)


def _input_spec(name: str, entry: Any, *, required: bool) -> InputSpec:
    declared, options = entry, _EMPTY
    if isinstance(entry, (tuple, list)):
        declared = entry[0]
        if len(entry) > 1 and isinstance(entry[1], Mapping):
            options = entry[1]
    if isinstance(declared, (list, tuple)):
        return InputSpec(name, "COMBO", required, tuple(declared), options)
    if declared == "COMBO":
        return InputSpec(name, "COMBO", required, tuple(options.get("options", ())), options)
    return InputSpec(name, str(declared), required, None, options)


def types_fit(given: Any, wanted: str) -> bool:
    """Whether an output of type `given` may be linked to an input of type `wanted`.

    Types are unions written "A,B"; one name in common is enough, and "*" fits all.
    """
    given_names = {"COMBO"} if isinstance(given, (list, tuple)) else _names(str(given))
    wanted_names = _names(wanted)
    return bool(given_names & wanted_names) or "*" in given_names | wanted_names


def _names(union: str) -> set[str]:
    return {name.strip() for name in union.split(",") if name.strip()}
