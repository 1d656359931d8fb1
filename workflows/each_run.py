"""`controlnet run --each`: the command over many inputs.

`Combinations` gives the rows, `RowLog` decides which of them are to be made and writes the manifest, and `RowRunner`
makes one. Serially this process calls the runner; with --ray the processes of Ray do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache as keep
from functools import partial
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import ValueRangeError
from . import overrides
from .combinations import Combinations, Row
from .each_sources import read_sources
from .execution import Cache, RunResult
from .formats import Document, to_graph
from .graph import Graph
from .ray_pool import LostWorker, ray_pool
from .reporting import Reporter
from .row_key import RowKeys
from .row_log import Made, RowLog, Task
from .row_run import RowRunner
from .session import open_session, picture_options
from .single_run import run_once


def run_rows(args: argparse.Namespace, document: Document, seeds: Sequence[int | None], reporter: Reporter) -> int:
    """Run the workflow for each combination of the sources. Raises RowsFailed at the end if a row failed."""
    began = time.perf_counter()
    if args.report is not None or args.measure:
        raise ValueRangeError("--report and --measure are for single runs: leave them out with --each")
    folder = Path(args.output)
    sources = read_sources(args.each, args.input or Path("input"), folder, reporter.warn)
    rows = Combinations(sources.entries, seeds, paired=args.zip)
    part = args.shard.of(range(len(rows)))
    with ray_pool(args) as pool:
        # With Ray, this process makes no picture: it may stand on a machine without a GPU.
        local = args if pool is None else argparse.Namespace(**{**vars(args), "device": "cpu"})
        runner = open_runner(local, document, sources.folders, reporter)
        if part:
            runner.check(rows[part[0]], strict=args.strict)
            check_set_once(runner, rows[part[0]], args.set)
        log = RowLog(folder, args.set, reporter.line)
        tasks = log.waiting((rows[index] for index in part), runner.key)
        try:
            if pool is None:
                for task in tasks:
                    log.record(task, runner.make(task, folder))
            else:
                for task, made in pool.run(partial(_row_maker, args, document, sources.folders), tasks):
                    made = Made(error=made) if isinstance(made, LostWorker) else made
                    for warning in made.warnings:
                        reporter.warn(warning)
                    log.record(task, made)
        finally:
            log.close()
            reporter.close()
    log.totals.check(log.manifest.path)
    _print_result(args, log, time.perf_counter() - began)
    return 0


def check_set_once(runner: RowRunner, row: Row, settings: Sequence[str]) -> None:
    """Raise ValueRangeError for an input that --each varies and that --set or --seeds sets too: one would be lost."""
    varied = runner.varied(runner.graph, row)
    for setting in settings:
        target = setting.partition("=")[0]
        node, _, name = target.rpartition(".")
        if (overrides.find_node(runner.graph, node.strip()).id, name.strip()) in varied:
            raise ValueRangeError(f"--set {target} and --each set the same input: leave one of them out")
    if row.seed is not None and (seeds := [name for _, name in varied if name in overrides.SEED_INPUTS]):
        raise ValueRangeError(f"--seeds and --each set the same input {seeds[0]}: leave one of them out")


def open_runner(
    args: argparse.Namespace, document: Document, folders: Mapping[str, Path], reporter: Reporter
) -> RowRunner:
    """Return what makes rows of a workflow in this process. folders: see `Sources`. Imports torch."""
    if args.comfyui is not None:
        from .comfyui_rows import open_comfy_rows

        return open_comfy_rows(args, document, folders, reporter)
    session = open_session(args, reporter.on_step)
    session.host.input_folders = folders
    session = replace(session, classes={name: _declared_once(cls) for name, cls in session.classes.items()})
    # One cache for all rows: models are loaded once.
    cache = Cache()

    def run_graph(graph: Graph) -> RunResult:
        return run_once(graph, session, cache, reporter, strict=args.strict)

    graph = overrides.apply_settings(to_graph(document, session.classes), session.classes, args.set)
    keys = RowKeys(session.host, session.classes, picture_options(args))
    return RowRunner(graph, session, keys, run_graph)


def _row_maker(
    args: argparse.Namespace, document: Document, folders: Mapping[str, Path], cores: int
) -> Callable[[Task], Made]:
    """Return what makes rows in a worker of Ray."""
    args = argparse.Namespace(**{**vars(args), "threads": args.threads or cores})
    reporter = _Collector()
    runner = open_runner(args, document, folders, reporter)

    def make(task: Task) -> Made:
        made = runner.make(task, Path(args.output))
        warnings, reporter.warnings = tuple(reporter.warnings), []
        return replace(made, warnings=warnings)

    return make


class _Collector(Reporter):
    """Keeps warnings for the process that the user sees."""

    def __init__(self) -> None:
        super().__init__(quiet=True, each_node=False)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def _print_result(args: argparse.Namespace, log: RowLog, seconds: float) -> None:
    totals, folder = log.totals, log.manifest.folder
    if args.json:
        facts = {"done": totals.done, "kept": totals.kept, "busy": totals.busy, "images": totals.files}
        print(json.dumps({"ok": True, **facts, "seconds": round(seconds, 3)}))
    else:
        busy = f", {totals.busy} are being made by another process" if totals.busy else ""
        print(f"{totals.done} rows done, {totals.kept} done before{busy}, in {folder} ({seconds:.1f} s)")


def _declared_once(cls: Any) -> type:
    """The node class with INPUT_TYPES called once: that of LoadImage lists the input folder at each call."""

    @keep
    def inputs() -> Any:
        return cls.INPUT_TYPES()

    return type(cls.__name__, (cls,), {"INPUT_TYPES": staticmethod(inputs)})
