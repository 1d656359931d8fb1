"""What a sweep made: a grid of labelled pictures, and a table with a row for each cell.

Shared by the node Control Sweep and the command `controlnet sweep`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from .fields import MAX_SIDE
from .grid import join_cells, label_cell, label_height, resize_batch
from .sweep_grid import SweepGrid

MEASURES: Mapping[str, str] = MappingProxyType({"segmentation": "IoU", "depth": "score", "normal": "score"})
"""The measure of a kind of hint; F1 for all kinds of edges."""


@dataclass(frozen=True)
class Cell:
    """A finished cell. picture: (3, h, w) in [0, 1]. fidelity: from 0 to 1, None where it was not measured."""

    values: tuple[str, ...]
    picture: Tensor
    fidelity: float | None


def fit_picture(image: Tensor, columns: int, rows: int, size: tuple[int, int] | None) -> Tensor:
    """The first picture of IMAGE (B, H, W, C) -> (3, h, w) of the size of the other cells (height, width).

    size: None for the first cell, which keeps its size unless the grid would be larger than a picture can be.
    """
    if size is None:
        height, width = image.shape[1:3]
        # Half of the height at most is for labels.
        scale = min(1.0, MAX_SIDE / (columns * width), MAX_SIDE / (2 * rows * height))
        size = (max(1, int(height * scale)), max(1, int(width * scale)))
    return resize_batch(image[:1].detach().cpu(), size)[0]


def draw_sheet(sweep: SweepGrid, cells: Sequence[Cell], measure: str) -> Tensor:
    """IMAGE (1, H, W, 3): the pictures, under each the swept values and the fidelity, one a line."""
    height = label_height(cells[0].picture.shape[1])
    tiles = []
    for cell in cells:
        tile = cell.picture
        for text in labels(sweep, cell, measure):
            # Each call adds a strip below.
            tile = label_cell(tile, shorten(text, tile.shape[2], height), height).movedim(-1, 0)
        tiles.append(tile.movedim(0, -1))
    return join_cells(tiles, min(sweep.columns, len(tiles)))[None]


def labels(sweep: SweepGrid, cell: Cell, measure: str) -> list[str]:
    """The lines under a picture. A sweep that measures has a line for it in every cell."""
    lines = [f"{axis.name} {value}" for axis, value in zip(sweep.axes, cell.values, strict=True)]
    return [*lines, *([f"{measure} {cell.fidelity:.2f}"] if cell.fidelity is not None else [])]


def shorten(text: str, width: int, height: int) -> str:
    """A text that fits into a label of this size in pixels, with dots in its middle where it was cut."""
    # Letters of the built-in font are about half as wide as high.
    room = max(4, int(width / (0.55 * (height - 4))))
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room - 2 - room // 3]}..{text[-(room // 3) :]}"


def write_table(sweep: SweepGrid, cells: Sequence[Cell], measure: str) -> str:
    """The cells as CSV: the swept values, the fidelity, and what it is measured by."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(axis.target for axis in sweep.axes), "fidelity", "measure"])
    for cell in cells:
        score = "" if cell.fidelity is None else f"{cell.fidelity:.4f}"
        writer.writerow([*cell.values, score, measure if score else ""])
    return text.getvalue()
