"""What the commands share that run one workflow several times: their options, and opening the workflow."""

from __future__ import annotations

import argparse
from pathlib import Path

from .bundled import find_workflow
from .destinations import check_folder
from .formats import Document, read_document
from .reporting import Reporter
from .session import (
    Session,
    add_device_arguments,
    add_folder_arguments,
    add_memory_arguments,
    add_output_arguments,
    open_session,
)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options about models folders, the device, memory, and where pictures go."""
    add_folder_arguments(parser)
    add_device_arguments(parser)
    add_memory_arguments(parser)
    add_output_arguments(parser)


def open_runs(args: argparse.Namespace) -> tuple[Document, Session, Reporter]:
    """Read the workflow `args.file` and open a session, with the reporter that prints what its runs say."""
    document = read_document(find_workflow(args.file))
    check_folder("--output", Path(args.output))
    reporter = Reporter(quiet=args.quiet, each_node=False)
    session = open_session(args, reporter.on_step)
    session.host.on_note = reporter.line
    return document, session, reporter
