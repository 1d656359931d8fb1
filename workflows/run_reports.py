"""What `controlnet run` tells about its samplings: a line for each, and a file by choice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..controlnet_core.errors import ValueRangeError
from .reporting import Reporter

if TYPE_CHECKING:
    from ..controlnet_core.control.report import RunReport

ENDINGS = (".json", ".png")


def report_ending(name: str | None) -> str:
    """The ending of a report's file, empty for none. Raises ValueRangeError for another than .json or .png."""
    ending = "" if name is None else Path(name).suffix.lower()
    if name is not None and ending not in ENDINGS:
        raise ValueRangeError(f"--report {name}: expected a name that ends in .json (figures) or .png (a picture)")
    return ending


def tell_reports(reports: Sequence[RunReport], name: str | None, reporter: Reporter) -> None:
    """One line for each sampling, unless quiet; all of them into the file, where one is named.

    The file's folder is made if need be. Raises ValueRangeError when it cannot be written.
    """
    from ..controlnet_core.control.report import summary

    for report in reports:
        reporter.line(summary(report))
    if name is None:
        return
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if report_ending(name) == ".png":
            _draw(reports, path)
        else:
            path.write_text(json.dumps([report.data() for report in reports], indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        why = f"--report {name} cannot be written ({error.strerror})"
        raise ValueRangeError(f"{why}: choose another folder") from error
    reporter.line(f"report: {path}")


def _draw(reports: Sequence[RunReport], path: Path) -> None:
    """The pictures of all samplings, one below the other."""
    import numpy as np
    from PIL import Image

    from ..controlnet_core.analysis.charts import draw_report

    pages = [draw_report(report) for report in reports] or [np.ones((8, 8, 3), np.float32)]
    width = max(page.shape[1] for page in pages)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=1.0) for p in pages]
    Image.fromarray((np.concatenate(padded) * 255.0 + 0.5).astype(np.uint8)).save(path, optimize=True)
