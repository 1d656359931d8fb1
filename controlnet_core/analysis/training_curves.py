"""The curves of a training: its loss, and the probe that shows when control appears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..training.loop import Report
from ..training.probe import APPEARED, Probe, first_control
from .plots import BAR, FAINT, INK, LINE, MARGIN, SECOND, Page, new_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, PANEL, LEFT = 760, 220, 76
SMOOTHED = 0.05
"""The mean of the loss covers this fraction of its points: single batches differ more than the training changes."""


def draw_training(reports: Sequence[Report], probes: Sequence[Probe]) -> np.ndarray:
    """Draw the loss and the probe by step, one panel below the other; (H, W, 3) in [0, 1].

    Raises CoreError if matplotlib is not installed.
    """
    last = max((entry.step for entry in (*reports, *probes)), default=1)
    with new_page(WIDTH, 2 * (PANEL + 84)) as page:
        axes = _panel(page, 48, last, "loss (the line is its mean over a twentieth of the run)")
        steps, losses = [report.step for report in reports], np.array([report.loss for report in reports])
        axes.plot(steps, losses, color=LINE, linewidth=1)
        axes.plot(steps, running_mean(losses), color=BAR, linewidth=2)

        axes = _panel(page, PANEL + 120, last, "probe: the right hint lowers the loss by", percent=True)
        axes.axhline(100 * APPEARED, color=FAINT, linewidth=1, linestyle="--")
        axes.plot(
            [probe.step for probe in probes], [100 * probe.control for probe in probes],
            color=SECOND, linewidth=2, marker="o", markersize=4,
        )  # fmt: skip
        found = first_control(probes)
        if found is not None:
            axes.axvline(found.step, color=INK, linewidth=1)
            axes.annotate(
                f" control since step {found.step}", (found.step, 1), xycoords=("data", "axes fraction"), va="top"
            )
        return page.pixels()


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value with those before and after it, in windows of `SMOOTHED` of all (N,)."""
    half = int(len(values) * SMOOTHED / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _panel(page: Page, top: int, last: int, title: str, *, percent: bool = False) -> Axes:
    page.text(LEFT, top - 24, title)
    axes = page.axes(LEFT, top, WIDTH - LEFT - MARGIN, PANEL)
    axes.set_frame_on(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.set_xlim(0, last)
    axes.set_xlabel("step", color=FAINT)
    if percent:
        axes.yaxis.set_major_formatter("{x:g} %")
    return axes
