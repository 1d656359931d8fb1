"""`controlnet run --each`: one run after the other, in one process, so that models are loaded once.

A row writes into a folder of its own, and its files get their names when all of them are complete; then the manifest
gets its line (`row_log`). So a row that was killed leaves nothing under a final name, or complete files that its next
attempt replaces.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import CoreError, WorkflowError, writing
from ..nodes.folders import publish, walk_files
from . import overrides, png
from .combinations import Row
from .graph import Graph
from .row_key import RowKeys
from .row_log import UNFINISHED, Made, Task, as_core_error
from .session import Session
from .validation import as_error, check_outputs

_COUNTER = re.compile(r"_\d{5,}_?$")


@dataclass(frozen=True)
class RowRunner:
    """Runs rows of one workflow. run: runs a graph."""

    graph: Graph
    session: Session
    keys: RowKeys
    run: Callable[[Graph], Any]

    def check(self, row: Row, *, strict: bool) -> None:
        """Raise the error of a workflow that cannot run, whatever the values of its rows are."""
        graph, classes = self.graph_of(row), self.session.classes
        checked = check_outputs(graph, classes)
        varied = self.varied(graph, row)
        # A wrong value fails its own row only.
        others = [problem for problem in checked.problems if (problem.node, problem.input) not in varied]
        if others and (strict or not checked.outputs):
            raise as_error(others)

    def varied(self, graph: Graph, row: Row) -> set[tuple[str, str]]:
        """Return (node id, input) of the values that a row sets."""
        targets = [target.rpartition(".") for target in row.values]
        return {(overrides.find_node(graph, node.strip()).id, name.strip()) for node, _, name in targets}

    def graph_of(self, row: Row) -> Graph:
        """Return the workflow with the values of a row."""
        settings = [f"{target}={value}" for target, value in row.values.items()]
        graph = overrides.apply_settings(self.graph, self.session.classes, settings, option="--each")
        return graph if row.seed is None else overrides.with_seed(graph, self.session.classes, row.seed)

    def key(self, row: Row) -> str:
        """Return a digest of what decides a row's files. Raises CoreError, or OSError for a picture that is gone."""
        return self.keys.key(self.graph_of(row), row)

    def make(self, task: Task, folder: Path) -> Made:
        """Run a row, and place its files in an output folder. Raises Interrupted only."""
        began = time.perf_counter()
        try:
            graph = self.graph_of(task.row)
            files = self._run_row(graph, task.row.name, folder, folder / UNFINISHED / task.key)
            return Made(tuple(files), seconds=time.perf_counter() - began)
        except (CoreError, OSError) as error:
            return Made(error=as_core_error(error), seconds=time.perf_counter() - began)

    def _run_row(self, graph: Graph, name: str, output: Path, work: Path) -> list[str]:
        """Run a graph, and return the names of its files in `output`."""
        host = self.session.host
        # What a killed process left.
        shutil.rmtree(work, ignore_errors=True)
        saved = host.output_dir, host.temp_dir
        host.output_dir, host.temp_dir = work / "files", work / "temp"
        try:
            self.run(graph)
            made = list(walk_files(work / "files"))
            named = zip(made, _final_names(made, name), strict=True)
            with writing(output):
                return [_place(file, output / target).relative_to(output).as_posix() for file, target in named]
        finally:
            host.output_dir, host.temp_dir = saved
            shutil.rmtree(work, ignore_errors=True)


def _final_names(files: Sequence[Path], name: str) -> list[str]:
    """Return the names of a row's files: of a single one NAME.png, else NAME_PREFIX.png by the nodes' prefixes."""
    groups: defaultdict[tuple[str, str], list[Path]] = defaultdict(list)
    for file in files:
        groups[_COUNTER.sub("", file.stem), file.suffix].append(file)
    names = {}
    for (prefix, ending), group in groups.items():
        stem = name if len(groups) == 1 else f"{name}_{prefix}"
        for number, file in enumerate(group, start=1):
            names[file] = f"{stem}{ending}" if len(group) == 1 else f"{stem}_{number}{ending}"
    return [names[file] for file in files]


def _place(file: Path, target: Path) -> Path:
    """Give a file its final name, or the first free one of NAME-2, NAME-3 and so on: nothing else is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = target if number == 1 else target.with_stem(f"{target.stem}-{number}")
        # The same picture of an attempt that was killed before its line was written.
        if path.exists() and _prompt(path) == _prompt(file) is not None:
            return file.replace(path)
        with contextlib.suppress(FileExistsError):
            return publish(file, [path])
    raise AssertionError


def _prompt(path: Path) -> str | None:
    """Return the workflow in a PNG as it ran, None if there is none."""
    try:
        return png.read_text(path.read_bytes()).get("prompt")
    except WorkflowError:
        return None
