"""`--shard 3/16`: one part of a list, so that several processes or machines share the work."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1. The default is everything."""

    number: int = 1
    count: int = 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this part. All parts together are the list, each item once; their lengths differ by one at most."""
        # One run of neighbours, not every n-th item: neighbours often share a prompt or a picture, which is kept.
        start, end = (len(items) * number // self.count for number in (self.number - 1, self.number))
        return items[start:end]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def shard_argument(text: str) -> Shard:
    """Return the shard of "3/16", for the type of an argument."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return Shard(int(match[1]), int(match[2]))
    raise argparse.ArgumentTypeError(f"{text} is no part of a whole: give K/N with K from 1 to N, such as 3/16")


def add_shard_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --shard. what: the plural noun for the parts of the whole in the help text."""
    parser.add_argument(
        "--shard", metavar="K/N", type=shard_argument, default=Shard(),
        help=f"make only the K-th of N equal parts of the {what}, such as 3/16",
    )  # fmt: skip
