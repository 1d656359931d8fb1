"""`controlnet run --comfyui DIR`: the workflow runs inside the ComfyUI of a folder, in this process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..controlnet_core.errors import ValueRangeError
from . import overrides
from .execution import NodeEvent, NodeResult, RunResult
from .formats import Document, to_graph
from .graph import Graph
from .node_checks import Problem
from .prefixes import fill_prefixes
from .reporting import Reporter
from .run_reports import tell_reports
from .session import comfyui_folder, host_arguments
from .validation import as_error

if TYPE_CHECKING:
    from ..controlnet_core.control.report import RunReport
    from ..nodes.comfyui.headless import Headless, Verdict

_STANDALONE_ONLY = (
    "measure", "reuse_every", "reuse_tolerance", "encoder_every", "deep_every", "careful", "guidance", "ray",
)  # fmt: skip
"""Options that act on the engine of the standalone host, by the names that argparse stores them under."""


def run_seeds(
    args: argparse.Namespace, document: Document, seeds: Sequence[int | None], reporter: Reporter
) -> tuple[list[tuple[int | None, RunResult]], Any]:
    """Run the workflow for each seed. Returns the results, and a session that knows the output folder.

    Raises ValueRangeError for an option that acts without ComfyUI only, CoreError where ComfyUI does not start.
    """
    comfy = start_comfyui(args)
    reports: list[RunReport] = []
    # Measuring what each block adds costs time on a GPU, so only with --report.
    if args.report is not None:
        comfy.report(reports.append)
    graph = overrides.apply_settings(to_graph(document, comfy.classes), comfy.classes, args.set)
    results = []
    try:
        for seed in seeds:
            if len(seeds) > 1:
                reporter.line(f"seed {seed}")
            seeded = graph if seed is None else overrides.with_seed(graph, comfy.classes, seed)
            results.append((seed, run_once(seeded, comfy, reporter, strict=args.strict)))
    finally:
        reporter.close()
    if args.report is not None:
        tell_reports(reports, args.report, reporter)
    return results, SimpleNamespace(host=SimpleNamespace(output_dir=comfy.folder("output")))


def start_comfyui(args: argparse.Namespace) -> Headless:
    """Return the ComfyUI of --comfyui, started in this process.

    Raises ValueRangeError for an option that acts without ComfyUI only, CoreError where ComfyUI does not start.
    """
    from ..nodes.comfyui.headless import Setup, start

    _check_options(args)
    options = host_arguments(args)
    device = options["device"].partition(":")[0]
    folders = options["models_dirs"], options["model_folders"]
    return start(Setup(comfyui_folder(args), args.input, options["output_dir"], device, options["dtype"], *folders))


def _check_options(args: argparse.Namespace) -> None:
    given = [name for name in _STANDALONE_ONLY if getattr(args, name, None) not in (None, False, [])]
    if given:
        option = "--" + given[0].removesuffix("_every").replace("_", "-")
        raise ValueRangeError(f"{option} acts on runs without ComfyUI: leave it out, or leave out --comfyui")


def run_once(graph: Graph, comfy: Headless, reporter: Reporter, *, strict: bool) -> RunResult:
    """Check a graph by ComfyUI's own rules and run it; print the problems that skip output nodes.

    strict: raise for any problem.
    """
    began = time.perf_counter()
    prompt = fill_prefixes(graph, dates=True).to_api()
    outputs, problems = _checked(graph, comfy.check(prompt))
    if problems and (strict or not outputs):
        raise as_error(problems)
    for problem in problems:
        reporter.warn(f"{problem.message} (output nodes that need this are skipped)")
    events = _Events(graph, graph.order(outputs), reporter)
    shown = comfy.run(prompt, outputs, graph.workflow, events.receive)
    events.finish()
    # Links stay inside ComfyUI: what nodes show is all that the command prints.
    nodes = {node: NodeResult((), _lists(ui)) for node, ui in shown.items()}
    nodes = {**{node: NodeResult(()) for node in events.needed}, **nodes}
    return RunResult(nodes, tuple(events.executed), time.perf_counter() - began)


def problems_of(graph: Graph, comfy: Headless) -> tuple[tuple[str, ...], list[Problem]]:
    """Let ComfyUI check a graph. Returns the ids of the output nodes that can run, and the problems."""
    return _checked(graph, comfy.check(fill_prefixes(graph, dates=True).to_api()))


def _checked(graph: Graph, verdict: Verdict) -> tuple[tuple[str, ...], list[Problem]]:
    return verdict.outputs, [_problem(graph, *fault) for fault in verdict.faults]


def _problem(graph: Graph, node_id: str, name: str, text: str) -> Problem:
    node = graph.nodes.get(node_id)
    if node is None:
        return Problem(node_id, name, f"ComfyUI refuses the workflow: {text}: install the pack that is missing there")
    where = f"{node.label}, input {name}" if name else node.label
    return Problem(node_id, name, f"{where}: {text}")


def _lists(ui: Any) -> Mapping[str, Any]:
    """What a node shows, as a list for each kind."""
    shown = ui if isinstance(ui, Mapping) else {}
    return {kind: list(entries) for kind, entries in shown.items() if isinstance(entries, (list, tuple))}


class _Events:
    """Turns ComfyUI's messages into the events of a run. needed: ids of all nodes that it may run, in order."""

    def __init__(self, graph: Graph, needed: Sequence[str], reporter: Reporter) -> None:
        self.graph, self.needed, self.reporter = graph, needed, reporter
        self.executed: list[str] = []
        self._done = 0
        self._running: tuple[str, float] | None = None

    def receive(self, event: str, data: Mapping[str, Any]) -> None:
        """Receive a message of ComfyUI."""
        if event == "execution_cached":
            for node in data.get("nodes", ()):
                if str(node) in self.needed:
                    self._report("cached", str(node), 0.0)
        elif event == "executing":
            self.finish()
            # A node that expands into others runs those under ids of their own; only the drawn ones are reported.
            node = str(data.get("display_node") or data.get("node"))
            if node in self.graph.nodes and node not in self.executed:
                self._running = (node, time.perf_counter())
                self._report("start", node, 0.0)
        elif event == "progress":
            self.reporter.on_step(int(data.get("value", 0)), int(data.get("max", 1)))

    def finish(self) -> None:
        """Report the running node as done."""
        if self._running is not None:
            node, began = self._running
            self._running = None
            self.executed.append(node)
            self._report("done", node, time.perf_counter() - began)

    def _report(self, state: Any, node: str, seconds: float) -> None:
        total = max(len(self.needed), self._done + 1)
        self.reporter.on_node(NodeEvent(state, self.graph.nodes[node], self._done, total, seconds))
        self._done += state != "start"
