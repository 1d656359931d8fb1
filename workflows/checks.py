"""Small checks for data from files: each returns what it was given, or says what is wrong and where."""

from __future__ import annotations

from typing import Any

from ..controlnet_core.errors import WorkflowError

MAX_NODES = 5_000
_NAMES = {
    "dict": "an object",
    "list": "a list",
    "str": "a text",
    "bool": "a truth value",
    "NoneType": "nothing",
}


def fail(where: str, what: str, remedy: str) -> WorkflowError:
    """The error for a file: where it is wrong, what it has there, what to do."""
    return WorkflowError(f"{where} {what}: {remedy}")


def _wrong(where: str, value: Any, wanted: str) -> WorkflowError:
    got = _NAMES.get(type(value).__name__, "a number")
    return fail(where, f"is {got}, expected {wanted}", "save the workflow again in the editor")


def as_dict(value: Any, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return value


def as_list(value: Any, where: str, *, length: int | None = None) -> list[Any]:
    """`value` if it is a list (of the given length)."""
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    if length is not None and len(value) != length:
        raise fail(where, f"has {len(value)} entries, expected {length}", "save it again in the editor")
    return value


def as_text(value: Any, where: str, *, may_be_empty: bool = False) -> str:
    """`value` if it is a text."""
    if value == "" and not may_be_empty:
        raise fail(where, "is empty, expected a text", "save the workflow again in the editor")
    if not isinstance(value, str):
        raise _wrong(where, value, "a text")
    return value


def as_index(value: Any, where: str) -> int:
    """`value` as an int of at least 0; the editor writes some numbers as text or as 1.0."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
    if 0 <= number < 2**31 and number == int(number):
        return int(number)
    raise fail(where, f"is {str(value)[:40]}, expected a number from 0", "save it again in the editor")


def as_id(value: Any, where: str) -> str:
    """A node id as text; the editor writes numbers, and texts such as "12:3"."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise _wrong(where, value, "a node id")
    return str(value)
