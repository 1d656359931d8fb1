"""Nodes of other packs, and which of our nodes does their work: data for error messages.

`equivalents.csv` has one row for each node that saved workflows often contain: its id, our node and its setting in
words, or, where nothing here does its work, what it makes. Other packs are never imported or run.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

EDITOR_NODES: Mapping[str, str] = {
    "Anything Everywhere": "connect the inputs that it feeds with plain links",
}
"""Nodes that only act in the editor, and what to do instead."""


class Equivalent(NamedTuple):
    """Our replacement of a node. ours: our node, empty if there is none; `without` then names what is lost."""

    ours: str
    setting: str
    without: str


@cache
def equivalents() -> Mapping[str, Equivalent]:
    """Return the table by node id."""
    text = Path(__file__).with_name("equivalents.csv").read_text("utf-8")
    _, *rows = csv.reader(text.splitlines())
    return {node: Equivalent(*values) for node, *values in rows}
