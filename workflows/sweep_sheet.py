"""The result of a sweep as files: a grid of labelled pictures, and a CSV with a row for each cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..nodes.pictures import save_pictures
from ..nodes.sweep_grid import SweepGrid
from ..nodes.sweep_sheet import Cell, draw_sheet, write_table
from .destinations import complete_file
from .graph import Graph


def save_sheet(
    folder: Path, stem: str, sweep: SweepGrid, cells: Sequence[Cell], measure: str, graph: Graph
) -> tuple[Path, Path]:
    """Write the grid as stem_sweep_00001_.png, with the workflow inside, and the CSV beside it. Returns both paths."""
    extra = {} if graph.workflow is None else {"workflow": graph.workflow}
    with torch.inference_mode():
        sheet = draw_sheet(sweep, cells, measure)
    saved = save_pictures(folder, f"{stem}_sweep", sheet, graph.to_api(), extra)[0]
    grid = folder / saved["subfolder"] / saved["filename"]
    table = grid.with_suffix(".csv")
    with complete_file(table) as temporary:
        # As bytes, so that lines end alike on every system.
        temporary.write_bytes(write_table(sweep, cells, measure).encode())
    return grid, table
