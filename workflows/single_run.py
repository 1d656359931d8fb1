"""One run of a workflow for the command line: check, run, warn."""

from __future__ import annotations

from .execution import Cache, RunResult, execute, idle_controls
from .fitting import require_fit
from .graph import Graph
from .reporting import Reporter
from .session import Session
from .validation import require_runnable


def run_once(graph: Graph, session: Session, cache: Cache, reporter: Reporter, *, strict: bool) -> RunResult:
    """Check a graph and run it; print the problems that skip output nodes, and controls without effect.

    strict: raise for any problem.
    """
    checked = require_runnable(graph, session.classes, strict=strict)
    require_fit(checked.graph, session.classes, checked.outputs)
    for problem in checked.problems:
        reporter.warn(f"{problem.message} (output nodes that need this are skipped)")
    result = execute(checked.graph, session.classes, outputs=checked.outputs, cache=cache, on_node=reporter.on_node)
    for note in idle_controls(checked.graph, result):
        reporter.warn(note)
    return result
