"""Key tables of T2I-Adapters: the original release's running index, and diffusers' levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .keymap import Pairs, Rule, nest

LEVELS = 4
"""Levels of every released adapter; the original keys do not show where one ends."""
CONVOLUTIONS: Pairs = (("block1", "conv1"), ("block2", "conv2"))

AdapterRules = Callable[[Iterable[str]], tuple[Rule, ...]]
"""Makes a table from the keys of a file, without their prefix."""


def original_rules(keys: Iterable[str]) -> tuple[Rule, ...]:
    """`body` counts the blocks of all levels."""
    names = set(keys)
    count = sum(f"body.{n}.block1.weight" in names for n in range(64))
    per_level = max(1, count // LEVELS)
    rules = (Rule("conv_in.{p}", "conv_in.{p}"),)
    for n in range(count):
        level, place = divmod(n, per_level)
        rules += nest(f"body.{n}", f"levels.{level}.res.{place}", CONVOLUTIONS)
        if place == 0:  # the first block of a level halves the picture and changes the width
            rules += nest(f"body.{n}", f"levels.{level}", (("in_conv", "widen"), ("down_opt.op", "down.conv")))
    return rules


def _rules_by_level(inner: str) -> AdapterRules:
    """A table for layouts with a level per `body.{i}` and its blocks below `inner`."""
    rules = (
        Rule("conv_in.{p}", "conv_in.{p}"),
        *nest("body.{i}", "levels.{i}", (("in_conv", "widen"), ("out_conv", "out"))),
        *nest(f"body.{{i}}.{inner}.{{j}}", "levels.{i}.res.{j}", CONVOLUTIONS),
    )
    return lambda keys: rules


ADAPTER_RULES: Mapping[tuple[str, str], AdapterRules] = {
    ("t2i-adapter", "original"): original_rules,
    ("t2i-adapter", "diffusers"): _rules_by_level("resnets"),
    ("t2i-adapter-light", "original"): _rules_by_level("body"),
    ("t2i-adapter-light", "diffusers"): _rules_by_level("resnets"),
}
"""By kind and layout of the file."""
