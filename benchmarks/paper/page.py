"""The page docs/laboratory.md, made from the rows of the experiments."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from report import Experiment, Verdict

HEAD = """# The laboratory: claims of the ControlNet paper, tested

The paper (Zhang, Rao, Agrawala 2023) makes claims about how a ControlNet trains and what it can do. Each is tested \
here by one script, on the demo world: rendered scenes with exact hints, and the built-in model of 128 pixels. \
`python benchmarks/paper/run.py` runs all of them; with `--quick` it runs each once with few steps, in less than an \
hour of one core. The rows are in `benchmarks/results/paper/`, and \
`python benchmarks/paper/run.py --only-page --page docs/laboratory.md` writes this page from them.

The model is small (5 million weights), the pictures are simple and the trainings are short. A claim that holds here \
is shown by measurement; one that does not may still hold at full size. The rule that decides "holds" is in each \
script.
"""


def write_page(path: Path, experiments: Sequence[Experiment], results: Path, images: Path) -> None:
    """Write the page with every experiment that has rows."""
    files = [(experiment, _rows(experiment, results)) for experiment in experiments]
    done = [(experiment, json.loads(file.read_text(encoding="utf-8"))) for experiment, file in files if file.exists()]
    lines = [HEAD, "| the paper says | found here | holds? | script |", "| --- | --- | --- | --- |"]
    for experiment, report in done:
        lines += [_row(verdict, experiment) for verdict in experiment.judge(report["rows"])]
    lines.append("")
    for experiment, report in done:
        lines += _section(experiment, report, path, images)
    lines += _open([experiment for experiment in experiments if not _rows(experiment, results).exists()])
    path.write_text("\n".join(lines), encoding="utf-8")


def _rows(experiment: Experiment, results: Path) -> Path:
    return results / f"{experiment.name}.json"


def _open(experiments: Sequence[Experiment]) -> list[str]:
    """Experiments that are written but have no published rows, with what they would cost."""
    if not experiments:
        return []
    lines = ["## Not run yet\n", "Three seeds of these take so many hours of one core:\n"]
    lines += ["| question | script | hours |", "| --- | --- | --- |"]
    return [*lines, *(f"| {e.question} | `benchmarks/paper/{e.name}.py` | {e.hours:g} |" for e in experiments), ""]


def _row(verdict: Verdict, experiment: Experiment) -> str:
    script = f"`benchmarks/paper/{experiment.name}.py`"
    return f"| {verdict.paper} ({experiment.source}) | {verdict.found} | **{verdict.holds}** | {script} |"


def _section(experiment: Experiment, report: dict, path: Path, images: Path) -> list[str]:
    picture = Path(os.path.relpath(images / f"laboratory_{experiment.name}.png", path.parent)).as_posix()
    return [
        f"## {experiment.question}\n",
        *([f"{experiment.setup}\n"] if experiment.setup else []),
        *_numbers(report),
        f"![{experiment.question}]({picture})\n",
        *([f"{experiment.reading}\n"] if experiment.reading else []),
    ]


def _numbers(report: dict) -> list[str]:
    """Seeds, steps and time of an experiment, as they were."""
    rows, settings = report["rows"], report["settings"]
    # The cost of a step has no seed: it is counted.
    seeds = sorted({row["seed"] for row in rows if "seed" in row})
    words = [f"Seeds: {', '.join(map(str, seeds))}"] if seeds else []
    if any("probes" in row for row in rows):
        steps = sorted({row["steps"] for row in rows})
        words.append(f"{' and '.join(map(str, steps))} steps of batch {settings['batch']}")
        words.append(
            f"{sum(row['cpu_seconds'] for row in rows) / 60:.0f} minutes of one core for {len(rows)} trainings"
        )
    if any("fidelity" in row or "objects" in row for row in rows):
        words.append(f"{settings['scored']} held-out scenes")
    return [f"{'; '.join(words)}.\n"] if words else []
