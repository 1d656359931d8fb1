"""Run a ControlNet in some evaluations only and continue its residuals in between (option `reuse_every`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ..control.bound_unit import BoundUnit, NetInputs
from .clock import EvaluationClock
from .context import RunContext
from .forecast import Values


class ReusedResiduals:
    """Residuals of one net before their weights, so that strength and schedule still act in every evaluation."""

    def __init__(self, clock: EvaluationClock) -> None:
        self.clock, self.forecast = clock, clock.forecast_nets()
        self.last_input: Tensor | None = None

    def at(self, x: Tensor, may_run: bool, compute: Callable[[], Values]) -> Iterator[Tensor | None]:
        """The residuals of the current evaluation, one by one.

        x: what the net reads, scaled. may_run: False if nets are to be left out of this evaluation.
        """
        clock = self.clock
        counted = self.forecast.is_due(clock.now, clock.limit)
        due = not self.forecast.past or (may_run and self._is_due(x, counted))
        residuals = self.forecast.next(clock.now, compute if due else None)
        if due:
            self.last_input = x
        return residuals

    def _is_due(self, x: Tensor, counted: bool) -> bool:
        tolerance = self.clock.tolerance
        if self.last_input is None or len(self.forecast.past) < 2:
            return True
        if x.is_meta:  # has no values, see `memory_estimate`
            return counted
        if tolerance > 0.0 and float((x - self.last_input).norm() / self.last_input.norm()) > tolerance:
            return True
        by_tolerance_alone = tolerance > 0.0 and self.forecast.every == 1
        return counted and not by_tolerance_alone


class NetReuse:
    """Surrounds `ControlledUNet.residuals`."""

    def __init__(self, inner: Any, context: RunContext) -> None:
        self.inner, self.context = inner, context
        # Keyed by the units that share a run: the run changes when any net enters or leaves its window.
        self.known: dict[tuple[BoundUnit, ...], ReusedResiduals] = {}

    def __call__(self, net: NetInputs, rows: Tensor, may_run: bool) -> Iterator[Tensor | None]:
        """The residuals of a net, computed or continued."""
        if net.net.entry == "exchange":  # the decoder reads what the net has made in this evaluation
            return self.inner(net, rows, may_run)
        reused = self.known.setdefault(net.owners, ReusedResiduals(self.context.clock))
        return reused.at(rows, may_run, lambda: list(self.inner(net, rows, True)))


def wrap(denoiser: Any, context: RunContext) -> None:
    """Reuse the residuals of all nets."""
    denoiser.unet.residuals = NetReuse(denoiser.unet.residuals, context)
