"""Sudden convergence: at which step does the net begin to follow its hint, at each learning rate?

    python benchmarks/paper/sudden.py [--seeds 0 1 2] [--quick]

With the paper's initialisation and timesteps (not `--quick` of the trainer). Budget: 0.15 hours of one core for three
seeds (six trainings). Source: Zhang et al. 2023, section 3.3 and figure 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from laboratory import Laboratory, Variant
from report import Experiment, Row, Verdict, draw_curves, main, new_page, save_page, seeds_of, select

RATES = (1e-3, 3e-3)
VARIANTS = tuple(Variant(lr=lr, quick=False, probe_every=20, times=3) for lr in RATES)
WINDOW = 0.2
"""Fraction of the steps in which most of the rise has to happen to be called sudden."""


def measure(laboratory: Laboratory) -> list[Row]:
    """Train at each learning rate with each seed; only the probe counts."""
    return [laboratory.train(variant, seed) for variant, seed in laboratory.runs(VARIANTS)]


def curve(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Steps and control, from the fresh net on, which has none."""
    steps, control = zip(*((p["step"], p["control"]) for p in row["probes"]), strict=True)
    return np.array([0, *steps]), np.array([0.0, *control])


def jump(row: Row) -> int:
    """The step at which the probe first reaches half of its highest value."""
    steps, control = curve(row)
    return int(steps[np.argmax(control >= control.max() / 2)])


def steepness(row: Row) -> float:
    """The largest fraction of the rise that falls into `WINDOW` of the steps. An even rise gives `WINDOW`."""
    steps, control = curve(row)
    even = np.arange(steps[-1] + 1)
    value = np.interp(even, steps, control)
    width = int(WINDOW * steps[-1])
    return float((value[width:] - value[:-width]).max() / control.max())


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Sudden where at least half of the rise falls into a fifth of the steps, after the start."""
    found, sudden = [], []
    for lr in RATES:
        runs = [row for row in select(rows, lr=lr) if curve(row)[1].max() > 0.05]
        if not runs:
            found.append(f"rate {lr:g}: no control yet")
            continue
        steps, steep = [jump(row) for row in runs], [steepness(row) for row in runs]
        sudden.append(float(np.mean(steep)) >= 0.5)
        where = f"step {min(steps)}" if len(set(steps)) == 1 else f"steps {min(steps)} to {max(steps)}"
        found.append(f"rate {lr:g}: half of it at {where}, {np.mean(steep):.0%} of the rise in a fifth of the steps")
    holds = "yes" if sudden and all(sudden) else "partly" if any(sudden) else "no"
    claim = "The net does not learn its hint gradually: it suddenly follows it, in fewer than 10,000 steps"
    return [Verdict(claim, f"{'; '.join(found)} ({seeds_of(rows)}).", holds)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """The probe over the steps, by learning rate."""
    curves = {f"learning rate {lr:g}": [curve(row) for row in select(rows, lr=lr)] for lr in RATES}
    with new_page(820, 380) as page:
        draw_curves(page, (64, 52, 720, 260), "probe: the right hint lowers the loss by (fraction)", curves, "step")
        save_page(page, path)


EXPERIMENT = Experiment(
    "sudden", "Does control appear suddenly?", "section 3.3, figure 4", 0.15, VARIANTS, measure, judge, draw,
    setup="The paper's own recipe: its initialisation of the hint encoder, uniform timesteps, constant rates until "
    "the end falls off. The probe compares the loss with the right hint and with another scene's (docs/training.md). "
    "Control counts as sudden if at least half of its rise falls into a fifth of the steps; an even rise has a fifth "
    "there.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
