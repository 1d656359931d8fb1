"""At which steps does a picture depend on a ControlNet? The Fisher information about its strength at each step.

Let s be a factor of a unit's strength (1 if unchanged), and x0(x, s) the prediction of the finished latent from the
noisy latent x at noise level sigma. Take the true latent, given x, as a Gaussian around the prediction whose variance
is the prediction's mean squared error V(sigma) per element. A step to sigma' moves x by a share w of the way to x0:

    x' = x + w (x0 - x) + u n,    n ~ N(0, 1)

so x' is a Gaussian whose mean depends on s, with the variance u^2 + w^2 V (Bao et al. 2022, "Analytic-DPM", the optimal
variance of a reverse step). The Fisher information about the mean of a Gaussian gives

    F = w^2 || d x0 / d s ||^2 / (u^2 + w^2 V)  <=  || d x0 / d s ||^2 / V

Samplers that add no noise have u = 0, and w cancels: the right side is the information of their step, whatever the
sampler and the length of the step. It is used here for all samplers; `measure` of `sensitivity` has the same formula
for each block. What it means:

deterministic samplers    their path has no noise, so F is not an amount of information that an observer of the path
                          could use. It compares the change by s with what the model does not know at this noise level.
                          The errors of neighbouring steps are alike, so a sum over steps is used as a whole for shares.
samplers that add noise   F is an upper bound, and the sum over the steps would be the information of the path if F had
                          u. With u it is nearly all in the last steps, since the noise hides early changes of the path.
                          A window by that measure loses fidelity (docs/controls.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..diffusion.schedule import NoiseSchedule
from ..errors import ValueRangeError
from .sensitivity import STEP, require_picture

PredictAt = Callable[[int, float], Tensor]
"""(point, factor of the unit's strength) -> prediction of x0, (B, C, h, w)."""
KEPT = 0.95
"""Share of the information that a proposed window keeps."""
LEAST = 1e-30
NOTHING = 1e-9
"""Of the largest F: what is less than this comes from interpolating towards a step where the unit does not act."""


@dataclass(frozen=True)
class Window:
    """Consecutive steps of a run that keep a share of the information.

    first, last: the steps, counted from 0. start, end: the same as positions on the timestep axis, for Apply
    ControlNet. share: what they keep, 0 to 1.
    """

    first: int
    last: int
    start: float
    end: float
    share: float


@dataclass(frozen=True)
class StepInformation:
    """The information about the strength of one unit.

    values: F of each step. positions: of each step on the timestep axis, 0 (pure noise) to 1 (finished), rising.
    sigmas: of each step.
    """

    values: tuple[float, ...]
    positions: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each step in the sum; all 0 if no step has any."""
        total = sum(self.values)
        return tuple(value / total if total else 0.0 for value in self.values)

    def window(self, kept: float = KEPT) -> Window:
        """Find the fewest consecutive steps with at least this share; of several, those with the largest.

        kept: above 0 and at most 1. Without information the window is the whole run.
        """
        shares, count = np.array(self.shares), len(self.values)
        sums = np.concatenate([[0.0], np.cumsum(shares)])
        spans = [(first, end) for first in range(count) for end in range(first + 1, count + 1)]
        # The sum of all shares may be a rounding below 1.
        enough = [(a, b) for a, b in spans if sums[b] - sums[a] >= min(kept, sums[-1]) - 1e-12]
        first, end = min(enough, key=lambda span: (span[1] - span[0], sums[span[0]] - sums[span[1]]))
        if not sums[-1]:
            first, end = 0, count
        return Window(first, end - 1, self.border(first), self.border(end), float(sums[end] - sums[first]))

    def border(self, step: int) -> float:
        """The position before a step: in the middle between two, so that rounding does not move a step across it."""
        if step == 0:
            return 0.0
        if step == len(self.positions):
            return 1.0
        return (self.positions[step - 1] + self.positions[step]) / 2.0


def step_information(
    predict: PredictAt,
    x0: Tensor,
    sigmas: Sequence[float],
    *,
    on_point: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Measure F at each of the points with these noise levels.

    x0: (B, C, h, w), the finished latent; points are noisy versions of it. on_point(done, total) is called after each
    point. Returns F per picture, a mean over the batch. Raises ValueRangeError for a latent of zeros or no points.
    """
    require_picture(x0, sigmas)
    found = []
    for point in range(len(sigmas)):
        error = float((predict(point, 1.0) - x0).square().mean())
        ahead, behind = predict(point, 1.0 + STEP), predict(point, 1.0 - STEP)
        found.append(float(((ahead - behind) / (2.0 * STEP)).square().sum()) / len(x0) / error)
        if on_point is not None:
            on_point(point + 1, len(sigmas))
    return found


def over_steps(
    measured: Sequence[float], at: Sequence[float], sigmas: Sequence[float], schedule: NoiseSchedule
) -> StepInformation:
    """Information that was measured at the noise levels `at`, for each step of a run that begins at one of `sigmas`.

    Between two levels the logarithm of F is a straight line over log sigma. Both lists descend. Raises ValueRangeError
    for a run without steps.
    """
    if not len(sigmas):
        raise ValueRangeError("the run has no steps, so it has no information: set denoise above 0")
    # F is 0 outside of the unit's window, where its logarithm does not exist.
    logs = np.log(np.maximum(np.asarray(measured, np.float64), LEAST))
    level = np.log(np.asarray(at, np.float64))[::-1]
    values = np.exp(np.interp(np.log(np.asarray(sigmas, np.float64)), level, logs[::-1]))
    values[values < max(NOTHING * values.max(), 2.0 * LEAST)] = 0.0
    return StepInformation(
        tuple(values.tolist()), tuple(schedule.sigma_to_percent(s) for s in sigmas), tuple(map(float, sigmas))
    )


def describe(name: str, found: StepInformation, kept: float = KEPT) -> str:
    """Write the information of each step, and the proposed window, as text."""
    window = found.window(kept)
    lines = [
        f"{name}: information about its strength at each step",
        f"{'step':>6}{'sigma':>9}{'information':>13}{'share':>8}",
    ]
    rows = zip(found.sigmas, found.values, found.shares, strict=True)
    lines += [f"{i:>6}{sigma:>9.3f}{value:>13.4g}{share:>8.1%}" for i, (sigma, value, share) in enumerate(rows, 1)]
    steps = f"steps {window.first + 1} to {window.last + 1} keep {window.share:.0%} of the information"
    lines.append(f"proposed window: start_percent {window.start:.3f}, end_percent {window.end:.3f} ({steps})")
    return "\n".join(lines)
