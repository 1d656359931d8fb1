"""Fills the placeholders in the prefix of a file name, as ComfyUI and its editor do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

_DATE = re.compile("d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|yyyy|yy")
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
_CLOCK = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}


def expand_prefix(prefix: str, width: int, height: int, prompt: Any = None) -> str:
    """The prefix with %width%, %height%, %year% .., %date:yyyy-MM-dd% and %Node.input% replaced by their values.

    prompt: the workflow in API form. A placeholder that is not known stays as it is.
    """
    now = time.localtime()
    plain = {"width": str(width), "height": str(height)}
    plain.update({name: time.strftime(code, now) for name, code in _CLOCK.items()})

    def value(match: re.Match[str]) -> str:
        token = match[1]
        if token in plain:
            return plain[token]
        if token.startswith("date"):
            return _format_date(token.partition(":")[2] or "yyyyMMddhhmmss", now)
        found = _node_value(token, prompt)
        # A value may hold any text, such as a prompt: without this it could name another folder.
        return match[0] if found is None else _UNSAFE.sub("_", found)

    return re.sub(r"%([^%]+)%", value, prefix)


def fill_as_editor(prefix: str, find: Callable[[str, str], Any], *, dates: bool = True) -> str:
    """The prefix with %Node.input% and, if wanted, %date:...% replaced, as the editor does before it sends a prompt.

    find(node, input): the value of an input, None if there is none. A placeholder that is not known stays as it is.
    """
    now = time.localtime()

    def value(match: re.Match[str]) -> str:
        node, dot, name = match[1].partition(".")
        if match[1].startswith("date:"):
            return _format_date(match[1][5:], now) if dates else match[0]
        # As in the editor, a name with more than one dot is not looked for.
        found = find(node, name) if dot and "." not in name else None
        return match[0] if found is None else _UNSAFE.sub("_", str(found))

    return re.sub(r"%([^%]+)%", value, prefix)


def _format_date(form: str, now: time.struct_time) -> str:
    """A date in the editor's format, in which one letter is a number without leading zero."""
    numbers = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text.startswith("y"):
            return str(now.tm_year)[-len(text) :]
        return f"{numbers[text[0]]:0{len(text)}}"

    return _UNSAFE.sub("_", _DATE.sub(part, form))


def _node_value(token: str, prompt: Any) -> str | None:
    """The value of "Title.input" or "Class.input" in an API-form prompt, if there is one."""
    # The editor writes the title of a node before the dot, scripts write its class.
    title, dot, name = token.rpartition(".")
    if not dot or not isinstance(prompt, Mapping):
        return None
    for node in prompt.values():
        names = (node.get("class_type"), (node.get("_meta") or {}).get("title"))
        value = (node.get("inputs") or {}).get(name)
        if title in names and isinstance(value, (str, int, float)):
            return str(value)
    return None
