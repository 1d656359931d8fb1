"""Nodes that send a value to all inputs that want it, without a link in the file (Use Everywhere).

The pack notes the links that it made in the file's `extra.ue_links`; these are taken. Files of early versions lack
them, so its rules are applied: an input without a source takes a value of its own type, from the node of the highest
rank whose patterns fit the titles. Two nodes of the same rank send nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .checks import as_dict, as_id, as_index, as_list, fail
from .drawing import BYPASSED, MUTED, Drawing, DrawnNode

SENDERS = frozenset({"Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?", "Prompts Everywhere"})
"""Types of nodes that only send. "Seed Everywhere" sends too, and has a value of its own."""
_SEED = "Seed Everywhere"
_RANKS = {"Anything Everywhere?": 10, "Prompts Everywhere": 5, _SEED: 5, "Anything Everywhere": 2}
_PROMPTS = (re.compile("^prompt|^positive"), re.compile("neg"))
_MAX_PATTERN, _MAX_TITLE, _MAX_REPEATS = 200, 100, 3

Target = tuple[str, int]
"""Node and number of an input, or of an output."""


@dataclass(frozen=True)
class _Sender:
    """What a node sends: an output, its type, and to which titles of nodes and names of inputs."""

    output: Target
    type: str
    rank: float
    title: re.Pattern[str] | None = None
    input: re.Pattern[str] | None = None

    def fits(self, node: DrawnNode, name: str, kind: str) -> bool:
        title = (node.title or node.search_name or node.type)[:_MAX_TITLE]
        return (
            self.type == kind
            and self.output[0] != node.id
            and (self.title is None or self.title.search(title) is not None)
            and (self.input is None or self.input.search(name[:_MAX_TITLE]) is not None)
        )


def broadcast_links(workflow: Mapping[str, Any], drawing: Drawing, name: str) -> dict[Target, Target]:
    """Return (node, input) -> (node, output) for the root canvas. Raises WorkflowError for a list that cannot be read.

    name: of the file, for messages.
    """
    if not any(node.type in SENDERS or node.type == _SEED for node in drawing.nodes.values()):
        return {}
    extra = workflow.get("extra")
    stored = extra.get("ue_links") if isinstance(extra, dict) else None
    if stored is not None:
        return dict(_stored(as_list(stored, f"{name}, extra.ue_links"), f"{name}, extra.ue_links"))
    senders = [sender for node in drawing.nodes.values() for sender in _senders(drawing, node, name)]
    found: dict[Target, Target] = {}
    for node in drawing.nodes.values():
        if node.mode in (MUTED, BYPASSED) or node.type in SENDERS:
            continue
        for index, slot in enumerate(node.inputs):
            fitting = [sender for sender in senders if sender.fits(node, slot.name, slot.type)]
            best = max((sender.rank for sender in fitting), default=0)
            first = [sender for sender in fitting if sender.rank == best]
            if len(first) == 1:
                found[node.id, index] = first[0].output
    return found


def _stored(entries: list[Any], where: str) -> Iterator[tuple[Target, Target]]:
    for entry in entries:
        link = as_dict(entry, where)
        target, output = ((as_id(link.get(end), where), link.get(f"{end}_slot")) for end in ("downstream", "upstream"))
        # -1 stands for an input that the pack did not find.
        if target[1] != -1:
            yield (target[0], _slot(target[1], where)), (output[0], _slot(output[1], where))


def _slot(value: Any, where: str) -> int:
    # Inside of group nodes numbers are written as text.
    is_text = isinstance(value, str) and value.isdecimal() and len(value) < 5
    return as_index(int(value) if is_text else value, where)


def _senders(drawing: Drawing, node: DrawnNode, name: str) -> Iterator[_Sender]:
    if node.mode in (MUTED, BYPASSED):
        return
    if node.type == _SEED:
        yield _Sender((node.id, 0), "INT", _RANKS[_SEED], input=re.compile("seed"))
    if node.type not in SENDERS:
        return
    for number, slot in enumerate(node.inputs[: 3 if node.type.endswith("3") else 2]):
        link = None if slot.link is None else drawing.links.get(slot.link)
        origin = None if link is None else drawing.nodes.get(link.origin)
        if link is None or origin is None:
            continue
        kind = origin.outputs[link.slot] if link.slot < len(origin.outputs) else slot.type
        title, given = None, None
        if node.type == "Prompts Everywhere":
            given = _PROMPTS[number]
        elif node.type == "Anything Everywhere?":
            patterns = [str(text) for text in node.saved or ()] if isinstance(node.saved, list) else []
            title, given = (_pattern(text, node, name) for text in (*patterns, ".*", ".*")[:2])
        yield _Sender((link.origin, link.slot), kind, _RANKS.get(node.type, 0), title, given)


def _pattern(text: str, node: DrawnNode, name: str) -> re.Pattern[str]:
    """Return a pattern of a file. Raises WorkflowError for one that is none, or may take very long."""
    # A repeated group can take exponential time, and each further repeat a power of the length.
    repeats = len(re.findall(r"[*+{?]", text))
    try:
        if len(text) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{]", text):
            raise ValueError
        return re.compile(text)
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        fault = f"has a pattern in {node.label} that cannot be read here"
        raise fail(name, fault, "link the inputs directly") from error
