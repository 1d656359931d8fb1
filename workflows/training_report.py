"""The report page of a training: recipe, curves, samples and throughput, as Markdown with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..controlnet_core.atomic_files import atomic_write
from ..controlnet_core.errors import CoreError, writing
from ..controlnet_core.training.loop import Report
from ..controlnet_core.training.probe import Probe, first_control
from ..controlnet_core.training.work_folder import WorkFolder

NAME, CURVES = "report.md", "report_curves.png"
SHOWN_SAMPLES = 4


def write_report(work: WorkFolder, title: str, settings: Mapping[str, Any], until: int, total: int) -> Path:
    """Write report.md and its curves into the work folder, from its log and samples up to a step.

    Without matplotlib the page has no curves, and says so. Raises CoreError when a file cannot be written.
    """
    reports, probes = work.read_reports(until), work.read_probes(until)
    parts = [
        f"# {title}",
        _state(probes, until, total),
        _curves(work, reports, probes),
        "## Recipe",
        _table(settings.items()),
        "## Throughput",
        _table(_throughput(reports)),
        "## Samples",
        _samples(work, until),
    ]
    path = work.folder / NAME
    with writing(path), atomic_write(path) as file:
        file.write("\n\n".join(parts).encode() + b"\n")
    return path


def _state(probes: Sequence[Probe], until: int, total: int) -> str:
    done = f"Step {until} of {total}."
    if not probes:
        return f"{done} There was no probe yet."
    last, found = probes[-1], first_control(probes)
    if found is not None:
        since = f"Control since step {found.step}."
    elif last.appeared:
        since = "The last probe found control, which the next has to confirm."
    else:
        since = "Control has not appeared yet."
    return (
        f"{done} {since} At step {last.step} the right hint lowers the loss by {last.control:.1%} "
        f"({last.certainty:.1f} standard errors)."
    )


def _curves(work: WorkFolder, reports: Sequence[Report], probes: Sequence[Probe]) -> str:
    from PIL import Image

    from ..controlnet_core.analysis.training_curves import draw_training

    try:
        pixels = draw_training(reports, probes)
    except CoreError as error:
        return f"No curves: {error}"
    path = work.folder / CURVES
    with writing(path), atomic_write(path) as file:
        Image.fromarray((pixels * 255.0 + 0.5).astype(np.uint8)).save(file, "PNG")
    return f"![loss and probe by step]({CURVES})"


def _throughput(reports: Sequence[Report]) -> list[tuple[str, str]]:
    # Logs of earlier versions have no such numbers. The median leaves out steps with probes and samples.
    known = [report for report in reports if report.pictures]
    if not known:
        return [("pictures per second", "not measured")]
    return [
        ("pictures per second", f"{median(report.pictures for report in known):.2f}"),
        ("steps per second", f"{median(report.rate for report in known):.3f}"),
        ("time waiting for data", f"{median(report.waiting for report in known):.1%}"),
    ]


def _samples(work: WorkFolder, until: int) -> str:
    found = {int(path.stem.removeprefix("step_")): path for path in work.samples()}
    steps = sorted(step for step in found if step <= until)
    if not steps:
        return "No samples were made."
    # The first, the last, and some between them.
    chosen = sorted({steps[round(at)] for at in np.linspace(0, len(steps) - 1, SHOWN_SAMPLES)})
    shown = [f"Step {step}:\n\n![samples at step {step}](samples/{found[step].name})" for step in chosen]
    return "\n\n".join(["Each row: hint, generated picture, target.", *shown])


def _table(rows: Any) -> str:
    lines = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])
