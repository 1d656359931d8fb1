"""Renaming of weights as reversible data.

A `Rule` pairs two patterns, one in a foreign layout and one in this package's names. Patterns are
dotted names whose segments are literal or one of: `{p}` (`weight` or `bias`), `{rest}` (all remaining
segments, last only), or any other `{name}` (an index). A literal segment wins over an index.
Matching walks a tree of segments, so its cost does not grow with the number of rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

PARAMETERS = frozenset({"weight", "bias"})


@dataclass(frozen=True)
class Rule:
    """One correspondence between a foreign key pattern and this package's.

    `linear`: the foreign layout keeps a linear layer's (out, in) matrix where this package has a 1x1
    convolution. `alias`: an older foreign spelling, which is read and never written.
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


@dataclass
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    rule: Rule | None = None


def _edge(segment: str) -> str:
    if not segment.startswith("{"):
        return segment
    return segment if segment in ("{p}", "{rest}") else "{#}"


class PatternTree:
    """Patterns of `Rule.theirs` (or `Rule.ours`), looked up by key."""

    def __init__(self, rules: Iterable[tuple[str, Rule]]) -> None:
        self._root = _Node()
        for pattern, rule in rules:
            node = self._root
            for segment in pattern.split("."):
                node = node.children.setdefault(_edge(segment), _Node())
            if node.rule is not None and node.rule != rule:
                raise ValueError(f"two rules for one pattern: {node.rule} and {rule}")
            node.rule = rule

    def find(self, key: str) -> tuple[Rule, list[str]] | None:
        """The rule whose pattern matches `key`, and the text of its variable segments in order."""
        return _walk(self._root, key.split("."), 0, [])


def _walk(node: _Node, segments: list[str], at: int, captured: list[str]) -> tuple[Rule, list[str]] | None:
    if at == len(segments):
        return None if node.rule is None else (node.rule, captured)
    segment = segments[at]
    if child := node.children.get(segment):
        found = _walk(child, segments, at + 1, captured)
        if found:
            return found
    edge = "{#}" if segment.isdecimal() else "{p}" if segment in PARAMETERS else None
    if edge and (child := node.children.get(edge)):
        found = _walk(child, segments, at + 1, [*captured, segment])
        if found:
            return found
    if (child := node.children.get("{rest}")) and child.rule is not None:
        return child.rule, [*captured, ".".join(segments[at:])]
    return None


def _variables(pattern: str) -> list[str]:
    return [segment[1:-1] for segment in pattern.split(".") if segment.startswith("{")]


def _fill(source: str, target: str, captured: list[str]) -> str:
    values = dict(zip(_variables(source), captured, strict=True))
    return ".".join(values[segment[1:-1]] if segment.startswith("{") else segment for segment in target.split("."))


@dataclass(frozen=True)
class Renamed:
    """Result of renaming: `pairs` maps foreign keys to ours; `unknown` matched no rule."""

    pairs: Mapping[str, str]
    unknown: tuple[str, ...]
    clashes: tuple[tuple[str, str], ...]
    """Foreign keys that stand for the same weight, such as an old and a new spelling of it."""


class KeyMap:
    """A table of rules, usable in both directions."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._theirs = PatternTree((rule.theirs, rule) for rule in self.rules)
        self._ours = PatternTree((rule.ours, rule) for rule in self.rules if not rule.alias)

    def to_ours(self, key: str) -> str | None:
        """This package's name for a foreign key; None when no rule matches."""
        found = self._theirs.find(key)
        return None if found is None else _fill(found[0].theirs, found[0].ours, found[1])

    def to_theirs(self, key: str) -> str | None:
        """The foreign name for a key of ours; None when no rule matches."""
        found = self._ours.find(key)
        return None if found is None else _fill(found[0].ours, found[0].theirs, found[1])

    def is_linear(self, key: str) -> bool:
        """Whether the foreign layout keeps this weight of ours, a 1x1 convolution, as a matrix."""
        found = self._ours.find(key)
        return found is not None and found[0].linear

    def rename(self, keys: Iterable[str]) -> Renamed:
        """Rename foreign keys; nothing is lost: each key ends in exactly one of the three results."""
        pairs: dict[str, str] = {}
        owner: dict[str, str] = {}
        unknown: list[str] = []
        clashes: list[tuple[str, str]] = []
        for key in keys:
            ours = self.to_ours(key)
            if ours is None:
                unknown.append(key)
            elif ours in owner:
                clashes.append((owner[ours], key))
            else:
                owner[ours] = key
                pairs[key] = ours
        return Renamed(pairs, tuple(unknown), tuple(clashes))


def matcher(patterns: Iterable[str]) -> PatternTree:
    """A tree that only tells whether a key matches one of the patterns."""
    return PatternTree((pattern, Rule(pattern, pattern)) for pattern in patterns)
