"""`controlnet tune FILE --target 0.8`: find the smallest strength at which the picture follows its hint so well."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from ...controlnet_core.analysis.target_strength import TargetStrength, find_strength
from ..execution import Cache, execute
from ..fitting import require_fit
from ..formats import to_graph
from ..graph import Graph
from ..session import Session, add_file_argument
from ..several_runs import add_run_arguments, open_runs
from ..terminal import printable
from ..tuning import Tuning, plan_tuning
from ..validation import require_runnable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tune`."""
    add = parser.add_argument
    add_file_argument(parser)
    add("--target", type=float, default=0.8, help="fidelity to the hint, above 0 and at most 1 (default: 0.8)")
    add("--node", metavar="NODE", help="the node whose strength is tried (default: the only one with a strength)")
    add(
        "--runs",
        type=int,
        default=3,
        help="at most so many full runs, after short ones with half of the steps (default: 3)",
    )
    add("--picture", metavar="NODE", help="the output node to measure (default: the one that depends on the strength)")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Search, save the picture of the strength that was found, and a plot of the search. Models are loaded once."""
    began = time.perf_counter()
    document, session, reporter = open_runs(args)
    graph = to_graph(document, session.classes)
    tuning = plan_tuning(graph, session.classes, args.node, args.picture)
    # One cache for all runs: models, prompts and the hint are made once.
    cache = Cache()

    def measure(strength: float, steps: int) -> float:
        checked = _checked(tuning.graph_of(strength, steps), tuning, session)
        result = execute(
            checked, session.classes, outputs=tuning.shown.targets, cache=cache, on_node=reporter.on_node
        )  # fmt: skip
        fidelity = float(result.nodes[tuning.fidelity].outputs[0][0])
        reporter.line(f"strength {strength:.2f}, {steps} steps: {tuning.shown.measure} {fidelity:.3f}")
        return fidelity

    try:
        found = find_strength(measure, args.target, tuning.steps, start=tuning.start, full_runs=args.runs)
        paths = _save(session, Path(document.name).stem, graph, tuning, found, cache)
    finally:
        reporter.close()
    _print_result(args, tuning, found, paths, time.perf_counter() - began)
    return 0


def _checked(graph: Graph, tuning: Tuning, session: Session) -> Graph:
    checked = require_runnable(graph, session.classes)
    require_fit(checked.graph, session.classes, tuning.shown.targets)
    return checked.graph


def _save(session: Session, stem: str, graph: Graph, tuning: Tuning, found: TargetStrength, cache: Cache) -> list[Path]:
    """Save what the workflow saves with the strength that was found, and the plot. Returns the files, the plot last."""
    from ...controlnet_core.analysis.charts import draw_target_strength
    from ...nodes.pictures import save_pictures, to_image

    folder = Path(session.host.output_dir)
    # The best run may not be the last one, so its nodes run again where the cache has lost them.
    final = require_runnable(tuning.graph_of(found.best.strength, tuning.steps, graph), session.classes).graph
    result = execute(final, session.classes, outputs=[tuning.shown.output], cache=cache)
    saved = [entry for entry in result.ui("images") if entry["type"] == "output"]
    saved += save_pictures(folder, f"{stem}_tune", to_image(draw_target_strength(found, tuning.shown.measure)), {}, {})
    return [folder / entry["subfolder"] / entry["filename"] for entry in saved]


def _print_result(
    args: argparse.Namespace, tuning: Tuning, found: TargetStrength, paths: list[Path], seconds: float
) -> None:
    best, before = found.best, found.before
    if args.json:
        row = {
            "ok": True, "reached": found.reached, "strength": round(best.strength, 4), "fidelity": best.fidelity,
            "before": asdict(before), "target": found.target, "measure": tuning.shown.measure,
            "short": [asdict(trial) for trial in found.short], "full": [asdict(trial) for trial in found.full],
            "files": [str(path) for path in paths], "seconds": round(seconds, 3),
        }  # fmt: skip
        print(json.dumps(row))
        return
    name, measure = tuning.strength.label, tuning.shown.measure
    said = f"strength {best.strength:.2f} of {name} gives {measure} {best.fidelity:.3f}"
    if not found.reached:
        said = f"the target {found.target:g} was not reached: {said}, the best that was found"
    earlier = f"before, strength {before.strength:.2f}: {before.fidelity:.3f}"
    print(printable(f"{said} ({earlier}); {seconds:.1f} s: {' '.join(map(str, paths))}"))
