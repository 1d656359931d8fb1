"""Plan a sweep: `--set NODE.INPUT=VALUES` options become one or two axes, and every cell of the grid a graph."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..controlnet_core.errors import ValueRangeError, WorkflowError
from .contract import InputSpec, read_spec
from .graph import Graph
from .overrides import apply_settings, find_node

ASK_ABOVE = 100
"""Number of cells above which a sweep has to be confirmed."""
MAX_CELLS = 10_000
MAX_AXES = 2
_RANGE = re.compile(r"\s*(\S+?)\.\.([^\s/]+)(?:/(\d{1,18}))?\s*")


@dataclass(frozen=True)
class Axis:
    """One swept value. target: "NODE.INPUT" as the user wrote it. values: as texts, at least two."""

    target: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the input."""
        return self.target.rpartition(".")[2]


@dataclass(frozen=True)
class Sweep:
    """graph: with the values that are the same in all cells. axes: one or two; the last one runs along a row."""

    graph: Graph
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

    def graph_of(self, graph: Graph, classes: Mapping[str, type], cell: Sequence[str]) -> Graph:
        """Return this graph with the values of a cell."""
        settings = [f"{axis.target}={value}" for axis, value in zip(self.axes, cell, strict=True)]
        return apply_settings(graph, classes, settings)


def plan_sweep(graph: Graph, classes: Mapping[str, type], settings: Sequence[str], *, confirmed: bool) -> Sweep:
    """Return the sweep of these "NODE.INPUT=VALUES" settings; one with a single value is set in all cells.

    confirmed: whether more than ASK_ABOVE cells may run. Raises WorkflowError for settings that do not fit the graph,
    ValueRangeError where nothing or too much is swept, with the number of cells.
    """
    axes = []
    for setting in settings:
        target, _, text = setting.partition("=")
        values = read_values(_input_of(graph, classes, setting), text)
        # The first value is tried, so that a wrong node or input is reported before the grid is counted.
        graph = apply_settings(graph, classes, [f"{target}={values[0]}"])
        if len(values) > 1:
            axes.append(Axis(target.strip(), values))
    if not 1 <= len(axes) <= MAX_AXES:
        raise ValueRangeError(
            f"{len(axes)} inputs have several values: sweep one or two, such as --set NODE.strength=0.2..1.0/5 "
            "--set NODE.mode=balanced,prompt"
        )
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_CELLS:
        raise ValueRangeError(f"this sweep has {count} cells, at most {MAX_CELLS} are possible: give fewer values")
    if count > ASK_ABOVE and not confirmed:
        raise ValueRangeError(
            f"this sweep has {count} cells, more than {ASK_ABOVE}: give --yes to run them all, or fewer values"
        )
    return Sweep(graph, tuple(axes))


def _input_of(graph: Graph, classes: Mapping[str, type], setting: str) -> InputSpec | None:
    """Return the declaration of the input that a setting names; None where `apply_settings` will report it."""
    name, _, key = setting.partition("=")[0].strip().rpartition(".")
    try:
        class_type = find_node(graph, name.strip()).class_type
    except ValueError:
        return None
    if class_type not in classes:
        return None
    return read_spec(class_type, classes[class_type]).inputs.get(key.strip())


def read_values(spec: InputSpec | None, text: str) -> tuple[str, ...]:
    """Return the values of an axis as texts, each once.

    "0.2..1.0/5" are 5 numbers with equal distances, "1..4" all whole numbers; other values are separated by commas,
    those of a text, which may hold commas, by |. Raises WorkflowError for a range that cannot be read, ValueRangeError
    for one with too many values.
    """
    if spec is not None and spec.type in ("INT", "FLOAT") and (match := _RANGE.fullmatch(text)):
        return _range(text, *match.groups(), whole=spec.type == "INT")
    separator = "|" if spec is not None and spec.type == "STRING" else ","
    return tuple(dict.fromkeys(part.strip() for part in text.split(separator)))


def _range(text: str, first: str, last: str, given: str | None, *, whole: bool) -> tuple[str, ...]:
    try:
        # Seeds have 64 bits, more than a float keeps.
        low, high = (int(end) if whole else float(end) for end in (first, last))
        if given is None and not whole:
            raise ValueError("a range of fractions needs a count")
        count = int(high - low) + 1 if given is None else int(given)
    except ValueError:
        raise WorkflowError(
            f"--set: {text.strip()[:40]} is no range: expected for instance 0.2..1.0/5, or 1..4 for whole numbers"
        ) from None
    if count < 1 or not (whole or (math.isfinite(low) and math.isfinite(high))):
        raise WorkflowError(f"--set: {text.strip()[:40]} is no range: expected two numbers and a count from 1")
    if count > MAX_CELLS:
        raise ValueRangeError(f"this sweep has {count} cells or more, at most {MAX_CELLS} are possible")
    steps = max(count - 1, 1)
    if whole:
        # Rounded to the nearest whole number; a range with fewer of them than its count has each once.
        return tuple(dict.fromkeys(str(low + (2 * (high - low) * i + steps) // (2 * steps)) for i in range(count)))
    return tuple(dict.fromkeys(f"{low + (high - low) * i / steps:.6g}" for i in range(count)))
