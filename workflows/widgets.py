"""Which widget of the editor a saved value belongs to.

The editor saves the values of a node's fields as a list, in the order in which the class declares
its inputs, with fields of its own in between: "control_after_generate" behind a seed, a filter
behind a choice that has one too, the upload button behind a file. Values of fields that were turned
into sockets stay in the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .contract import InputSpec

CONTROL_WORDS = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
_ESCAPED = frozenset({"\\{", "\\}", "\\|"})
_UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")


@dataclass(frozen=True)
class WidgetValue:
    """A field's value and where it stands: an index or a name below `widgets_values`, or None."""

    value: Any
    at: int | str | None = None


def widget_values(inputs: Mapping[str, InputSpec], saved: Any, named: Any = None) -> dict[str, WidgetValue]:
    """Values by input name, from a list, from an object by name, or from the class's defaults.

    A file written for an older or newer class may hold too few values: the rest keep their
    defaults, as in the editor.
    """
    widgets = [spec for spec in inputs.values() if spec.is_widget]
    if isinstance(saved, dict):
        found = {key: WidgetValue(value, key) for key, value in saved.items()}
    elif isinstance(saved, list):
        found = _by_position(widgets, saved)
    else:
        found = {}
    if isinstance(named, dict) and not isinstance(saved, (list, dict)):
        found = {key: WidgetValue(value) for key, value in named.items()}
    return {spec.name: _or_default(spec, found.get(spec.name)) for spec in widgets}


def has_control(spec: InputSpec) -> bool:
    """Whether the editor puts a "control_after_generate" field behind this one."""
    flag = spec.options.get("control_after_generate")
    if flag is None:
        return spec.type == "INT" and spec.name in ("seed", "noise_seed")
    return bool(flag)


def _by_position(widgets: list[InputSpec], saved: list[Any]) -> dict[str, WidgetValue]:
    found: dict[str, WidgetValue] = {}
    cursor = 0
    for index, spec in enumerate(widgets):
        if cursor >= len(saved):
            break
        found[spec.name] = WidgetValue(saved[cursor], cursor)
        cursor += 1
        cursor += _own_fields(spec, saved[cursor:], len(widgets) - index - 1)
    return found


def _own_fields(spec: InputSpec, rest: list[Any], to_come: int) -> int:
    """How many of the values that follow belong to the editor's own fields behind `spec`."""
    if has_control(spec) and rest and _is_control(rest[0], len(rest) > to_come):
        is_filter = spec.choices is not None and len(rest) > to_come + 1 and isinstance(rest[1], str)
        return 2 if is_filter else 1
    if any(spec.options.get(kind) for kind in _UPLOADS) and len(rest) > to_come:
        return 1
    return 0


def _is_control(value: Any, is_surplus: bool) -> bool:
    """Early editors saved true or false there."""
    return (isinstance(value, str) and value in CONTROL_WORDS) or (isinstance(value, bool) and is_surplus)


def _or_default(spec: InputSpec, found: WidgetValue | None) -> WidgetValue:
    if found is None or found.value is None:
        return WidgetValue(spec.default, None if found is None else found.at)
    if spec.options.get("dynamicPrompts") and isinstance(found.value, str):
        return WidgetValue(dynamic_prompt(found.value), found.at)
    return found


def dynamic_prompt(text: str) -> str:
    """A prompt with comments removed and each {one|two} group replaced by its first alternative.

    The editor picks an alternative at random at each run; here the same file gives the same picture.
    A backslash in front of a brace or bar makes it a plain character.
    """
    result: list[str] = []
    skipped = 0  # depth inside alternatives that were not taken
    depth = 0
    text = _without_comments(text)
    position = 0
    while position < len(text):
        char = text[position]
        step = 2 if char == "\\" else 1
        if char == "{":
            depth += 1
            skipped += bool(skipped)
        elif char == "}" and depth:
            depth -= 1
            skipped -= bool(skipped)
        elif char == "|" and depth:
            skipped = skipped or 1
        elif not skipped:
            piece = text[position : position + step]
            result.append(piece[1:] if piece in _ESCAPED else piece)
        position += step
    return "".join(result)


def _without_comments(text: str) -> str:
    """C-style comments out; a scan, since text from strangers must not make a regex slow."""
    result: list[str] = []
    position = 0
    while position < len(text):
        two = text[position : position + 2]
        if two == "//":
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
        elif two == "/*" and (end := text.find("*/", position + 2)) >= 0:
            position = end + 2
        else:
            result.append(text[position])
            position += 1
    return "".join(result)
