"""Renaming of weights by tables of rules that work in both directions.

A `Rule` pairs two patterns: `theirs` in the layout of a file, `ours` in this package's names. A pattern is a dotted
name whose segments are literal, or `{p}` (`weight` or `bias`), `{rest}` (all remaining segments, at the end only), or
any other `{name}` (an index). A literal segment is preferred to an index.

    Rule("input_blocks.{n}.0.op.{p}", "encoder.blocks.{n}.conv.{p}")
    input_blocks.3.0.op.weight  <->  encoder.blocks.3.conv.weight
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

PARAMETERS = frozenset({"weight", "bias"})


@dataclass(frozen=True)
class Rule:
    """One pair of patterns.

    linear: the file has the (out, in) matrix of a linear layer where this package has a 1x1 convolution.
    alias: an older spelling, which is read and never written.
    """

    theirs: str
    ours: str
    linear: bool = False
    alias: bool = False


Pairs = tuple[tuple[str, str], ...]
"""Names of a module's parts: (theirs, ours)."""


def nest(theirs: str, ours: str, pairs: Pairs, *, linear: bool = False, alias: bool = False) -> tuple[Rule, ...]:
    """Rules for the weights and biases of parts that lie under one name on each side."""
    return tuple(Rule(f"{theirs}.{a}.{{p}}", f"{ours}.{b}.{{p}}", linear, alias) for a, b in pairs)


def add_prefix(rules: Iterable[Rule], theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The same rules with a prefix (including its dot) on each side."""
    return tuple(replace(rule, theirs=theirs + rule.theirs, ours=ours + rule.ours) for rule in rules)


_Node = dict[str, Any]
"""The nodes below by their segment; at "" the rule of the pattern that ends here."""


def _edge(segment: str) -> str:
    if not segment.startswith("{"):
        return segment
    return segment if segment in ("{p}", "{rest}") else "{#}"


class PatternTree:
    """Patterns of one side of the rules, looked up by key.

    The lookup walks a tree of segments, so that its cost does not grow with the number of rules.
    """

    def __init__(self, rules: Iterable[tuple[str, Rule]]) -> None:
        self._root: _Node = {}
        for pattern, rule in rules:
            node = self._root
            for segment in pattern.split("."):
                node = node.setdefault(_edge(segment), {})
            if node.setdefault("", rule) != rule:
                raise ValueError(f"two rules for one pattern: {node['']} and {rule}")

    def find(self, key: str) -> tuple[Rule, list[str]] | None:
        """The rule whose pattern matches `key`, and the text of its variable segments in order."""
        return _walk(self._root, key.split("."), 0, [])


def _walk(node: _Node, segments: list[str], at: int, captured: list[str]) -> tuple[Rule, list[str]] | None:
    if at == len(segments):
        return (node[""], captured) if "" in node else None
    segment = segments[at]
    edge = "{#}" if segment.isdecimal() else "{p}" if segment in PARAMETERS else None
    # Try the literal first; when it leads nowhere, the index gets its chance.
    for name, taken in ((segment, captured), (edge, [*captured, segment])):
        child = node.get(name) if name else None
        if child and (found := _walk(child, segments, at + 1, taken)):
            return found
    rest = node.get("{rest}")
    return (rest[""], [*captured, ".".join(segments[at:])]) if rest else None


def _variables(pattern: str) -> list[str]:
    return [segment[1:-1] for segment in pattern.split(".") if segment.startswith("{")]


def _fill(source: str, target: str, captured: list[str]) -> str:
    values = dict(zip(_variables(source), captured, strict=True))
    return ".".join(values[segment[1:-1]] if segment.startswith("{") else segment for segment in target.split("."))


@dataclass(frozen=True)
class Renamed:
    """Result of renaming.

    pairs: our name for each key of the file. unknown: keys that match no rule. clashes: pairs of keys that stand for
    the same weight, such as an old and a new spelling of it.
    """

    pairs: Mapping[str, str]
    unknown: tuple[str, ...]
    clashes: tuple[tuple[str, str], ...]


class KeyMap:
    """A table of rules, usable in both directions."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._theirs = PatternTree((rule.theirs, rule) for rule in self.rules)
        self._ours = PatternTree((rule.ours, rule) for rule in self.rules if not rule.alias)

    def to_ours(self, key: str) -> str | None:
        """Our name for a key of the file; None when no rule matches."""
        found = self._theirs.find(key)
        return None if found is None else _fill(found[0].theirs, found[0].ours, found[1])

    def to_theirs(self, key: str) -> str | None:
        """The name in the file for a name of ours; None when no rule matches."""
        found = self._ours.find(key)
        return None if found is None else _fill(found[0].ours, found[0].theirs, found[1])

    def is_linear(self, key: str) -> bool:
        """Whether the file has this weight of ours, a 1x1 convolution, as a matrix."""
        found = self._ours.find(key)
        return found is not None and found[0].linear

    def rename(self, keys: Iterable[str]) -> Renamed:
        """Rename the keys of a file; each key ends in exactly one of the three results."""
        pairs: dict[str, str] = {}
        owner: dict[str, str] = {}
        unknown: list[str] = []
        clashes: list[tuple[str, str]] = []
        for key in keys:
            ours = self.to_ours(key)
            if ours is None:
                unknown.append(key)
            elif ours in owner:
                # Which of the two to load is a guess, so that the caller refuses both.
                clashes.append((owner[ours], key))
            else:
                owner[ours] = key
                pairs[key] = ours
        return Renamed(pairs, tuple(unknown), tuple(clashes))


def matcher(patterns: Iterable[str]) -> PatternTree:
    """A tree that only tells whether a key matches one of the patterns."""
    return PatternTree((pattern, Rule(pattern, pattern)) for pattern in patterns)
