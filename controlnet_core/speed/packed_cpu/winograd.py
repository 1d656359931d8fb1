"""3x3 convolutions with 4 multiplications per output cell, not 9 (Winograd 1980; Lavin and Gray 2016, F(2x2, 3x3)).

Four neighbouring outputs are computed from a tile of 4 x 4 inputs:

    Y = A^T [ (G g G^T) * (B^T d B) ] A      B^T = | 1  0 -1  0 |   G = | 1    0    0  |   A^T = | 1  1  1  0 |
                                                   | 0  1  1  0 |       | 1/2  1/2  1/2|         | 0  1 -1 -1 |
                                                   | 0 -1  1  0 |       | 1/2 -1/2  1/2|
                                                   | 0  1  0 -1 |       | 0    0    1  |

where * is, for each of the 16 places in a tile, one matrix product over the channels of all tiles. The transforms of
d and Y are sums and differences; that of the filter g is computed once. Fewer terms are added than by the definition,
so that in float32 the result is closer to the exact one (`tests/unit/test_pack.py`). The price is memory: the
transformed filter is 16/9 as large.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from .kept import KeptWeights, packed_once
from .products import Geometry, linear, pack_linear
from .work_buffer import WorkBuffer

FILTER = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""G."""
SUMS = torch.float32
"""The dtype of sums and differences, whatever the dtype of the products."""
CENTRE = (1, 1)
"""The place in a tile that contributes to all four outputs with weight 1: the bias is added there."""
STRIP_BYTES = 8_000_000
"""Bytes of transformed inputs or outputs that are alive at once: they should fit into the processor's cache."""
LEAST_TILES = 16
"""With fewer tiles, reading the larger filter takes as long as the saved products."""
LEAST_WIDTH = 128
"""With fewer channels the transforms (linear in the channels) cost more than the products (quadratic) save."""
LEAST_WORK = {torch.float32: 140e6, torch.bfloat16: 280e6}
"""Multiplications of the plain convolution, per thread; with fewer, the transforms cost what they save."""
IN_BLOCKS: Geometry = ([1, 1], [1, 1], [1, 1], 1)
"""The geometry of 3x3 convolutions in residual blocks, the only one that is supported."""


@cache
def has_matrix_unit() -> bool:
    """Whether the processor multiplies whole bfloat16 matrices (AMX). Products then take so little time that the
    transforms take more than all products of the plain convolution: 1.2 to 6 times its time was measured."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def may_suit(weight: torch.Size, geometry: Geometry, dtype: torch.dtype) -> bool:
    """Whether a convolution is computed this way for some size of input."""
    if dtype == torch.bfloat16 and has_matrix_unit():
        return False
    return tuple(weight[2:]) == (3, 3) and geometry == IN_BLOCKS and min(weight[:2]) >= LEAST_WIDTH


def suits(weight: torch.Size, geometry: Geometry, size: torch.Size, dtype: torch.dtype) -> bool:
    """Whether a convolution is computed this way for an input (B, C, H, W) of this size: 3x3 with zeros around,
    of whole tiles, and large enough to gain. weight: (O, C, h, w)."""
    if not may_suit(weight, geometry, dtype):
        return False
    rows, _, height, width = size
    cells = rows * height * width
    work = cells * weight.numel() / torch.get_num_threads()
    return height % 2 == width % 2 == 0 and cells >= 4 * LEAST_TILES and work >= LEAST_WORK[dtype]


def strip(places: int, width: int, dtype: torch.dtype, tiles: tuple[int, int, int]) -> tuple[int, int]:
    """Of tiles (B, n, m), how many pictures and how many rows are computed at a time."""
    rows, tall, wide = tiles
    line = places**2 * wide * width * dtype.itemsize
    some = min(rows, max(1, STRIP_BYTES // line))
    return some, min(tall, max(1, STRIP_BYTES // (some * line), -(-LEAST_TILES // (some * wide))))


Blocks: TypeAlias = list[tuple[tuple[int, ...], torch.dtype]]
"""Shapes and dtypes in the work buffer."""


def buffers(
    places: int, step: int, widths: tuple[int, int], dtype: torch.dtype, tiles: tuple[int, int, int]
) -> tuple[Blocks, Blocks]:
    """What is held for a strip of tiles (B, n, m). First the input's transform along one direction, and the padded
    input. Then, in the place of the padded input: the transform along both directions, of one column of places; the
    products' sums along one direction, and a part of those along the other."""
    rows, count, across = tiles
    width_in, width = widths
    tall, wide = step * count + 2, step * across + 2
    upright = (places, rows, count, wide, width_in), SUMS
    return [upright, ((rows, tall, wide, width_in), SUMS)], [
        upright,
        ((places, *tiles, width_in), dtype),
        ((2, places, *tiles, width), SUMS),
        ((*tiles, width), SUMS),
    ]


