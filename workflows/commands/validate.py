"""`controlnet validate FILE`: every problem of a workflow, one line each."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .. import overrides
from ..bundled import find_workflow
from ..destinations import check_folder
from ..fitting import check_fit
from ..formats import read_document, to_graph
from ..session import add_folder_arguments, open_session
from ..terminal import printable
from ..validation import as_error, check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `validate`."""
    parser.add_argument("file", metavar="FILE", help="a workflow .json, a picture saved with one, or a bundled name")
    parser.add_argument("--set", metavar="NODE.INPUT=VALUE", action="append", default=[], help="change a value first")
    add_folder_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 when the workflow would run; else 2 or 3, as `run` would end. Of model files only headers are read."""
    document = read_document(find_workflow(args.file))
    check_folder("--output", Path(args.output))
    classes = open_session(args).classes
    graph, problems = check(overrides.apply_settings(to_graph(document, classes), classes, args.set), classes)
    problems = problems or check_fit(graph, classes)
    code = as_error(problems).exit_code if problems else 0
    if args.json:
        rows = [{"node": p.node, "input": p.input, "message": p.message} for p in problems]
        print(json.dumps({"ok": not problems, "nodes": len(graph.nodes), "problems": rows, "exit_code": code}))
        return code
    for problem in problems:
        print(f"error: {printable(problem.message)}", file=sys.stderr)
    if not problems:
        print(f"{document.name}: {len(graph.nodes)} nodes, all well")
    return code
