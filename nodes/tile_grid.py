"""The tiles of a picture, and the weights with which they are put together again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..controlnet_core.errors import ValueRangeError

CELL = 8
"""Pixels of a latent cell: tiles begin and end between two cells."""


@dataclass(frozen=True)
class TileGrid:
    """Overlapping tiles of one size that cover a picture of (height, width) pixels, all multiples of `CELL`.

    tile: (height, width) of each tile. rows, columns: where tiles begin, from 0 to the last that fits. overlap: pixels
    over which two tiles are faded into each other; they share as many or more.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    overlap: int

    @classmethod
    def cover(cls, size: tuple[int, int], tile: int, overlap: int) -> TileGrid:
        """The fewest tiles of `tile` x `tile` pixels that share `overlap` pixels or more, evenly spaced.

        A side that is shorter than a tile shortens the tile. Raises ValueRangeError for an overlap above half a tile.
        """
        if overlap > tile // 2:
            raise ValueRangeError(f"overlap is {overlap} and tile_size {tile}: use at most half of it, {tile // 2}")
        rows, columns = (_starts(side, tile, overlap) for side in size)
        return cls(size, (min(tile, size[0]), min(tile, size[1])), rows, columns, overlap)

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """The numbers (row, column) of all tiles, row by row."""
        return list(product(range(len(self.rows)), range(len(self.columns))))

    def weights(self, row: int, column: int) -> Tensor:
        """(height, width) in [0, 1]: the share of a tile in the picture. Those of all tiles add up to 1 everywhere.

        Pixels of one tile alone have the weight 1 exactly, so they are copied bit for bit.
        """
        vertical = _share(self.rows, row, self.tile[0], self.overlap)
        return vertical[:, None] * _share(self.columns, column, self.tile[1], self.overlap)


def _starts(side: int, tile: int, overlap: int) -> tuple[int, ...]:
    if side <= tile:
        return (0,)
    count = -(-(side - overlap) // (tile - overlap))
    # Evenly spaced and of one size: a narrow last tile would show the model too little, and what was prepared for one
    # size of latent serves all tiles.
    return tuple((side - tile) * i // (count - 1) // CELL * CELL for i in range(count))


def _share(starts: tuple[int, ...], number: int, length: int, overlap: int) -> Tensor:
    """(length,): 0 to 1 at the border with the tile before, 1 to 0 at the border with the tile after."""
    at = torch.arange(length) + (starts[number] + 0.5)
    share = torch.ones(length) if number == 0 else _rise(at, starts[number - 1], starts[number], length, overlap)
    if number + 1 < len(starts):
        share = share - _rise(at, starts[number], starts[number + 1], length, overlap)
    return share


def _rise(at: Tensor, before: int, after: int, length: int, overlap: int) -> Tensor:
    """From 0 to 1 over `overlap` pixels, around the middle of what two tiles share. before, after: where they begin."""
    # Never wider than a step from tile to tile, so that the rises at both ends of a tile do not meet.
    width = max(1, min(overlap, after - before))
    middle = (before + length + after) / 2
    return ((at - middle) / width + 0.5).clamp(0.0, 1.0)