class Winograd:
    """A convolution that `suits`, with its transformed filter. Inference only, on the CPU."""

    PLACES: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)
    """Along each direction of a tile, those that are not always zero."""
    STEP: ClassVar[int] = 2
    """Inputs from one tile to the next."""
    INPUTS: ClassVar[tuple[tuple[Any, int, int], ...]] = (
        (torch.sub, 0, 2), (torch.add, 1, 2), (torch.sub, 2, 1), (torch.sub, 1, 3),
    )  # fmt: skip
    """B^T along one direction: for each place, which lines of the tile are added or subtracted."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        work_buffer: WorkBuffer,
        kept: KeptWeights | None = None,
    ) -> None:
        """weight: (O, C, 3, 3), in any dtype; computed in `dtype`, with sums in float32. bias: (O,) in `dtype`.
        kept: packed weights on the disk."""
        self.dtype, self.work_buffer, self.bias = dtype, work_buffer, bias
        self.width, self.width_in = weight.shape[:2]
        side = len(self.PLACES)

        def make() -> list[Tensor]:
            return [pack_linear(place.to(dtype)) for row in _filters(weight, self.PLACES) for place in row]

        packed = packed_once(kept, weight, f"tiles {self.PLACES}", [weight.shape[:2]] * side**2, dtype, make)
        self.filters = [packed[row * side : (row + 1) * side] for row in range(side)]

    @property
    def nbytes(self) -> int:
        """Of the filter."""
        return sum(place.nbytes for row in self.filters for place in row)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W), plus the residual of that size where there is one."""
        cells = x.permute(0, 2, 3, 1)
        rows, tall, wide = x.shape[0], x.shape[2] // self.STEP, x.shape[3] // self.STEP
        made = x.new_empty(rows, tall, 2, wide, 2, self.width)
        some, count = strip(len(self.PLACES), max(self.width_in, self.width), self.dtype, (rows, tall, wide))
        strips = [(one, first) for one in range(0, rows, some) for first in range(0, tall, count)]
        for one, first in strips[:1] if x.is_meta else strips:  # all strips need the same buffer
            part = made[one : one + some, first : first + count]
            self._strip(cells[one : one + some], part, self.STEP * first)
        out = made.view(rows, 2 * tall, 2 * wide, self.width).permute(0, 3, 1, 2)
        return out if residual is None else out.add_(residual)

    def _strip(self, cells: Tensor, made: Tensor, top: int) -> None:
        """Some rows of tiles, (B, n, 2, m, 2, O), from all of the input, (B, H, W, C), read from row `top` on."""
        rows, count, _, across, _, _ = made.shape
        places, step = len(self.PLACES), self.STEP
        first, then = buffers(places, step, (self.width_in, self.width), self.dtype, (rows, count, across))
        self.work_buffer.reserve(*first)
        self.work_buffer.reserve(*then)
        if cells.is_meta:  # PyTorch 2.4 makes no views of other dtypes while operators are counted
            return
        upright, padded = self.work_buffer.take(*first)
        _pad(cells, padded, top)
        lines = [padded[:, k : k + step * count : step] for k in range(2 + step)]
        for place in range(places):
            self._into_place(lines, place, upright[place])
        # The same memory again: `upright` keeps its content, the padded input is not needed any more.
        upright, spread, sums, half = self.work_buffer.take(*then)
        lines = [upright[:, :, :, k : k + step * across : step] for k in range(2 + step)]
        for column in range(places):
            # One column at a time: a quarter of the memory, and still in the cache when the products read it.
            self._into_place(lines, column, spread)
            products = [self._product(spread[row], row, column) for row in range(places)]
            self._into_outputs(products, sums[0, column], sums[1, column], half)
        for side, places_across in enumerate(sums):
            self._into_outputs(list(places_across), made[:, :, side, :, 0], made[:, :, side, :, 1], half)

    def _product(self, tiles: Tensor, row: int, column: int) -> Tensor:
        """One place of all tiles: (B, n, m, C) -> (B, n, m, O), in the dtype of sums."""
        bias = self.bias if (row, column) == CENTRE else None
        return linear(tiles, self.filters[row][column], bias).to(SUMS)

    def _into_place(self, lines: list[Tensor], place: int, out: Tensor) -> None:
        """One place of B^T along one direction, from the lines of each tile."""
        combine, first, second = self.INPUTS[place]
        combine(lines[first], lines[second], out=out)

    @staticmethod
    def _into_outputs(places: list[Tensor], first: Tensor, second: Tensor, half: Tensor) -> None:
        """A^T along one direction: the places of each tile -> its two outputs; `half` is overwritten."""
        torch.add(torch.add(places[1], places[2], out=half), places[0], out=first)
        torch.sub(torch.sub(places[1], places[2], out=half), places[3], out=second)


class Doubled(Winograd):
    """The same behind an enlargement to twice the size by the nearest neighbour, which is never made: (B, C, H, W) ->
    (B, O, 2H, 2W).

    The two lines in the middle of each tile are then equal, the third place of B^T d is zero, and 9 products are left
    where the definition has 36.
    """

    PLACES = (0, 1, 3)
    STEP = 1
    INPUTS = ((torch.sub, 0, 1), (torch.add, 1, 1), (torch.sub, 1, 2))
    """Of the line above, the line itself, and the line below."""

    @staticmethod
    def _into_outputs(places: list[Tensor], first: Tensor, second: Tensor, half: Tensor) -> None:
        """As before; `half` is left alone."""
        torch.add(places[0], places[1], out=first)
        torch.sub(places[1], places[2], out=second)


def _pad(cells: Tensor, padded: Tensor, top: int) -> None:
    """Write the rows from `top - 1` on, with zeros where there are none, into (B, n, W + 2, C)."""
    first, last = max(top - 1, 0), min(top - 1 + padded.shape[1], cells.shape[1])
    begin = first - (top - 1)
    end = begin + last - first
    padded[:, :begin] = 0.0
    padded[:, end:] = 0.0
    padded[:, begin:end, 0] = 0.0
    padded[:, begin:end, -1] = 0.0
    padded[:, begin:end, 1:-1].copy_(cells[:, first:last])


def _filters(weight: Tensor, places: tuple[int, ...]) -> Tensor:
    """G g G^T at some places: (O, C, 3, 3) -> (n, n, O, C) float32, as one product for all filters."""
    width, width_in = weight.shape[:2]
    rows = torch.tensor([FILTER[place] for place in places], device=weight.device)
    both = torch.einsum("ai,bj->abij", rows, rows).reshape(-1, 9)
    return torch.mm(both, weight.float().reshape(-1, 9).t()).view(len(places), len(places), width, width_in)
