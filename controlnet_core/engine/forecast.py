"""Tensors that change steadily from one evaluation to the next, computed now and then and continued in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

Values: TypeAlias = "list[Any]"
"""Tensors, or None for what is nothing."""
DAMPING = 0.85
"""How much of the way along the line is taken: what settles is overshot by a straight line.

Found on other scenes than those of the published errors: benchmarks/NOTES.md."""


@dataclass(eq=False)
class Forecast:
    """Computes at the first two evaluations and at every k-th from there; continues along a line between them.

    The line goes through the last two times the values were computed, with the number of the evaluation as its
    axis (first order of Liu et al. 2025, "TaylorSeer"), damped, and is followed no further than those two are apart.
    What was measured against holding the last values, and against a second order: benchmarks/NOTES.md.

    `now` is the number of the evaluation in its run. Who was not asked for longer than `gap` evaluations (a net's
    window, an interval without guidance) begins anew: what was before is no neighbour.
    """

    every: int
    gap: int = 1
    past: list[tuple[int, Values]] = field(default_factory=list)
    met: int = 0

    def is_due(self, now: int, limit: float = math.inf) -> bool:
        """Whether the values of this evaluation are to be computed. limit: not more seldom than so."""
        if now - self.met > self.gap:
            self.past = []
        return len(self.past) < 2 or now - self.past[-1][0] >= min(self.every, limit)

    def next(self, now: int, compute: Callable[[], Values] | None) -> Iterator[Any]:
        """The values of this evaluation, one by one: computed, or continued where `compute` is None.

        What is continued is made when it is asked for. The older of the last two times is let go before new values
        are computed, so that there are never more than two.
        """
        self.met = now
        if compute is not None:
            self.past = self.past[-1:]
            self.past = [*self.past, (now, compute())]
        return self._values(now)

    def _values(self, now: int) -> Iterator[Any]:
        last, values = self.past[-1]
        if last == now or len(self.past) < 2:
            yield from values
            return
        first, before = self.past[0]
        along = 1.0 + DAMPING * min(1.0, (now - last) / (last - first))
        for a, b in zip(values, before, strict=True):
            yield None if a is None else torch.lerp(b, a, along)
