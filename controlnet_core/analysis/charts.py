"""Pictures of plans, reports, comparisons and sensitivities, as (H, W, 3) float32 in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np

from ..control.modes import block_names
from ..control.plan import PlannedUnit, RunPlan, unused_blocks
from ..control.report import RunReport, UnitReport
from .closed_loop import StrengthLoop, expected
from .fidelity import EXTRA, HIT, MISSED, Agreement
from .information import StepInformation
from .plots import (
    BAR,
    BAR_HEIGHT,
    CELL_HEIGHT,
    FAINT,
    INK,
    LABELS,
    LINE,
    MARGIN,
    NOTHING,
    SECOND,
    Page,
    cell_width,
    draw_bars,
    draw_heat_map,
    new_page,
)
from .sensitivity import Sensitivity
from .target_strength import GRID, TargetStrength

SIDE = 208
"""Longest side of a hint on a page."""
INFORMATION_HEIGHT = 330
CURVES = (BAR, "#d55e00", SECOND, "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of curves for several ControlNets, apart for people with red-green colour blindness too."""


@dataclass(frozen=True, eq=False)
class SeenHint:
    """A hint as its net sees it: (H, W, 3) in [0, 1], and how it came to that size, in words.

    mask: (H, W) in [0, 1], where the unit acts; None for everywhere.
    """

    pixels: np.ndarray
    words: str
    mask: np.ndarray | None = None


def draw_plan(
    plan: RunPlan, hints: Sequence[SeenHint], information: Mapping[str, StepInformation] | None = None
) -> np.ndarray:
    """Draw each unit's hint as the net sees it, beside its table of weights by step and block.

    information: of each unit by its name; drawn below as curves where it is given.
    """
    heights = [_unit_height(unit, hint) for unit, hint in zip(plan.units, hints, strict=True)]
    columns = len(plan.evaluations)
    width = MARGIN + SIDE + MARGIN + LABELS + max(columns * cell_width(columns), 420) + 110
    total = sum(len(step) for step in plan.evaluations)
    below = INFORMATION_HEIGHT if information else 0
    with new_page(width, 70 + (sum(heights) or 40) + below) as page:
        page.text(MARGIN, 20, plan.title, 20)
        page.text(MARGIN, 48, f"{columns} steps, {total} evaluations of the model", color=FAINT)
        if not plan.units:
            page.text(MARGIN, 76, "no ControlNet acts on this prompt", 14)
        top = 84
        for unit, hint, height in zip(plan.units, hints, heights, strict=True):
            _draw_unit(page, unit, hint, top, total)
            top += height
        if information:
            _draw_information(page, top, information)
        return page.pixels()


