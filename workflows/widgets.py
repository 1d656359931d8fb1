"""Match the widget values of a saved node with the inputs that its class declares.

The editor saves the values of a node's widgets as a list, in the order in which the class declares its inputs. It adds
widgets of its own, whose values stand in the same list: "control_after_generate" after a seed, a filter after a choice
that has such a control, and the upload button. Values of widgets that were converted to inputs stay in the list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .contract import InputSpec

CONTROL_WORDS = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
_UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class WidgetValue:
    """A widget's value, and its index or key in `widgets_values` (None if it is not stored there)."""

    value: Any
    at: int | str | None = None


def widget_values(inputs: Mapping[str, InputSpec], saved: Any, named: Any = None) -> dict[str, WidgetValue]:
    """Return the widget values of a node by input name.

    saved: `widgets_values` of the file, a list or an object. named: `widgets_values_named`, used when `saved` is
    missing. A file that was written for another version of the class may hold too few values; the others get their
    defaults, as in the editor.
    """
    widgets = [spec for spec in inputs.values() if spec.is_widget]
    if isinstance(saved, dict):
        found = {key: WidgetValue(value, key) for key, value in saved.items()}
    elif isinstance(saved, list):
        found = _by_position(widgets, saved)
    else:
        found = {key: WidgetValue(value) for key, value in named.items()} if isinstance(named, dict) else {}
    return {spec.name: _or_default(spec, found.get(spec.name)) for spec in widgets}


def has_control(spec: InputSpec) -> bool:
    """Whether the editor adds a "control_after_generate" widget after this input."""
    flag = spec.options.get("control_after_generate")
    return spec.type == "INT" and spec.name in ("seed", "noise_seed") if flag is None else bool(flag)


def upload_index(widgets: Sequence[InputSpec]) -> int | None:
    """Index of the widget that the upload button follows, or None if the node has no such button.

    The editor declares the button as one more required input, so it comes after all required widgets, wherever the
    input with the upload option stands.
    """
    # Only required inputs count: the editor ignores the upload option of optional ones.
    required = [index for index, spec in enumerate(widgets) if spec.required]
    has_button = any(widgets[index].options.get(kind) for index in required for kind in _UPLOADS)
    return required[-1] if has_button else None


def _by_position(widgets: list[InputSpec], saved: list[Any]) -> dict[str, WidgetValue]:
    found: dict[str, WidgetValue] = {}
    button = upload_index(widgets)
    at = 0
    for index, spec in enumerate(widgets):
        if at == len(saved):
            break
        found[spec.name] = WidgetValue(saved[at], at)
        at += 1
        to_come = len(widgets) - index - 1
        at += _control_count(spec, saved[at : at + 2], len(saved) - at - to_come)
        # workflows that were written by programs often leave the button's value out
        at += index == button and len(saved) - at > to_come
    return found


def _control_count(spec: InputSpec, following: list[Any], surplus: int) -> int:
    """Return how many of the following values belong to widgets that the editor adds after a seed or a choice.

    surplus: how many values are left beyond one for each remaining widget. Early editors saved true or false.
    """
    if not (following and has_control(spec)):
        return 0
    is_word = isinstance(following[0], str) and following[0] in CONTROL_WORDS
    if not is_word and not (isinstance(following[0], bool) and surplus > 0):
        return 0
    has_filter = spec.choices is not None and surplus > 1 and isinstance(following[1], str)
    return 2 if has_filter else 1


def _or_default(spec: InputSpec, found: WidgetValue | None) -> WidgetValue:
    if found is None or found.value is None:
        return WidgetValue(spec.default, None if found is None else found.at)
    return WidgetValue(prompt_value(spec, found.value), found.at)


def prompt_value(spec: InputSpec | None, value: Any) -> Any:
    """Return what the editor sends for a widget's value: of a prompt, the text without comments and alternatives."""
    is_prompt = spec is not None and spec.options.get("dynamicPrompts") and isinstance(value, str)
    return dynamic_prompt(value) if is_prompt else value


def dynamic_prompt(text: str) -> str:
    r"""Remove comments from a prompt, and replace each {one|two} by its first alternative.

    The editor picks an alternative at random for each run. Here the same file always gives the same picture.
    A backslash before a brace or bar makes it a plain character: \{, \}, \|.
    """
    text = _without_comments(text)
    result: list[str] = []
    # skipped is the depth inside alternatives that are not taken; 0 where text is kept.
    depth = skipped = 0
    for piece in re.findall(r"\\.|.", text, re.DOTALL):
        if piece == "{":
            depth += 1
            skipped += bool(skipped)
        elif piece == "}" and depth:
            depth -= 1
            skipped -= bool(skipped)
        elif piece == "|" and depth:
            skipped = skipped or 1
        elif not skipped:
            result.append(piece[1:] if piece in ("\\{", "\\}", "\\|") else piece)
    return "".join(result)


def _without_comments(text: str) -> str:
    # After the last "*/" no comment can end. Hide each "/*" there, or the search for its end would start again and
    # again, which takes quadratic time.
    last = max(text.rfind("*/"), 0)
    hidden = text[:last] + text[last:].replace("/*", "/\0*")
    return _COMMENT.sub("", hidden).replace("/\0*", "/*")
