"""The clock of a run's evaluations: which one this is, and what may be skipped in it (`run_options.Shortcuts`).

Skipped values are continued along a line, see `forecast`. The first two evaluations define the line and are always
computed, and the interval grows in stages (`STAGES`): an early error becomes another image, a late one is a detail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..run_options import EXACT, Shortcuts
from .forecast import Forecast

STAGES = ((0.3, 2), (0.5, 3))
"""(position on the timestep axis, maximum number of evaluations between two computed ones until there)."""


class EvaluationClock:
    """Counts the evaluations of a run.

    percent_to_sigma: position on the timestep axis -> sigma; None for a clock without stages and guidance window.
    limit: in this evaluation, the maximum number of evaluations between two computed ones.
    """

    def __init__(self, shortcuts: Shortcuts = EXACT, percent_to_sigma: Callable[[float], Any] | None = None) -> None:
        self.shortcuts, self.percent_to_sigma = shortcuts, percent_to_sigma
        self.now, self.limit = 0, math.inf
        self.ends: tuple[float, ...] = ()
        self.guided = math.inf, -math.inf
        if percent_to_sigma is not None:
            self.ends = tuple(float(percent_to_sigma(end)) for end, _ in STAGES)
            first, last = (percent_to_sigma(p) for p in (shortcuts.guidance_start, shortcuts.guidance_end))
            self.guided = float(first), float(last)

    @property
    def key(self) -> Shortcuts:
        """Equal for clocks that skip the same."""
        return self.shortcuts

    def restarted(self) -> EvaluationClock:
        """A clock for another part of the batch, which counts its own evaluations."""
        return EvaluationClock(self.shortcuts, self.percent_to_sigma)

    def begin(self, sigma: float) -> None:
        """An evaluation at this noise level begins."""
        self.now += 1
        limits = (limit for end, (_, limit) in zip(self.ends, STAGES, strict=False) if sigma > end)
        # Sigma falls during a run: the first stage whose end lies below it is the present one.
        self.limit = next(limits, math.inf) - self.shortcuts.careful

    def guides(self, sigma: float) -> bool:
        """Whether the negative half counts at this noise level."""
        first, last = self.guided
        return last <= sigma <= first

    @property
    def tolerance(self) -> float:
        """The change of the latent (relative L2 norm) after which a net runs again; 0 for none."""
        return self.shortcuts.reuse_tolerance

    @property
    def limits_guidance(self) -> bool:
        """Whether the negative half is skipped anywhere."""
        return self.shortcuts.limits_guidance

    @property
    def skips_nets(self) -> bool:
        """Whether a net inside its window is skipped in some evaluations."""
        return self.shortcuts.continues_nets

    @property
    def steady_after(self) -> int:
        """Evaluations after which memory does not grow: 1 and 2 are computed, 3 is continued, 4 may be computed."""
        return 4 if self.shortcuts.continues_nets or self.shortcuts.shortens_unet else 1

    def forecast_nets(self) -> Forecast:
        """Continues the residuals of a net. With encoder_every, nets are called less often; that does not reset it."""
        return Forecast(self.shortcuts.reuse_every, gap=self.shortcuts.encoder_every)

    def forecast_encoder(self) -> Forecast:
        """Continues what the encoder and all control give."""
        return Forecast(self.shortcuts.encoder_every)

    def forecast_lower_levels(self) -> Forecast:
        """Continues what the lower levels pass to the top level."""
        return Forecast(self.shortcuts.deep_every)
