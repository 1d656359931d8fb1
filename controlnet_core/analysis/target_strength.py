"""Finds the smallest strength at which a picture reaches a wanted fidelity to its hint.

Let f(s) be the fidelity (see `fidelity`) of the picture that strength s gives. It rises with the strength, and may fall
again where control spoils the picture. The search keeps a curve that it takes for f: a typical one, moved to where runs
have been. Each run tries the smallest strength where the curve reaches the target. The first runs have half of the
steps, since their fidelity is close to that of full runs; the last ones are full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ValueRangeError

Measure = Callable[[float, int], float]
"""(strength, number of steps) -> fidelity of the picture, 0 to 1."""
TOLERANCE = 0.03
GRID = np.linspace(0.0, 1.5, 301)
TYPICAL = np.interp(
    GRID,
    (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5),
    (0.2, 0.33, 0.45, 0.6, 0.7, 0.76, 0.82, 0.84, 0.86, 0.87),
)
"""The curve before the first run: about the mean of the demo's Canny net over ten scenes."""
SHORT_RUNS = 3
"""Runs with half of the steps: about the cost of one and a half full runs, and the curve is known well enough."""
LEAST_STEPS = 4
"""With fewer steps a picture says little about that of a full run."""


@dataclass(frozen=True)
class Trial:
    """One picture."""

    strength: float
    fidelity: float


@dataclass(frozen=True)
class TargetStrength:
    """The result of a search. short, full: the runs with half of the steps and with all, in their order.

    The first short run has the strength from which the search began.
    """

    target: float
    short: tuple[Trial, ...]
    full: tuple[Trial, ...]

    @property
    def before(self) -> Trial:
        """The picture before the search, with half of the steps."""
        return self.short[0]

    @property
    def best(self) -> Trial:
        """The full run with the smallest strength that reaches the target; else the one with the best fidelity."""
        enough = [run for run in self.full if run.fidelity >= self.target - TOLERANCE]
        if enough:
            return min(enough, key=lambda run: run.strength)
        return max(self.full, key=lambda run: run.fidelity)

    @property
    def reached(self) -> bool:
        """Whether the best run reaches the target."""
        return self.best.fidelity >= self.target - TOLERANCE

    @property
    def curve(self) -> np.ndarray:
        """The fidelity to expect at the strengths of GRID."""
        return _shift_curve(_shift_curve(TYPICAL, self.short), self.full)


def find_strength(
    measure: Measure,
    target: float,
    steps: int,
    *,
    start: float = 1.0,
    full_runs: int = 3,
    on_trial: Callable[[int, int], None] = lambda done, total: None,
) -> TargetStrength:
    """Search with at most SHORT_RUNS runs of half the steps, then at most `full_runs` full ones.

    measure: makes a picture. target: fidelity, above 0 and at most 1. steps: of a full run. start: the strength to
    begin with. on_trial(done, total) is called after each run. Raises ValueRangeError for another target, or for no
    full run.
    """
    if not 0.0 < target <= 1.0:
        raise ValueRangeError(f"the target is {target:g}, expected a fidelity above 0 and at most 1, such as 0.8")
    if full_runs < 1:
        raise ValueRangeError(f"{full_runs} full runs: at least 1 is needed, since its picture is the result")
    total, done = SHORT_RUNS + full_runs, 0

    def search(curve: np.ndarray, trials: tuple[Trial, ...], count: int, steps: int) -> tuple[Trial, ...]:
        nonlocal done
        while len(trials) < count:
            # Of several strengths that reach the target, the smallest leaves the prompt the most freedom. Where none
            # does, the peak of the curve is tried.
            moved = _shift_curve(curve, trials)
            enough = np.flatnonzero(moved >= target)
            strength = float(GRID[enough[0] if len(enough) else moved.argmax()])
            if any(abs(strength - trial.strength) < GRID[1] for trial in trials):
                # The curve asks for a strength that was tried, so another run would not tell anything new.
                break
            trials = (*trials, Trial(strength, measure(strength, steps)))
            done += 1
            on_trial(done, total)
            if abs(trials[-1].fidelity - target) <= TOLERANCE:
                break
        return trials

    half = min(steps, max(LEAST_STEPS, steps // 2))
    # The first short run has the strength that the user has, so that the result can be compared with it.
    short = search(TYPICAL, (Trial(start, measure(start, half)),), SHORT_RUNS, half)
    # Full runs start from the curve of the short ones, not from their points: the fidelity of a full run is a little
    # higher, and mixing both would bend the curve.
    full = search(_shift_curve(TYPICAL, short), (), full_runs, steps)
    on_trial(total, total)
    return TargetStrength(target, short, full)


def _shift_curve(curve: np.ndarray, trials: Sequence[Trial]) -> np.ndarray:
    """The curve on GRID, moved to where trials were. Between two of them, the difference changes evenly."""
    if not trials:
        return curve
    # Adding differences keeps the shape of the curve, which a line through a few points would lose.
    known = sorted(trials, key=lambda trial: trial.strength)
    strengths = [trial.strength for trial in known]
    differences = [trial.fidelity - float(np.interp(trial.strength, GRID, curve)) for trial in known]
    return curve + np.interp(GRID, strengths, differences)
