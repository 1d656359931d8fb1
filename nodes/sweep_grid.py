"""The values of a sweep: one or two axes, the cells of their grid, and how values are written.

Shared by the node Control Sweep and the command `controlnet sweep`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..controlnet_core.errors import ValueRangeError, WorkflowError

ASK_ABOVE = 100
"""Number of cells above which a sweep has to be confirmed."""
MAX_CELLS = 10_000
MAX_AXES = 2
_RANGE = re.compile(r"\s*(\S+?)\.\.([^\s/]+)(?:/(\d{1,18}))?\s*")


@dataclass(frozen=True)
class Axis:
    """One input that is swept. target: its name, such as "NODE.INPUT". values: as texts."""

    target: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the input."""
        return self.target.rpartition(".")[2]


@dataclass(frozen=True)
class SweepGrid:
    """axes: one or two; the last one runs along a row."""

    axes: tuple[Axis, ...]

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The values of each cell, row by row."""
        return list(itertools.product(*(axis.values for axis in self.axes)))

    @property
    def columns(self) -> int:
        """Number of cells in a row of the grid."""
        count = len(self.axes[-1].values)
        # A long single axis becomes a square.
        return count if len(self.axes) == MAX_AXES or count <= 6 else math.ceil(math.sqrt(count))


def check_count(axes: Sequence[Axis], limit: int, way_out: str) -> None:
    """Raise ValueRangeError, with the number of cells, for more than `limit` or MAX_CELLS of them.

    way_out: what allows more than `limit`, in words.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_CELLS:
        raise ValueRangeError(f"this sweep has {count} cells, at most {MAX_CELLS} are possible: give fewer values")
    if count > limit:
        raise ValueRangeError(
            f"this sweep has {count} cells, more than {limit}: {way_out} to run them all, or fewer values"
        )


def read_values(kind: str | None, text: str, where: str) -> tuple[str, ...]:
    """Return the values of an axis as texts, each once.

    kind: the type of the input: "INT", "FLOAT", "STRING" or any other. "0.2..1.0/5" are 5 numbers with equal distances,
    "1..4" all whole numbers; other values are separated by commas, those of a text, which may hold commas, by |.
    where: what errors begin with. Raises WorkflowError for a range that cannot be read, ValueRangeError for one with
    too many values.
    """
    if kind in ("INT", "FLOAT") and (match := _RANGE.fullmatch(text)):
        return _range(where, text, *match.groups(), whole=kind == "INT")
    return tuple(dict.fromkeys(part.strip() for part in text.split("|" if kind == "STRING" else ",")))


def _range(where: str, text: str, first: str, last: str, given: str | None, *, whole: bool) -> tuple[str, ...]:
    try:
        # Seeds have 64 bits, more than a float keeps.
        low, high = (int(end) if whole else float(end) for end in (first, last))
        if given is None and not whole:
            raise ValueError("a range of fractions needs a count")
        count = int(high - low) + 1 if given is None else int(given)
    except ValueError:
        raise WorkflowError(
            f"{where}: {text.strip()[:40]} is no range: expected for instance 0.2..1.0/5, or 1..4 for whole numbers"
        ) from None
    if count < 1 or not (whole or (math.isfinite(low) and math.isfinite(high))):
        raise WorkflowError(f"{where}: {text.strip()[:40]} is no range: expected two numbers and a count from 1")
    if count > MAX_CELLS:
        raise ValueRangeError(f"this sweep has {count} cells or more, at most {MAX_CELLS} are possible")
    steps = max(count - 1, 1)
    if whole:
        # Rounded to the nearest whole number; a range with fewer of them than its count has each once.
        return tuple(dict.fromkeys(str(low + (2 * (high - low) * i + steps) // (2 * steps)) for i in range(count)))
    return tuple(dict.fromkeys(f"{low + (high - low) * i / steps:.6g}" for i in range(count)))
