"""What control objects hand to the model: {"input": [...], "middle": [...], "output": [...]} of residuals."""

from __future__ import annotations

from typing import Any, TypeAlias

Residuals: TypeAlias = dict[str, list[Any]]
"""Lists of (B, C, h, w) tensors or None; "output" belongs to the skips, first to last."""


def add_residuals(own: Residuals, previous: Residuals | None) -> Residuals:
    """The sum of both, by position; out of place, since a chain's tensors may be shared."""
    if previous is None:
        return own
    total: Residuals = {}
    for key in ("input", "middle", "output"):
        mine, theirs = own.get(key, []), previous.get(key, [])
        length = max(len(mine), len(theirs))
        padded = ([*side, *[None] * (length - len(side))] for side in (theirs, mine))
        total[key] = [_sum(a, b) for a, b in zip(*padded, strict=True)]
    return total


def _sum(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return a + b
