"""`controlnet run FILE`: run a workflow and print where its pictures are."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...controlnet_core.errors import ValueRangeError
from .. import overrides
from ..bundled import find_workflow
from ..destinations import OVERWRITE_HELP, check_file, check_folder, check_replacement
from ..execution import Cache, RunResult
from ..formats import Document, read_document, to_graph
from ..paths import path_argument
from ..ray_pool import add_ray_arguments
from ..reporting import Reporter
from ..run_reports import is_report, report_ending, tell_reports
from ..session import (
    Session,
    add_comfyui_argument,
    add_device_arguments,
    add_file_argument,
    add_folder_arguments,
    add_memory_arguments,
    add_output_arguments,
    add_shortcut_arguments,
    add_strict_argument,
    open_session,
)
from ..shards import add_shard_argument
from ..single_run import run_once
from ..terminal import printable

if TYPE_CHECKING:
    from ...controlnet_core.control.report import RunReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run`."""
    add = parser.add_argument
    add_file_argument(parser)
    add(
        "--set", metavar="NODE.INPUT=VALUE", action="append", default=[],
        help="change a value; NODE is an id, a title or a class (may be repeated)",
    )  # fmt: skip
    add("--seeds", metavar="1..8", help="run once for each seed: 7, 1..8 or 1,4,9")
    add(
        "--each", metavar="NODE.INPUT=SOURCE", action="append", default=[],
        help="run once for each picture of a folder, line of a .txt, or row of a .jsonl or .csv (FILE:COLUMN); several "
        "sources (and seeds) are combined",
    )  # fmt: skip
    add("--zip", action="store_true", help="with --each: pair the sources entry by entry instead of combining them")
    add_shard_argument(parser, "runs of --each")
    add_ray_arguments(parser, "runs of --each")
    add_folder_arguments(parser)
    add_strict_argument(parser)
    add_comfyui_argument(parser)
    add_device_arguments(parser)
    add_memory_arguments(parser)
    add_shortcut_arguments(parser)
    add(
        "--report", metavar="FILE", type=path_argument,
        help="write what ran, and what each block added at each step, into a .json or a .png file",
    )  # fmt: skip
    add("--overwrite", action="store_true", help=f"let --report {OVERWRITE_HELP}")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the workflow once, or once for each seed or row. Nodes that do not change between seeds run once."""
    began = time.perf_counter()
    # Read the file before torch is imported: a bad file is reported at once.
    document = read_document(find_workflow(args.file))
    seeds = overrides.parse_seeds(args.seeds) if args.seeds is not None else (None,)
    reporter = Reporter(quiet=args.quiet, each_node=not args.each)
    _check_destinations(args, document)
    if args.each:
        # Imported here: the sources of rows need numpy.
        from ..each_run import run_rows

        return run_rows(args, document, seeds, reporter)
    if args.zip or args.shard.count > 1 or args.ray is not None:
        raise ValueRangeError("--zip, --shard and --ray are for the runs of --each: leave them out, or add --each")
    if args.comfyui is not None:
        from ..comfyui_run import run_seeds

        results, session = run_seeds(args, document, seeds, reporter)
        _print_result(args, [_row(seed, result, session) for seed, result in results], [], time.perf_counter() - began)
        return 0
    measured: list[dict[str, float]] = []
    reports: list[RunReport] = []

    def on_measured(error: float, seconds: float, exact: float) -> None:
        measured.append({"error": error, "seconds": seconds, "exact_seconds": exact})

    session = open_session(args, reporter.on_step)
    if args.measure:
        # Measuring samples twice more, so it is only done on request.
        session.host.on_measured = on_measured
    # Measuring what each block adds costs time on a GPU, so only with --report.
    session.host.on_report, session.host.observe = reports.append, args.report is not None
    session.host.on_note = reporter.line
    graph = overrides.apply_settings(to_graph(document, session.classes), session.classes, args.set)
    # One cache for all seeds: text encoding and hints run once.
    cache = Cache()
    rows = []
    try:
        for seed in seeds:
            if len(seeds) > 1:
                reporter.line(f"seed {seed}")
            seeded = graph if seed is None else overrides.with_seed(graph, session.classes, seed)
            result = run_once(seeded, session, cache, reporter, strict=args.strict)
            rows.append(_row(seed, result, session))
    finally:
        reporter.close()
    tell_reports(reports, args.report, reporter)
    _print_result(args, rows, measured, time.perf_counter() - began)
    return 0


def _check_destinations(args: argparse.Namespace, document: Document) -> None:
    """Raise ValueRangeError for an --output or a --report that cannot be written, or must not."""
    # Checked before the models are loaded: an hour of sampling must not end with an error.
    check_folder("--output", Path(args.output))
    if args.report is not None:
        report_ending(args.report)
        check_file("--report", args.report)
        pictures = (Path(args.input or "input", name) for name in _texts((document.prompt, document.workflow)))
        inputs = [Path(document.name), *pictures]
        check_replacement("--report", args.report, inputs, is_report, overwrite=args.overwrite)


def _texts(data: Any) -> Iterator[str]:
    """Yield all texts of a workflow that could name a picture."""
    pending = [data]
    # Without recursion, because the file may be nested deeply.
    while pending:
        item = pending.pop()
        if isinstance(item, str) and item.lower().endswith((".png", ".json")):
            yield item
        elif isinstance(item, (list, tuple, dict)):
            pending += item.values() if isinstance(item, dict) else item


def _row(seed: int | None, result: RunResult, session: Session) -> dict[str, Any]:
    # Previews are of type "temp": they are not what the workflow was run for.
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


def _print_result(
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
    print(f"{_count_images(images)} in {seconds:.1f} s{': ' if images else ''}{' '.join(images)}")


def _count_images(images: list[str]) -> str:
    return {0: "done, no picture saved,", 1: "saved 1 picture"}.get(len(images), f"saved {len(images)} pictures")
