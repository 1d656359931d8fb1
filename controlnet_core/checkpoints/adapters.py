"""Key tables of T2I-Adapters: the original release's running index, and diffusers' levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from .keymap import Rule

LEVELS = 4
"""Levels of every released adapter; the original keys do not tell where one ends."""

AdapterRules = Callable[[Iterable[str]], tuple[Rule, ...]]
"""Makes a table from the keys, without their prefix."""


def original_rules(keys: Iterable[str]) -> tuple[Rule, ...]:
    """`body` runs through all levels; the first block of a level halves and widens."""
    names = set(keys)
    count = sum(f"body.{n}.block1.weight" in names for n in range(64))
    per_level = max(1, count // LEVELS)
    rules = [Rule("conv_in.{p}", "conv_in.{p}")]
    for n in range(count):
        level, place = divmod(n, per_level)
        theirs, ours = f"body.{n}", f"levels.{level}"
        rules += [
            Rule(f"{theirs}.block1.{{p}}", f"{ours}.res.{place}.conv1.{{p}}"),
            Rule(f"{theirs}.block2.{{p}}", f"{ours}.res.{place}.conv2.{{p}}"),
        ]
        if place == 0:
            rules += [
                Rule(f"{theirs}.in_conv.{{p}}", f"{ours}.widen.{{p}}"),
                Rule(f"{theirs}.down_opt.op.{{p}}", f"{ours}.down.conv.{{p}}"),
            ]
    return tuple(rules)


def _by_level(inner: str) -> AdapterRules:
    """A table for layouts with a level per `body.{i}` and its blocks below `inner`."""

    def rules(keys: Iterable[str]) -> tuple[Rule, ...]:
        return (
            Rule("conv_in.{p}", "conv_in.{p}"),
            Rule("body.{i}.in_conv.{p}", "levels.{i}.widen.{p}"),
            Rule(f"body.{{i}}.{inner}.{{j}}.block1.{{p}}", "levels.{i}.res.{j}.conv1.{p}"),
            Rule(f"body.{{i}}.{inner}.{{j}}.block2.{{p}}", "levels.{i}.res.{j}.conv2.{p}"),
            Rule("body.{i}.out_conv.{p}", "levels.{i}.out.{p}"),
        )

    return rules


ADAPTER_RULES: Mapping[tuple[str, str], AdapterRules] = MappingProxyType(
    {
        ("t2i-adapter", "original"): original_rules,
        ("t2i-adapter", "diffusers"): _by_level("resnets"),
        ("t2i-adapter-light", "original"): _by_level("body"),
        ("t2i-adapter-light", "diffusers"): _by_level("resnets"),
    }
)
"""By kind and layout of the file."""
