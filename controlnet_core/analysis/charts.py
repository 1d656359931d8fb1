"""Pictures of plans, reports and sensitivities: what `plots` draws, put on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..control.plan import Plan, PlannedUnit, block_names, silent_blocks
from ..control.report import RunReport, UnitReport
from .fidelity import EXTRA, HIT, MISSED, Agreement
from .plots import (
    FAINT,
    INK,
    MARGIN,
    NOTHING,
    SECOND,
    Bars,
    Canvas,
    Colour,
    HeatMap,
    scale_bar,
    text_width,
    wrap,
)
from .sensitivity import Sensitivity

SIDE = 208
"""Longest side of a hint on a page."""
GRID = 800
"""Pixels that a heat map may take from left to right."""
LABELS = 76


@dataclass(frozen=True, eq=False)
class SeenHint:
    """A hint as its net sees it, (H, W, 3) in [0, 1], with words on how it came to that size.

    mask: (H, W) in [0, 1], where the unit acts, or None for everywhere.
    """

    pixels: np.ndarray
    words: str
    mask: np.ndarray | None = None


def draw_plan(plan: Plan, hints: Sequence[SeenHint]) -> np.ndarray:
    """(H, W, 3) in [0, 1]: for each unit its hint as the net sees it beside its step x block table."""
    heights = [_unit_height(unit, hint) for unit, hint in zip(plan.units, hints, strict=True)]
    columns = len(plan.evaluations)
    grid = min(GRID, 40 * max(columns, 1))
    width = MARGIN + SIDE + MARGIN + LABELS + max(grid, 420) + 110
    canvas = Canvas(width, 70 + (sum(heights) or 40))
    total = sum(len(step) for step in plan.evaluations)
    canvas.text(MARGIN, 20, plan.title, 20)
    canvas.text(MARGIN, 46, f"{columns} steps, {total} evaluations of the model", 13, FAINT)
    if not plan.units:
        canvas.text(MARGIN, 76, "no ControlNet acts on this prompt", 14)
    top = 84
    for unit, hint, height in zip(plan.units, hints, heights, strict=True):
        _draw_unit(canvas, unit, hint, top, total)
        top += height
    return canvas.array()


def _unit_height(unit: PlannedUnit, hint: SeenHint) -> int:
    rows = 22 * len(unit.cells) + 66 + 20 * len(_reasons(unit))
    return max(rows, _hint_height(hint)) + 66


def _hint_height(hint: SeenHint) -> int:
    return sum(_fit(pixels, side)[1] + 44 for pixels, side, _ in _shown(hint))


def _draw_unit(canvas: Canvas, unit: PlannedUnit, hint: SeenHint, top: int, total: int) -> None:
    canvas.text(MARGIN, top, unit.name, 16)
    canvas.text(MARGIN, top + 22, f"{unit.words}; runs in {unit.runs} of {total} evaluations", 13, FAINT)
    top += 66
    _draw_hint(canvas, hint, top - 14)
    x = MARGIN + SIDE + MARGIN + LABELS
    heat = HeatMap(
        values=[_row(unit, block) for block in range(len(unit.cells))],
        rows=[f"{n} ({c})" for n, c in zip(block_names(len(unit.cells)), unit.cells, strict=True)],
        columns=[str(i) for i in range(1, len(unit.steps) + 1)],
        top=max([abs(w) for step in unit.steps for w in step.weights] + [1.0]),
        down="block (height)",
    )
    right = heat.draw(canvas, x, top, GRID)
    scale_bar(canvas, right + 24, top, 22 * len(unit.cells), heat.top, "weight")
    line = top + heat.height() + 4
    for words in _reasons(unit):
        canvas.rectangle(x, line + 2, 12, 12, NOTHING)
        canvas.text(x + 20, line, words, 13, INK)
        line += 20


def _row(unit: PlannedUnit, block: int) -> list[float | None]:
    """The weight of a block at each step; None where it is not heard."""
    return [None if step.why or step.weights[block] == 0.0 else abs(step.weights[block]) for step in unit.steps]


def _reasons(unit: PlannedUnit) -> list[str]:
    """What the empty cells mean: each reason once, with its steps or blocks."""
    found: dict[str, list[int]] = {}
    for index, step in enumerate(unit.steps, 1):
        if step.why:
            found.setdefault(step.why, []).append(index)
    lines = [f"steps {spans(indices)} not run: {why}" for why, indices in found.items()]
    return lines + [f"blocks {blocks} not heard: {why}" for why, blocks in silent_blocks(unit)]


def spans(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _shown(hint: SeenHint) -> list[tuple[np.ndarray, int, str]]:
    """Pictures beside a unit's table: pixels, longest side, words."""
    pictures = [(hint.pixels, SIDE, hint.words)]
    if hint.mask is not None:
        pictures.append((np.repeat(hint.mask[..., None], 3, axis=-1), SIDE // 2, "its mask: acts where white"))
    return pictures


def _draw_hint(canvas: Canvas, hint: SeenHint, top: int) -> None:
    for pixels, side, words in _shown(hint):
        width, height = _fit(pixels, side)
        canvas.picture(MARGIN, top, pixels, width, height)
        for line, part in enumerate(wrap(words, SIDE, 12)[:2]):
            canvas.text(MARGIN, top + height + 4 + 15 * line, part, 12, FAINT)
        top += height + 44


def _fit(pixels: np.ndarray, side: int) -> tuple[int, int]:
    """Width and height on the page."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


# ------------------------------------------------------------------------------------------- report


def draw_report(report: RunReport) -> np.ndarray:
    """(H, W, 3) in [0, 1]: for each net what its blocks added at each step, and its time.

    One scale for all nets, so that they can be compared.
    """
    units = [unit for unit in report.units if unit.norms]
    top = max([norm for unit in units for step in unit.norms for norm in step if norm is not None] + [0.0])
    rows = [22 * len(unit.norms[0]) + 130 for unit in units]
    steps = len(report.sigmas)
    casts = [f"cast {n} times: {what} from {a} to {b}" for what, a, b, n in report.casts] or ["nothing was cast"]
    width = MARGIN + LABELS + max(min(GRID, 40 * max(steps, 1)), 520) + 130
    canvas = Canvas(width, 92 + 18 * len(casts) + (sum(rows) or 40))
    canvas.text(MARGIN, 20, report.title or "report", 20)
    words = f"{steps} steps, {report.evaluations} evaluations of the model in {report.seconds:.2f} s"
    for line, part in enumerate([words, *casts]):
        canvas.text(MARGIN, 48 + 18 * line, part, 13, FAINT)
    y = 76 + 18 * len(casts)
    if not units:
        canvas.text(MARGIN, y, "no ControlNet of this package acted", 14)
    for unit, height in zip(units, rows, strict=True):
        _draw_norms(canvas, unit, report, top, y)
        y += height
    return canvas.array()


def _draw_norms(canvas: Canvas, unit: UnitReport, report: RunReport, top: float, y: int) -> None:
    took = "" if unit.seconds is None else f", {unit.seconds:.2f} s"
    canvas.text(MARGIN, y, unit.name, 16)
    words = f"{unit.words}; ran in {unit.ran} of {report.evaluations} evaluations{took}"
    canvas.text(MARGIN, y + 22, words, 13, FAINT)
    blocks = len(unit.norms[0])
    heat = HeatMap(
        values=[[step[block] for step in unit.norms] for block in range(blocks)],
        rows=block_names(blocks),
        columns=[str(i) for i in range(1, len(unit.norms) + 1)],
        top=top,
    )
    right = heat.draw(canvas, MARGIN + LABELS, y + 64, GRID)
    scale_bar(canvas, right + 24, y + 64, 22 * blocks, top, "added (RMS)")


# ------------------------------------------------------------------------------------------- fidelity

MARKS: dict[int, tuple[Colour, str]] = {
    HIT: ((0, 158, 115), "as the hint wants"),
    MISSED: ((213, 94, 0), "missed"),
    EXTRA: ((86, 180, 233), "not asked for"),
}
"""Colours that people who see red and green alike can tell apart (Okabe and Ito 2008)."""
LEAST_SIDE, MOST_SIDE = 256, 512


def draw_comparison(hint: np.ndarray, picture: np.ndarray, agreement: Agreement) -> np.ndarray:
    """(H', W', 3) in [0, 1]: hint, picture, and the picture in gray with its marks, side by side.

    hint: (H, W, C) in [0, 1], picture: (H, W, 3), both of one size.
    """
    height, width = picture.shape[:2]
    scale = min(max(1.0, LEAST_SIDE / max(height, width)), MOST_SIDE / max(height, width))
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    hint = np.repeat(hint, 3, axis=-1) if hint.shape[-1] == 1 else hint[..., :3]
    panels = (("hint", hint), ("picture", picture), ("agreement", marked(picture, agreement.marks)))
    canvas = Canvas(max(4 * MARGIN + 3 * w, 480), h + 96)
    for index, (name, pixels) in enumerate(panels):
        x = MARGIN + index * (w + MARGIN)
        canvas.text(x, 12, name, 14)
        canvas.picture(x, 34, pixels, w, h)
    canvas.text(MARGIN, h + 44, f"{agreement.score:.3f}", 16)
    canvas.text(MARGIN + 56, h + 46, agreement.words, 13, FAINT)
    _legend(canvas, MARGIN, h + 70)
    return canvas.array()


def marked(picture: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3), gray and pale, with its marks in colours; over large areas the picture shows through."""
    gray = 0.55 + 0.4 * picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    thin = (marks > 0).mean() < 0.5
    for mark, (colour, _) in MARKS.items():
        where = marks == mark
        share = 1.0 if thin else 0.6 if mark == MISSED else 0.35
        gray[where] = (1.0 - share) * gray[where] + share * np.array(colour, np.float32) / 255.0
    return gray


def _legend(canvas: Canvas, x: int, y: int) -> None:
    for colour, words in MARKS.values():
        canvas.rectangle(x, y, 12, 12, colour)
        canvas.text(x + 18, y - 2, words, 12)
        x += 18 + text_width(words, 12) + 20


# ------------------------------------------------------------------------------------------- sensitivity


def draw_sensitivity(result: Sensitivity, names: Sequence[str], title: str) -> np.ndarray:
    """(H, W, 3) in [0, 1]: the information per block as bars beside the proposed weights, and by step below."""
    bars = Bars(names, result.information, "information about its strength")
    weights = Bars(names, result.weights, "proposed weight", SECOND)
    heat = HeatMap(
        values=[[point[block] for point in result.by_point] for block in range(len(names))],
        rows=names,
        columns=result.points,
        top=max(max(point) for point in result.by_point),
        across="sampled step",
    )
    canvas = Canvas(860, 84 + bars.height() + 60 + heat.height())
    canvas.text(MARGIN, 16, title, 18)
    canvas.text(MARGIN, 42, "how well each block's strength can be read off the denoiser's output", 13, FAINT)
    x = MARGIN + LABELS
    bars.draw(canvas, x, 76, 400)
    weights.draw(canvas, x + 460, 76, 280)
    top = 76 + bars.height() + 44
    right = heat.draw(canvas, x, top, 480)
    scale_bar(canvas, right + 24, top, 22 * len(names), heat.top, "information")
    return canvas.array()
