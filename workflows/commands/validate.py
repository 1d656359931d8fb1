"""`controlnet validate FILE`: list every problem of a workflow, one line each."""

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
from ..session import add_file_argument, add_folder_arguments, add_strict_argument, open_session
from ..terminal import printable
from ..validation import as_error, check_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `validate`."""
    add_file_argument(parser)
    parser.add_argument("--set", metavar="NODE.INPUT=VALUE", action="append", default=[], help="change a value first")
    add_folder_arguments(parser)
    add_strict_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Return the exit code of `run`: 0 if the workflow runs, else 2 or 3. Of model files only headers are read.

    Problems that only keep some output nodes from running are warnings, as in `run`.
    """
    document = read_document(find_workflow(args.file))
    check_folder("--output", Path(args.output))
    classes = open_session(args).classes
    checked = check_outputs(overrides.apply_settings(to_graph(document, classes), classes, args.set), classes)
    # The files are compared only if the workflow runs; before that, links may lead nowhere.
    errors, warnings = checked.problems, []
    if checked.outputs and not (args.strict and checked.problems):
        errors, warnings = check_fit(checked.graph, classes, checked.outputs), checked.problems
    code = as_error(errors).exit_code if errors else 0
    count = len(checked.graph.nodes)
    if args.json:
        rows, skipped = (
            [{"node": p.node, "input": p.input, "message": p.message} for p in problems]
            for problems in (errors, warnings)
        )
        facts = {"ok": not errors, "nodes": count, "problems": rows, "warnings": skipped, "exit_code": code}
        print(json.dumps(facts))
        return code
    for word, problems in (("warning", warnings), ("error", errors)):
        for problem in problems:
            print(f"{word}: {printable(problem.message)}", file=sys.stderr)
    if warnings and not errors:
        print(f"{document.name}: {count} nodes, output nodes with problems are skipped (--strict refuses them)")
    elif not errors:
        print(f"{document.name}: {count} nodes, no problems")
    return code
