"""Plan a sweep: `--set NODE.INPUT=VALUES` options become one or two axes, and every cell of the grid a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..controlnet_core.errors import ValueRangeError
from ..nodes.sweep_grid import ASK_ABOVE, MAX_AXES, MAX_CELLS, Axis, SweepGrid, check_count, read_values
from .contract import read_spec
from .graph import Graph
from .overrides import apply_settings, find_node


@dataclass(frozen=True)
class Sweep(SweepGrid):
    """graph: with the values that are the same in all cells."""

    graph: Graph

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
        values = read_values(_type_of(graph, classes, setting), text, "--set")
        # The first value is tried, so that a wrong node or input is reported before the grid is counted.
        graph = apply_settings(graph, classes, [f"{target}={values[0]}"])
        if len(values) > 1:
            axes.append(Axis(target.strip(), values))
    if not 1 <= len(axes) <= MAX_AXES:
        raise ValueRangeError(
            f"{len(axes)} inputs have several values: sweep one or two, such as --set NODE.strength=0.2..1.0/5 "
            "--set NODE.mode=balanced,prompt"
        )
    check_count(axes, MAX_CELLS if confirmed else ASK_ABOVE, "give --yes")
    return Sweep(tuple(axes), graph)


def _type_of(graph: Graph, classes: Mapping[str, type], setting: str) -> str | None:
    """Return the type of the input that a setting names; None where `apply_settings` will report it."""
    name, _, key = setting.partition("=")[0].strip().rpartition(".")
    try:
        class_type = find_node(graph, name.strip()).class_type
    except ValueError:
        return None
    if class_type not in classes:
        return None
    spec = read_spec(class_type, classes[class_type]).inputs.get(key.strip())
    return None if spec is None else spec.type
