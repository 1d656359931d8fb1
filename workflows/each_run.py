"""`controlnet run --each`: the command over many inputs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache as keep
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import ValueRangeError
from . import overrides
from .combinations import Combinations
from .each_sources import read_sources
from .execution import Cache, RunResult
from .formats import Document, to_graph
from .graph import Graph
from .reporting import Reporter
from .row_run import RowRunner
from .session import open_session, picture_options
from .single_run import run_once


def run_rows(args: argparse.Namespace, document: Document, seeds: Sequence[int | None], reporter: Reporter) -> int:
    """Run the workflow for each combination of the sources. Raises RowsFailed at the end if a row failed."""
    began = time.perf_counter()
    if args.report is not None or args.measure:
        raise ValueRangeError("--report and --measure are for single runs: leave them out with --each")
    folder = Path(args.output)
    sources = read_sources(args.each, args.input or Path("input"), folder)
    rows = Combinations(sources.entries, seeds, paired=args.zip)
    session = open_session(args, reporter.on_step)
    session.host.input_folders = sources.folders
    session = replace(session, classes={name: _declared_once(cls) for name, cls in session.classes.items()})
    cache = Cache()

    def run_graph(graph: Graph) -> RunResult:
        return run_once(graph, session, cache, reporter, strict=args.strict)

    graph = overrides.apply_settings(to_graph(document, session.classes), session.classes, args.set)
    runner = RowRunner(graph, session, args.set, run_graph, picture_options(args))
    part = args.shard.of(range(len(rows)))
    if part:
        runner.check(rows[part[0]], strict=args.strict)
    try:
        totals = runner.run_all((rows[index] for index in part), folder, reporter.line)
    finally:
        reporter.close()
    totals.check(folder / "manifest.jsonl")
    seconds = time.perf_counter() - began
    if args.json:
        facts = {"done": totals.done, "kept": totals.kept, "busy": totals.busy, "images": totals.files}
        print(json.dumps({"ok": True, **facts, "seconds": round(seconds, 3)}))
    else:
        busy = f", {totals.busy} are being made by another process" if totals.busy else ""
        print(f"{totals.done} rows done, {totals.kept} done before{busy}, in {folder} ({seconds:.1f} s)")
    return 0


def _declared_once(cls: Any) -> type:
    """Return a node class whose inputs are asked for once: LoadImage lists the input folder each time."""

    @keep
    def inputs() -> Any:
        return cls.INPUT_TYPES()

    return type(cls.__name__, (cls,), {"INPUT_TYPES": staticmethod(inputs)})
