"""Checks for values from workflow files. Each returns the value, or raises WorkflowError with the place in the file."""

from __future__ import annotations

from typing import Any

from ..controlnet_core.errors import WorkflowError

# Limits on a workflow file. The largest published workflows have a few hundred nodes with a few dozen inputs each.
MAX_NODES = 5_000
MAX_INPUTS = 500
"""Inputs of one node."""
_TYPE_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "nothing"}
_SAVE_AGAIN = "save the workflow again in the editor"


def fail(where: str, what: str, remedy: str) -> WorkflowError:
    """Return the error for a file. where: place in the file; what: the fault there; remedy: what to do."""
    return WorkflowError(f"{where} {what}: {remedy}")


def _wrong_type(where: str, value: Any, expected: str) -> WorkflowError:
    return fail(where, f"is {_TYPE_NAMES.get(type(value), 'a number')}, expected {expected}", _SAVE_AGAIN)


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong_type(where, value, _TYPE_NAMES[kind])
    return value


def as_dict(value: Any, where: str) -> dict[str, Any]:
    """Return `value` if it is a JSON object."""
    return _typed(value, dict, where)


def as_list(value: Any, where: str) -> list[Any]:
    """Return `value` if it is a list."""
    return _typed(value, list, where)


def as_text(value: Any, where: str, *, may_be_empty: bool = False) -> str:
    """Return `value` if it is a text."""
    if value == "" and not may_be_empty:
        raise fail(where, "is empty, expected a text", _SAVE_AGAIN)
    return _typed(value, str, where)


def as_index(value: Any, where: str) -> int:
    """Return `value` as an int of at least 0. The editor writes some numbers as text or as 1.0."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
    if 0 <= number < 2**31 and number == int(number):
        return int(number)
    raise fail(where, f"is {str(value)[:40]}, expected a number from 0", _SAVE_AGAIN)


def as_id(value: Any, where: str) -> str:
    """Return a node id as text. The editor writes numbers, and texts such as "12:3"."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise _wrong_type(where, value, "a node id")
    return str(value)
