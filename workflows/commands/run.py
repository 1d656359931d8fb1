"""`controlnet run FILE`: run a workflow and say where its pictures are."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import overrides
from ..bundled import find_workflow
from ..destinations import check_file, check_folder
from ..execution import Cache, RunResult, execute
from ..fitting import require_fit
from ..formats import read_document, to_graph
from ..graph import Graph
from ..reporting import Reporter
from ..run_reports import report_ending, tell_reports
from ..session import (
    Session,
    add_device_arguments,
    add_folder_arguments,
    add_memory_arguments,
    add_shortcut_arguments,
    add_strict_argument,
    open_session,
)
from ..terminal import printable
from ..validation import require_runnable

if TYPE_CHECKING:
    from ...controlnet_core.control.report import RunReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.add_argument("file", metavar="FILE", help="a workflow .json, a picture saved with one, or a bundled name")
    parser.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        action="append",
        default=[],
        help="change a value; NODE is an id, a title or a class (may be repeated)",
    )
    parser.add_argument("--seeds", metavar="1..8", help="run once for each seed: 7, 1..8 or 1,4,9")
    add_folder_arguments(parser)
    add_strict_argument(parser)
    add_device_arguments(parser)
    add_memory_arguments(parser)
    add_shortcut_arguments(parser)
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="what ran, and what each block added at each step: a .json or a .png; its folder is made if need be",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the last line")


def run(args: argparse.Namespace) -> int:
    """Run the workflow once, or once for each seed, keeping unchanged nodes in between."""
    began = time.perf_counter()
    document = read_document(find_workflow(args.file))  # before torch is imported: bad files answer at once
    seeds = overrides.parse_seeds(args.seeds) if args.seeds is not None else (None,)
    reporter = Reporter(quiet=args.quiet)
    _check_destinations(args)
    measured: list[dict[str, float]] = []
    reports: list[RunReport] = []

    def on_measured(error: float, seconds: float, exact: float) -> None:
        measured.append({"error": error, "seconds": seconds, "exact_seconds": exact})

    session = open_session(args, reporter.on_step)
    if args.measure:
        session.host.on_measured = on_measured
    session.host.on_report, session.host.observe = reports.append, args.report is not None
    session.host.on_note = reporter.line
    graph = overrides.apply_settings(to_graph(document, session.classes), session.classes, args.set)
    cache = Cache()
    rows = []
    try:
        for seed in seeds:
            seeded = graph if seed is None else overrides.with_seed(graph, session.classes, seed)
            if len(seeds) > 1:
                reporter.line(f"seed {seed}")
            checked = require_runnable(seeded, session.classes, strict=args.strict)
            require_fit(checked.graph, session.classes, checked.outputs)
            for problem in checked.problems:
                reporter.warn(f"{problem.message} (what needs it is skipped)")
            result = execute(
                checked.graph, session.classes, outputs=checked.outputs, cache=cache, on_node=reporter.on_node
            )
            rows.append(_row(seed, result, seeded, session))
    finally:
        reporter.close()
    tell_reports(reports, args.report, reporter)
    _tell(args, rows, measured, time.perf_counter() - began)
    return 0


def _check_destinations(args: argparse.Namespace) -> None:
    """Raise ValueRangeError for an --output or a --report that cannot be written."""
    check_folder("--output", Path(args.output))
    if args.report is not None:
        report_ending(args.report)
        check_file("--report", Path(args.report))


def _row(seed: int | None, result: RunResult, graph: Graph, session: Session) -> dict[str, Any]:
    saved = [entry for entry in result.ui("images") if entry.get("type") == "output"]
    folder = Path(session.host.output_dir)
    return {
        "seed": seed,
        "images": [str(folder / entry.get("subfolder", "") / entry["filename"]) for entry in saved],
        "text": [str(entry) for entry in result.ui("text")],
        "executed": list(result.executed),
        "nodes": len(result.nodes),
        "seconds": round(result.seconds, 3),
    }


def _tell(
    args: argparse.Namespace, rows: list[dict[str, Any]], measured: list[dict[str, float]], seconds: float
) -> None:
    images = [image for row in rows for image in row["images"]]
    if args.json:
        measures = {"measured": measured} if args.measure else {}
        print(json.dumps({"ok": True, "images": images, "runs": rows, "seconds": round(seconds, 3), **measures}))
        return
    for row in rows:
        for text in row["text"]:
            print(printable(text))
    for m in measured:
        print(
            f"latent error {m['error']:.2%} against the exact run; sampling takes {m['seconds']:.2f} s, exactly "
            f"{m['exact_seconds']:.2f} s, once weights are packed and all is prepared"
        )
    print(f"{_counted(images)} in {seconds:.1f} s{': ' if images else ''}{' '.join(images)}")


def _counted(images: list[str]) -> str:
    return {0: "done, no picture saved,", 1: "saved 1 picture"}.get(len(images), f"saved {len(images)} pictures")
