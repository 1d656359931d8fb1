"""`controlnet sweep FILE`: run a workflow for all values of one or two inputs, and save a grid and a CSV."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...nodes.sweep_grid import ASK_ABOVE
from ..execution import Cache, execute
from ..fitting import require_fit
from ..formats import to_graph
from ..graph import Graph
from ..reporting import Reporter
from ..session import Session, add_file_argument
from ..several_runs import add_run_arguments, open_runs
from ..sweep_cells import Shown, choose_shown
from ..sweeping import Sweep, plan_sweep
from ..terminal import printable
from ..validation import as_error, require_runnable

if TYPE_CHECKING:
    from ...nodes.sweep_sheet import Cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sweep`."""
    add = parser.add_argument
    add_file_argument(parser)
    add(
        "--set", metavar="NODE.INPUT=VALUES", action="append", default=[],
        help="the values of an input: 0.2..1.0/5, 1..4, or a,b (texts: a|b); one or two inputs are swept, and one with "
        "a single value is set in all cells",
    )  # fmt: skip
    add("--picture", metavar="NODE", help="the output node to show (default: the one that depends on what is swept)")
    add("--yes", action="store_true", help=f"run more than {ASK_ABOVE} cells")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run every cell with one cache: a node whose inputs stay the same, such as a loader, runs once."""
    began = time.perf_counter()
    document, session, reporter = open_runs(args)
    sweep = plan_sweep(to_graph(document, session.classes), session.classes, args.set, confirmed=args.yes)
    swept = [axis.target.rpartition(".")[0].strip() for axis in sweep.axes]
    shown = choose_shown(sweep.graph, session.classes, swept, args.picture)
    if shown.fidelity is None:
        reporter.warn(
            "the fidelity to the hint is not measured: add Control Fidelity to the workflow and choose a kind"
        )
    # All cells are checked before the first one runs.
    graphs = [_checked(sweep.graph_of(shown.graph, session.classes, cell), shown, session) for cell in sweep.cells]
    cells: list[Cell] = []
    try:
        _run_cells(graphs, sweep, shown, session, reporter, cells)
    finally:
        reporter.close()
        # What is finished is saved also after Ctrl-C, or when a cell fails.
        paths = _save(Path(session.host.output_dir), Path(document.name).stem, sweep, shown, cells)
    _print_result(args, sweep, shown, cells, paths, time.perf_counter() - began)
    return 0


def _checked(graph: Graph, shown: Shown, session: Session) -> Graph:
    """Return the graph of a cell with converted values. Raises the first problem of what the cell shows."""
    checked = require_runnable(graph, session.classes)
    needed = [shown.output, *([shown.fidelity] if shown.fidelity else [])]
    if not set(needed) <= set(checked.outputs):
        raise as_error(checked.problems)
    require_fit(checked.graph, session.classes, needed)
    return checked.graph


def _run_cells(
    graphs: list[Graph], sweep: Sweep, shown: Shown, session: Session, reporter: Reporter, cells: list[Cell]
) -> None:
    """Run the cells in order, and add each to `cells` when it is done."""
    from ...nodes.sweep_sheet import Cell, fit_picture, labels

    cache = Cache()
    for values, graph in zip(sweep.cells, graphs, strict=True):
        result = execute(graph, session.classes, outputs=shown.targets, cache=cache, on_node=reporter.on_node)
        image = result.nodes[shown.picture.node].outputs[shown.picture.slot][0]
        size = (cells[0].picture.shape[1], cells[0].picture.shape[2]) if cells else None
        picture = fit_picture(image, sweep.columns, -(-len(graphs) // sweep.columns), size)
        fidelity = float(result.nodes[shown.fidelity].outputs[0][0]) if shown.fidelity else None
        cells.append(Cell(values, picture, fidelity))
        reporter.line(f"{len(cells)}/{len(graphs)}  {', '.join(labels(sweep, cells[-1], shown.measure))}")


def _save(folder: Path, stem: str, sweep: Sweep, shown: Shown, cells: list[Cell]) -> tuple[Path, ...]:
    from ..sweep_sheet import save_sheet

    # The workflow in the picture is the user's, without the node that measures.
    return save_sheet(folder, stem, sweep, cells, shown.measure, sweep.graph) if cells else ()


def _print_result(
    args: argparse.Namespace, sweep: Sweep, shown: Shown, cells: list[Cell], paths: tuple[Path, ...], seconds: float
) -> None:
    if args.json:
        rows = [
            {**{axis.target: value for axis, value in zip(sweep.axes, cell.values, strict=True)},
             "fidelity": cell.fidelity}
            for cell in cells
        ]  # fmt: skip
        names = {"grid": str(paths[0]), "csv": str(paths[1]), "measure": shown.measure}
        print(json.dumps({"ok": True, **names, "cells": rows, "seconds": round(seconds, 3)}))
        return
    print(printable(f"{len(cells)} cells in {seconds:.1f} s: {' '.join(map(str, paths))}"))
