"""Corrects a strength while sampling, so that the picture reaches a wanted fidelity: a closed loop.

At every k-th step the prediction of the finished picture is decoded, and its fidelity f to the hint is measured (see
`fidelity`). A proportional-integral rule (Astrom and Murray 2008, "Feedback Systems", chapter 10) sets the strength for
the next steps:

    e = target * expected(p) - f
    I = I + e * dp
    strength = start + proportional * e + integral * I,    kept between 0 and `highest`

p is the position on the timestep axis, 0 (pure noise) to 1 (finished), dp the way since the last measurement, so that
gains do not depend on the number of steps. expected(p) is what share of its final fidelity a prediction usually has
there: early ones are blurred, and without this factor the rule would raise every strength. I does not grow while the
strength is at its bound (anti-windup).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import ValueRangeError

# A prediction follows the strength of its own step at once, so a proportional gain of 4 swings between both bounds.
PROPORTIONAL, INTEGRAL = 0.5, 12.0
EXPECTED = (
    (0.0, 0.05, 0.1, 0.15, 0.25, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0),
    (0.55, 0.64, 0.75, 0.82, 0.84, 0.88, 0.915, 0.95, 0.97, 1.0, 1.0),
)
"""Positions, and the share of the final fidelity there: means of the demo's Canny net at strengths 0.4 and 0.6."""
HIGHEST = 1.5


@dataclass(frozen=True)
class Measured:
    """One measurement. step: from 0. strength: with which the prediction was made."""

    step: int
    position: float
    fidelity: float
    strength: float


@dataclass
class StrengthLoop:
    """Holds the strength during one run, and corrects it after each measurement.

    A unit calls it as its curve, and the sampler gives it the measurements. Make a new one for each run.

    target: fidelity to reach, above 0 and at most 1. start: the strength to begin with, above 0. every: steps between
    two measurements. Raises ValueRangeError for values out of range.
    """

    target: float
    start: float = 1.0
    every: int = 1
    proportional: float = PROPORTIONAL
    integral: float = INTEGRAL
    highest: float = HIGHEST
    measured: list[Measured] = field(default_factory=list)
    _strength: float = field(init=False)
    _sum: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.target <= 1.0:
            raise ValueRangeError(f"the target is {self.target:g}, expected a fidelity above 0 and at most 1")
        if not 0.0 < self.start <= self.highest:
            raise ValueRangeError(
                f"the strength to begin with is {self.start:g}, expected one above 0 and at most {self.highest:g}"
            )
        if self.every < 1:
            raise ValueRangeError(f"a measurement at every {self.every} steps: use 1 or more")
        self._strength = self.start

    def __call__(self, position: float) -> float:
        """The factor of the strength that the unit has, at any position: the last correction holds."""
        return self._strength / self.start

    @property
    def strength(self) -> float:
        """The strength in force."""
        return self._strength

    @property
    def mean_strength(self) -> float:
        """The mean over the steps so far."""
        return float(np.mean([m.strength for m in self.measured])) if self.measured else self.start

    def is_due(self, step: int) -> bool:
        """Whether to measure at this step, counted from 0."""
        return step % self.every == 0

    def observe(self, step: int, position: float, fidelity: float) -> None:
        """Take a measurement of the prediction at a position, and correct the strength."""
        before = self.measured[-1].position if self.measured else position
        self.measured.append(Measured(step, position, fidelity, self._strength))
        error = self.target * expected(position) - fidelity
        added = self._sum + error * (position - before)
        wanted = self.start + self.proportional * error + self.integral * added
        self._strength = min(max(wanted, 0.0), self.highest)
        if self._strength == wanted:
            self._sum = added


def expected(position: float) -> float:
    """What share of its final fidelity a prediction at this position has."""
    return float(np.interp(position, *EXPECTED))


def describe(loop: StrengthLoop, name: str, fidelity: float) -> str:
    """Write the run as text. fidelity: of the finished picture."""
    lines = [
        f"{name}: fidelity {fidelity:.3f}, asked for {loop.target:g}; mean strength {loop.mean_strength:.2f}",
        f"{'step':>6}{'position':>10}{'fidelity':>10}{'expected':>10}{'strength':>10}",
    ]
    for m in loop.measured:
        wanted = loop.target * expected(m.position)
        lines.append(f"{m.step + 1:>6}{m.position:>10.2f}{m.fidelity:>10.3f}{wanted:>10.3f}{m.strength:>10.2f}")
    return "\n".join(lines)
