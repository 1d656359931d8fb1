"""Report the samplings of `controlnet run`: a line for each, and a file with all figures if one is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..controlnet_core.errors import ValueRangeError
from ..nodes.folders import remove_leftovers
from .destinations import complete_file
from .reporting import Reporter

if TYPE_CHECKING:
    from ..controlnet_core.control.report import RunReport

_NOTE = "controlnet-report"
"""Key of a text in pictures of reports, by which a later run recognises them."""


def report_ending(path: Path) -> str:
    """Return the ending of a report's file. Raises ValueRangeError if it is neither .json nor .png."""
    ending = path.suffix.lower()
    if ending not in (".json", ".png"):
        raise ValueRangeError(f"--report {path}: expected a name that ends in .json (figures) or .png (a picture)")
    return ending


def is_report(path: Path) -> bool:
    """Whether a file is a report of an earlier run."""
    from PIL import Image

    try:
        if report_ending(path) == ".png":
            with Image.open(path, formats=["PNG"]) as picture:
                return _NOTE in picture.info
        entries = json.loads(path.read_bytes())
        return isinstance(entries, list) and all({"title", "sigmas", "units"} <= entry.keys() for entry in entries)
    except Exception:
        # A file that cannot be read as a report is no report.
        return False


def tell_reports(reports: Sequence[RunReport], path: Path | None, reporter: Reporter) -> None:
    """Print one line for each sampling, unless quiet, and write all of them into the file `path`.

    The file's folder is created if needed, and the file appears when it is complete. Raises WriteError.
    """
    from ..controlnet_core.control.report import summary

    for report in reports:
        reporter.line(summary(report))
    if path is None:
        return
    with complete_file(path) as temporary:
        remove_leftovers(path.parent)
        if report_ending(path) == ".png":
            _draw(reports, temporary)
        else:
            text = json.dumps([report.data() for report in reports], indent=1) + "\n"
            temporary.write_text(text, encoding="utf-8")
    reporter.line(f"report: {path}")


def _draw(reports: Sequence[RunReport], path: Path) -> None:
    """Write the pictures of all samplings, one below the other."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from ..controlnet_core.analysis.charts import draw_report

    pages = [draw_report(report) for report in reports] or [np.ones((8, 8, 3), np.float32)]
    width = max(page.shape[1] for page in pages)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=1.0) for p in pages]
    info = PngInfo()
    info.add_text(_NOTE, f"{len(reports)} samplings")
    pixels = (np.concatenate(padded) * 255.0 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(path, format="PNG", pnginfo=info, optimize=True)