def _draw_information(page: Page, top: float, information: Mapping[str, StepInformation]) -> None:
    """Draw where each hint matters: the share of each step as a curve, and the proposed window as a bar below it."""
    page.text(MARGIN, top, "Where each hint matters", 16)
    words = "share of each step in the information about the strength; a bar is the window that keeps 95 %"
    page.text(MARGIN, top + 24, words, color=FAINT)
    steps = max(len(found.values) for found in information.values())
    axes = page.axes(MARGIN + LABELS, top + 60, page.width - 2 * MARGIN - LABELS, INFORMATION_HEIGHT - 120)
    most = max(max(found.shares) for found in information.values()) or 1.0
    for index, (name, found) in enumerate(information.items()):
        color = CURVES[index % len(CURVES)]
        window, y = found.window(), -most * (0.08 + 0.07 * index)
        axes.plot(range(1, len(found.values) + 1), found.shares, marker="o", markersize=4, color=color, label=name)
        axes.plot((window.first + 0.6, window.last + 1.4), (y, y), color=color, linewidth=4, solid_capstyle="butt")
    axes.axhline(0.0, color=LINE, linewidth=1)
    axes.set(xlim=(0.5, steps + 0.5), ylim=(-most * (0.08 + 0.07 * len(information)), 1.1 * most))
    axes.set(xticks=range(1, steps + 1, max(1, steps // 20)), yticks=[t for t in axes.get_yticks() if 0 <= t <= most])
    axes.set_xlabel("step", size=12, color=INK)
    axes.set_ylabel("share", size=12, color=INK)
    axes.legend(frameon=False, loc="upper right", fontsize=11)


def _unit_height(unit: PlannedUnit, hint: SeenHint) -> int:
    table = CELL_HEIGHT * len(unit.cells) + 66 + 20 * len(_reasons(unit))
    return max(table, SIDE + 44 + (0 if hint.mask is None else SIDE // 2 + 44)) + 66


def _draw_unit(page: Page, unit: PlannedUnit, hint: SeenHint, top: float, total: int) -> None:
    page.text(MARGIN, top, unit.name, 16)
    page.text(MARGIN, top + 24, f"{unit.words}; runs in {unit.runs} of {total} evaluations", color=FAINT)
    top += 66
    _draw_hint(page, hint, top)
    x, blocks = MARGIN + SIDE + MARGIN + LABELS, len(unit.cells)
    rows = [f"{name} ({cells})" for name, cells in zip(block_names(blocks), unit.cells, strict=True)]
    columns = [str(step) for step in range(1, len(unit.steps) + 1)]
    values = [[_shown_weight(step.weights[block], step.why_idle) for step in unit.steps] for block in range(blocks)]
    # The scale reaches 1 at least, so that weak units look weak.
    most = max([abs(weight) for step in unit.steps for weight in step.weights] + [1.0])
    draw_heat_map(page, x, top, values, (rows, columns), most, ("block (height)", "step", "weight"))
    for line, words in enumerate(_reasons(unit)):
        y = top + CELL_HEIGHT * blocks + 44 + 20 * line
        _draw_key(page, x, y, NOTHING, words)


def _shown_weight(weight: float, why_idle: str) -> float | None:
    """None where the net does not run or the block adds nothing."""
    return None if why_idle or weight == 0 else abs(weight)


def _draw_hint(page: Page, hint: SeenHint, top: float) -> None:
    pictures = [(hint.pixels, SIDE, hint.words)]
    if hint.mask is not None:
        pictures.append((np.repeat(hint.mask[..., None], 3, axis=-1), SIDE // 2, "its mask: acts where white"))
    for pixels, side, words in pictures:
        top += page.picture(MARGIN, top, pixels, side)
        page.text(MARGIN, top + 6, "\n".join(wrap(words, 34)[:2]), 11, FAINT)
        top += 44


def _draw_key(page: Page, x: float, y: float, color: str, words: str) -> None:
    """A small square and what its colour means."""
    page.text(x, y, "\N{BLACK SQUARE}", 16, color, va="center_baseline")
    page.text(x + 18, y, words, va="center_baseline")


def _reasons(unit: PlannedUnit) -> list[str]:
    """What the gray cells mean: each reason once, with its steps or blocks."""
    found: dict[str, list[int]] = {}
    for index, step in enumerate(unit.steps, 1):
        if step.why_idle:
            found.setdefault(step.why_idle, []).append(index)
    lines = [f"step{'s' * (len(steps) > 1)} {spans(steps)} not run: {why}" for why, steps in found.items()]
    return lines + [f"blocks {blocks} have no effect: {why}" for why, blocks in unused_blocks(unit)]


def spans(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


# ------------------------------------------------------------------------------------------- report


def draw_report(report: RunReport) -> np.ndarray:
    """Draw for each net what its blocks added at each step. All nets share one scale, so that they can be compared."""
    units = [unit for unit in report.units if unit.norms]
    norms = [norm for unit in units for step in unit.norms for norm in step if norm is not None]
    heights = [CELL_HEIGHT * len(unit.norms[0]) + 130 for unit in units]
    steps = len(report.sigmas)
    casts = [f"cast {n} times: {what} from {a} to {b}" for what, a, b, n in report.casts] or ["nothing was cast"]
    words = f"{steps} steps, {report.evaluations} evaluations of the model in {report.seconds:.2f} s"
    width = MARGIN + LABELS + max(steps * cell_width(steps), 520) + 130
    with new_page(width, 102 + 18 * len(casts) + (sum(heights) or 40)) as page:
        page.text(MARGIN, 20, report.title or "report", 20)
        page.text(MARGIN, 50, "\n".join([words, *casts]), color=FAINT, linespacing=1.4)
        y = 88 + 18 * len(casts)
        if not units:
            page.text(MARGIN, y, "no ControlNet of this package acted", 14)
        for unit, height in zip(units, heights, strict=True):
            _draw_norms(page, unit, report.evaluations, max(norms, default=0.0), y)
            y += height
        return page.pixels()


def _draw_norms(page: Page, unit: UnitReport, evaluations: int, top: float, y: float) -> None:
    took = "" if unit.seconds is None else f", {unit.seconds:.2f} s"
    page.text(MARGIN, y, unit.name, 16)
    page.text(MARGIN, y + 24, f"{unit.words}; ran in {unit.ran} of {evaluations} evaluations{took}", color=FAINT)
    names = block_names(len(unit.norms[0])), [str(step) for step in range(1, len(unit.norms) + 1)]
    by_block = list(zip(*unit.norms, strict=True))
    draw_heat_map(page, MARGIN + LABELS, y + 66, by_block, names, top, ("block", "step", "added (RMS)"))


# ------------------------------------------------------------------------------------------- fidelity

MARKS: dict[int, tuple[str, str]] = {
    HIT: ("#009e73", "as in the hint"),
    MISSED: ("#d55e00", "missed"),
    EXTRA: ("#56b4e9", "not in the hint"),
}
"""Colours that people with red-green colour blindness can tell apart (Okabe and Ito 2008), and what they mean."""
LEAST_SIDE, MOST_SIDE = 256, 512


def draw_comparison(hint: np.ndarray, picture: np.ndarray, agreement: Agreement) -> np.ndarray:
    """Draw hint, picture and marked picture side by side.

    hint: (H, W, C) in [0, 1], picture: (H, W, 3), both of one size.
    """
    height, width = picture.shape[:2]
    side = min(max(height, width, LEAST_SIDE), MOST_SIDE)
    w, h = (max(1, round(length * side / max(height, width))) for length in (width, height))
    hint = np.repeat(hint, 3, axis=-1) if hint.shape[-1] == 1 else hint[..., :3]
    panels = (("hint", hint), ("picture", picture), ("agreement", mark_picture(picture, agreement.marks)))
    with new_page(max(4 * MARGIN + 3 * w, 560), h + 100) as page:
        for index, (name, pixels) in enumerate(panels):
            x = MARGIN + index * (w + MARGIN)
            page.text(x, 12, name, 14)
            page.picture(x, 34, pixels, side)
        page.text(MARGIN, h + 54, f"{agreement.score:.3f}", 16, va="center_baseline")
        page.text(MARGIN + 56, h + 54, agreement.words, color=FAINT, va="center_baseline")
        for index, (color, words) in enumerate(MARKS.values()):
            _draw_key(page, MARGIN + 150 * index, h + 80, color, words)
        return page.pixels()


def mark_picture(picture: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Make the picture (H, W, 3) gray and pale, with its marks in colours."""
    from matplotlib.colors import to_rgb

    gray = 0.55 + 0.4 * picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    # Thin edges are opaque. Large areas are transparent, or they would hide the picture.
    thin = (marks > 0).mean() < 0.5
    for mark, (color, _) in MARKS.items():
        where = marks == mark
        share = 1.0 if thin else 0.6 if mark == MISSED else 0.35
        gray[where] = (1.0 - share) * gray[where] + share * np.array(to_rgb(color))
    return gray


# ------------------------------------------------------------------------------------------- sensitivity


def draw_sensitivity(
    result: Sensitivity, names: Sequence[str], title: str, by_step: StepInformation | None = None
) -> np.ndarray:
    """Draw the information of each block as bars beside the proposed weights, and below it by step.

    by_step: of the whole net, drawn as a curve below where it is given.
    """
    by_block = list(zip(*result.by_point, strict=True))
    top = 76 + BAR_HEIGHT * len(names) + 74
    bottom = top + CELL_HEIGHT * len(names) + 56
    with new_page(860, bottom + (0 if by_step is None else INFORMATION_HEIGHT)) as page:
        page.text(MARGIN, 16, title, 18)
        page.text(MARGIN, 42, "how much each block's strength changes the model's prediction", color=FAINT)
        x = MARGIN + LABELS
        draw_bars(page, x, 76, 400, names, result.information, "Fisher information about its strength")
        draw_bars(page, x + 460, 76, 280, names, result.weights, "proposed weight", SECOND)
        most = max(max(row) for row in by_block)
        axis_names = ("block", "sampled step", "information")
        draw_heat_map(page, x, top, by_block, (names, result.points), most, axis_names)
        if by_step is not None:
            _draw_information(page, bottom, {title: by_step})
        return page.pixels()


# ------------------------------------------------------------------------------------------- target strength


def draw_target_strength(found: TargetStrength, measure: str) -> np.ndarray:
    """Draw fidelity over strength: the short runs, the full ones, the curve that is expected, and the target."""
    title = f"strength {found.best.strength:.2f}: {measure} {found.best.fidelity:.3f}"
    with new_page(640, 420) as page:
        page.text(MARGIN, 16, title if found.reached else f"{title}, below the target", 18)
        axes = page.axes(MARGIN + 40, 60, 540, 290)
        axes.set(xlim=(0, GRID[-1]), ylim=(0, 1), xlabel="strength", ylabel=measure)
        axes.grid(color=NOTHING)
        axes.axhline(found.target, color=SECOND, linestyle="--", label="target")
        axes.axvline(found.best.strength, color=BAR, linewidth=1)
        axes.plot(GRID, found.curve, color=LINE, label="expected")
        for name, trials, marker, color in (
            ("runs with half of the steps", found.short, "o", FAINT),
            ("full runs", found.full, "s", BAR),
        ):
            points = [t.strength for t in trials], [t.fidelity for t in trials]
            axes.plot(*points, linestyle="", marker=marker, color=color, label=name)
        axes.legend(frameon=False, loc="lower right")
        return page.pixels()


# ------------------------------------------------------------------------------------------- closed loop


def draw_closed_loop(loop: StrengthLoop, reached: float, kind: str) -> np.ndarray:
    """Draw fidelity and strength over the steps of a run. reached: fidelity of the finished picture."""
    with new_page(640, 420) as page:
        page.text(MARGIN, 16, f"fidelity to the {kind} hint {reached:.3f}, asked for {loop.target:g}", 18)
        steps = [m.step + 1 for m in loop.measured]
        axes = page.axes(MARGIN + 40, 60, 540, 290)
        axes.grid(color=NOTHING)
        wanted = [loop.target * expected(m.position) for m in loop.measured]
        axes.plot(steps, wanted, color=SECOND, linestyle="--", label="fidelity expected of a prediction")
        axes.plot(steps, [m.fidelity for m in loop.measured], color=LINE, marker="o", label="fidelity measured")
        axes.plot(steps, [m.strength for m in loop.measured], color=BAR, drawstyle="steps-mid", label="strength")
        # Whole steps only: there is nothing between two of them.
        axes.set_xticks(range(steps[0], steps[-1] + 1, max(1, len(steps) // 10)) if steps else [])
        axes.set(ylim=(0, max(1.0, loop.highest) * 1.25), xlabel="step")
        axes.legend(frameon=False, loc="upper left", ncols=3)
        return page.pixels()
