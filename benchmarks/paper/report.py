"""An experiment as data, its command line, its JSON rows, and the figures and table that are made of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfyui_controlnet_core.controlnet_core.analysis.plots import BAR, FAINT, INK, LINE, SECOND, Page, new_page, short
from laboratory import QUICK, Laboratory, Settings, Variant, write_json
from measure import machine

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "paper"
IMAGES = ROOT / "docs" / "images"
COLOURS = (BAR, SECOND, "#e76f51", "#8d5fd3", "#b08900")
Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A row of the table. holds: "yes", "no" or "partly", decided by a rule in the script, not by hand."""

    paper: str
    found: str
    holds: str


def yes_if_all(facts: Sequence[bool]) -> str:
    """Whether a claim of several facts holds: "partly" if some of them do."""
    return "yes" if facts and all(facts) else "partly" if any(facts) else "no"


@dataclass(frozen=True)
class Experiment:
    """A claim of the paper with its test.

    question: in one line. source: section or figure of the paper. hours: of one processor core, for three seeds.
    variants: what is trained, once per seed. measure: gives the rows. judge: what they say, and the rule for "holds".
    draw: the figure. setup, reading: sentences for the page: how it is measured and what "holds" means, then what the
    numbers show.
    """

    name: str
    question: str
    source: str
    hours: float
    variants: tuple[Variant, ...]
    measure: Callable[[Laboratory], list[Row]]
    judge: Callable[[Sequence[Row]], list[Verdict]]
    draw: Callable[[Sequence[Row], Path], None]
    setup: str = ""
    reading: str = ""

    def run(self, laboratory: Laboratory, results: Path, images: Path) -> None:
        """Measure, write the rows, draw, and print the verdicts."""
        rows = self.measure(laboratory)
        settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(laboratory.settings).items()}
        for key in ("work", "trained_only"):  # they change no number
            settings.pop(key)
        about = {"question": self.question, "source": self.source, "settings": settings}
        where = machine(torch.device("cpu"))
        write_json(results / f"{self.name}.json", {**about, "machine": where, "rows": rows})
        self.draw(rows, images / f"laboratory_{self.name}.png")
        for verdict in self.judge(rows):
            print(f"{self.name}: {verdict.found} Holds: {verdict.holds}.", flush=True)


def read_rows(name: str, results: Path = RESULTS) -> list[Row]:
    """The rows of an experiment that was run."""
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def parse(description: str, add: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> argparse.Namespace:
    """The command line that all scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(Settings.seeds))
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--scored", type=int, default=Settings.scored, help="held-out scenes that are sampled")
    parser.add_argument("--quick", action="store_true", help="one seed and few steps, to see everything run")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "paper", help="trained nets; runs continue")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON rows")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the figures")
    parser.add_argument("--trained-only", action="store_true", help="leave out runs that are not complete")
    add(parser)
    args = parser.parse_args()
    if args.quick:
        # Published rows and figures are not replaced by those of a trial.
        trial = args.work / "quick"
        vars(args).update(QUICK, results=trial / "results", images=trial / "images")
    return args


def laboratory_of(args: argparse.Namespace) -> Laboratory:
    """The laboratory that the command line asks for."""
    settings = Settings(args.work, tuple(args.seeds), args.steps, scored=args.scored, trained_only=args.trained_only)
    return Laboratory(settings)


def main(experiment: Experiment) -> None:
    """Run one experiment from the command line."""
    args = parse(experiment.question)
    experiment.run(laboratory_of(args), args.results, args.images)


# ------------------------------------------------------------------------------------------- numbers


def f1(rows: Sequence[Row], prompt: str, **fields: Any) -> list[float]:
    """Mean edge F1 of each run whose row has these fields, one number per seed."""
    return [float(np.mean(row["fidelity"][prompt])) for row in select(rows, **fields)]


def select(rows: Sequence[Row], **fields: Any) -> list[Row]:
    """The rows that have these fields."""
    return [row for row in rows if all(row.get(key) == value for key, value in fields.items())]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and smallest to largest where there are several."""
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return text


def seeds_of(rows: Sequence[Row]) -> str:
    """How many seeds the rows have, in words."""
    count = len({row["seed"] for row in rows})
    return "one seed" if count == 1 else f"{count} seeds"


# ------------------------------------------------------------------------------------------- figures

Curves = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
"""Name -> one line for each seed: x values and y values."""


def panel(page: Page, place: tuple[float, float, float, float], title: str, below: str) -> Any:
    """Axes with a title above and the name of the x axis below. place: left, top, width, height in pixels."""
    page.text(place[0], place[1] - 26, title, 13)
    axes = page.axes(*place)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(below, size=11, color=FAINT)
    return axes


def draw_curves(page: Page, place: tuple[float, float, float, float], title: str, curves: Curves, below: str) -> None:
    """One colour for each name, one thin line for each seed, and the name at the end of its line."""
    axes = panel(page, place, title, below)
    for (name, lines), colour in zip(curves.items(), COLOURS, strict=False):
        for index, (x, y) in enumerate(lines):
            axes.plot(x, y, color=colour, linewidth=1.6, alpha=0.85, label=name if index == 0 else None)
    axes.legend(frameon=False, fontsize=11, labelcolor=INK)


def draw_groups(
    page: Page,
    place: tuple[float, float, float, float],
    title: str,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    below: str = "",
    legend: bool = True,
) -> None:
    """Bars of the means, a group for each name, with a dot for each seed. groups: group -> bar -> numbers."""
    axes = panel(page, place, title, below)
    bars = list(dict.fromkeys(bar for group in groups.values() for bar in group))
    width = 0.8 / len(bars)
    for index, (bar, colour) in enumerate(zip(bars, COLOURS, strict=False)):
        at = [n - 0.4 + (index + 0.5) * width for n, group in enumerate(groups.values()) if bar in group]
        values = [group[bar] for group in groups.values() if bar in group]
        axes.bar(at, [np.mean(v) for v in values], width * 0.92, color=colour, label=bar)
        for x, numbers in zip(at, values, strict=True):
            if len(numbers) > 1:
                axes.scatter([x] * len(numbers), numbers, s=12, color=INK, zorder=3)
            axes.annotate(short(float(np.mean(numbers))), (x, max(0.0, *numbers)), (0, 4), textcoords="offset points",
                          ha="center", fontsize=10, color=INK)  # fmt: skip
    axes.set_xticks(range(len(groups)), list(groups))
    if legend and len(bars) > 1:
        axes.legend(frameon=False, fontsize=11, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))


@contextmanager
def page_at(path: Path, width: int, height: int) -> Iterator[Page]:
    """A page to draw on, which is then written as a PNG."""
    from PIL import Image

    with new_page(width, height) as page:
        yield page
        pixels = page.pixels()
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((pixels * 255.0 + 0.5).astype(np.uint8))
    image.quantize(256, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)


__all__ = [
    "Experiment", "Row", "Verdict", "draw_curves", "draw_groups", "f1", "laboratory_of", "main", "page_at", "parse",
    "read_rows", "seeds_of", "select", "spread", "yes_if_all",
]  # fmt: skip
