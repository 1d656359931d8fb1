"""The order in which examples are trained on: shuffled in every epoch, each batch from one bucket.

The seed and the number of examples that were drawn before decide the next batch. So a training that continues needs no
state but that number, processes that train together agree, and rows can be read before their turn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random

DrawRows = Callable[[int, int], list[int]]
"""(count, how many were drawn before) -> rows to train on."""


class EpochDraw:
    """Draws batches of rows; see `DrawRows`. buckets: rows whose pictures have the same size.

    Each bucket is gone through again and again, shuffled anew each time. An epoch has as many batches of a bucket as
    its rows fill; what is left over comes first in the next epoch. So a batch is always whole, and when an epoch ends,
    each row was drawn once for each epoch, but for those left over in its bucket.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], seed: int) -> None:
        self._buckets = [list(rows) for rows in buckets if rows]
        self._seed = seed
        # A million rows take half a second to shuffle: the orders that are in use are kept.
        self._order = lru_cache(maxsize=2 * len(self._buckets))(self._shuffle)
        self._batches = lru_cache(maxsize=2)(self._arrange)

    def __call__(self, count: int, drawn: int) -> list[int]:
        # There is a remainder only after the batch size was changed. It moves the places in all buckets alike.
        number, moved = divmod(drawn, count)
        epoch = self._epoch(number, count)
        bucket, index = self._batches(epoch, count)[number - self._before(epoch, count)]
        return [self._row(bucket, index * count + moved + place) for place in range(count)]

    def _epoch(self, number: int, count: int) -> int:
        """The epoch that a batch belongs to."""
        total = sum(map(len, self._buckets))
        # Each bucket has less than one batch left over, which bounds the epochs that can be meant.
        highest = (number + 1 + len(self._buckets)) * count // total + 2
        return bisect_right(range(highest), number, key=lambda epoch: self._before(epoch, count)) - 1

    def _before(self, epoch: int, count: int) -> int:
        """Number of batches before an epoch."""
        return sum(epoch * len(rows) // count for rows in self._buckets)

    def _arrange(self, epoch: int, count: int) -> list[tuple[int, int]]:
        """(bucket, which of its batches) in the order of the epoch."""
        following = [epoch * len(rows) // count for rows in self._buckets]
        ends = [(epoch + 1) * len(rows) // count for rows in self._buckets]
        turns = [bucket for bucket, end in enumerate(ends) for _ in range(end - following[bucket])]
        Random(f"{self._seed} {epoch}").shuffle(turns)
        found = []
        for bucket in turns:
            found.append((bucket, following[bucket]))
            following[bucket] += 1
        return found

    def _row(self, bucket: int, place: int) -> int:
        turn, index = divmod(place, len(self._buckets[bucket]))
        return self._order(bucket, turn)[index]

    def _shuffle(self, bucket: int, turn: int) -> list[int]:
        rows = list(self._buckets[bucket])
        Random(f"{self._seed} {bucket} {turn}").shuffle(rows)
        return rows
