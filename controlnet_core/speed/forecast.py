"""Values that change steadily between evaluations: computed in some, continued along a line in the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

Values: TypeAlias = "list[Any]"
"""Tensors; None stands for nothing."""
DAMPING = 0.85
"""How far along the line to go: values that settle are overshot by a straight line.

Found on other scenes than those of the published errors, see benchmarks/NOTES.md."""


@dataclass(eq=False)
class Forecast:
    """Computes at the first two evaluations and at every k-th after them.

    The line goes through the last two computed values, with the number of the evaluation as its axis (first order of
    Liu et al. 2025, "TaylorSeer"). It is damped, and followed no further than those two are apart.
    gap: after more evaluations than this without a call (a net's window, an interval without guidance) it starts anew,
    since earlier values are no neighbours.
    """

    every: int
    gap: int = 1
    past: list[tuple[int, Values]] = field(default_factory=list)
    last_call: int = 0

    def is_due(self, now: int, limit: float = math.inf) -> bool:
        """Whether evaluation number `now` has to compute. limit: maximum distance of two computed evaluations."""
        if now - self.last_call > self.gap:
            self.past = []
        return len(self.past) < 2 or now - self.past[-1][0] >= min(self.every, limit)

    def next(self, now: int, compute: Callable[[], Values] | None) -> Iterator[Any]:
        """The values of evaluation number `now`, one by one: computed, or continued if `compute` is None."""
        self.last_call = now
        if compute is not None:
            # Let go of the older values before new ones are made: never more than two are held.
            self.past = self.past[-1:]
            self.past = [*self.past, (now, compute())]
        return self._values(now)

    def _values(self, now: int) -> Iterator[Any]:
        last, values = self.past[-1]
        if last == now or len(self.past) < 2:
            yield from values
            return
        first, before = self.past[0]
        # No further beyond the last value than the two known ones are apart.
        along = 1.0 + DAMPING * min(1.0, (now - last) / (last - first))
        for a, b in zip(values, before, strict=True):
            yield None if a is None else torch.lerp(b, a, along)
