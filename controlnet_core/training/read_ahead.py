"""Reads the pictures and hints of coming batches while the networks compute.

Threads are enough: decoding and scaling leave Python's lock. What is read does not depend on when, so the weights are
the same to the bit as without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from .draw import DrawRows
from .examples import Examples

BATCHES = 2
"""Batches that are read ahead of the one that is trained on."""


class ReadAhead:
    """Pictures and hints of rows, read before their turn by `workers` threads, or when asked for with 0.

    part: of each batch that this process trains on.
    """

    def __init__(self, data: Examples, draw: DrawRows, batch: int, part: slice, workers: int) -> None:
        self._data, self._draw, self._batch, self._part = data, draw, batch, part
        self._pool = ThreadPoolExecutor(workers, "examples") if workers else None
        self._coming: dict[int, Future[tuple[Tensor | None, Tensor]]] = {}

    def expect(self, drawn: int, needs_picture: Callable[[int], bool]) -> None:
        """Begin to read the next batch and those behind it.

        drawn: examples drawn before. needs_picture: whether a row's picture will be asked for beside its hint.
        """
        if self._pool is None:
            return
        batches = (self._draw(self._batch, drawn + number * self._batch) for number in range(BATCHES + 1))
        rows = dict.fromkeys(row for batch in batches for row in batch[self._part])
        before = self._coming
        # What was not drawn again is dropped, so that no more than these batches are held.
        self._coming = {
            row: before.get(row) or self._pool.submit(self._read, row, with_picture=needs_picture(row)) for row in rows
        }

    def picture(self, row: int) -> Tensor:
        """(1, 3, H, W), see `Examples.pictures`. Raises the errors of reading it."""
        found = self._coming[row].result()[0] if row in self._coming else None
        return self._data.pictures([row]) if found is None else found

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, H, W), see `Examples.hints`. Raises the errors of reading them."""
        if not all(row in self._coming for row in rows):
            return self._data.hints(rows)
        return torch.cat([self._coming[row].result()[1] for row in rows])

    def close(self) -> None:
        """End the threads; what they have not begun is not read."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, row: int, *, with_picture: bool) -> tuple[Tensor | None, Tensor]:
        # The picture first: a hint in a tar is compared with its proportions.
        picture = self._data.pictures([row]) if with_picture else None
        return picture, self._data.hints([row])
