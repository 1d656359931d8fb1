"""`controlnet run --each`: one run after the other, in one process, so that models are loaded once.

A row writes into a folder of its own, and its files get their names when all of them are complete; then the manifest
gets its line. So a row that was killed leaves nothing under a final name, or complete files that its next attempt
replaces. A row is locked while it runs: several processes may share an output folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import CoreError, Interrupted, WorkflowError, writing
from ..nodes.folders import publish, walk_files
from . import overrides, png
from .combinations import Row
from .graph import Graph
from .locks import try_lock
from .manifest import Manifest
from .session import Session
from .validation import as_error, check_outputs

UNFINISHED = ".unfinished"
"""Folder in the output folder for the files of rows that are under way."""
_COUNTER = re.compile(r"_\d{5,}_?$")


class RowsFailed(CoreError):
    """Some rows failed, the others are done."""


@dataclass
class Totals:
    """What came of the rows. files: of finished ones. busy: rows that another process is making."""

    done: int = 0
    kept: int = 0
    busy: int = 0
    files: list[str] = field(default_factory=list)
    failed: dict[str, CoreError] = field(default_factory=dict)

    def check(self, manifest: Path) -> None:
        """Raise RowsFailed, with the gravest exit code, if a row failed."""
        if self.failed:
            name, first = next(iter(self.failed.items()))
            total = self.done + self.kept + self.busy + len(self.failed)
            error = RowsFailed(
                f"{len(self.failed)} of {total} rows failed, the others are done: {name}: {first}; {manifest} names "
                "them, and the same command tries them again"
            )
            error.exit_code = max(failure.exit_code for failure in self.failed.values())
            raise error


@dataclass(frozen=True)
class RowRunner:
    """Runs rows of one workflow. settings: of the command line, for the manifest. run: runs a graph.

    options: of the command line that change the pictures, by name: the precision, and what is skipped.
    """

    graph: Graph
    session: Session
    settings: Sequence[str]
    run: Callable[[Graph], Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self, row: Row, *, strict: bool) -> None:
        """Raise the error of a workflow that cannot run, whatever the values of its rows are."""
        graph, classes = self.graph_of(row), self.session.classes
        checked = check_outputs(graph, classes)
        varied = [target.rpartition(".") for target in row.values]
        places = {(overrides.find_node(graph, node.strip()).id, name.strip()) for node, _, name in varied}
        # A wrong value fails its own row only.
        others = [problem for problem in checked.problems if (problem.node, problem.input) not in places]
        if others and (strict or not checked.outputs):
            raise as_error(others)

    def graph_of(self, row: Row) -> Graph:
        """Return the workflow with the values of a row."""
        settings = [f"{target}={value}" for target, value in row.values.items()]
        graph = overrides.apply_settings(self.graph, self.session.classes, settings, option="--each")
        return graph if row.seed is None else overrides.with_seed(graph, self.session.classes, row.seed)

    def run_all(self, rows: Iterator[Row], folder: Path, tell: Callable[[str], None]) -> Totals:
        """Run the rows that are not finished. tell: called with a line for each. Raises WriteError."""
        manifest, totals = Manifest(folder), Totals()
        work = folder / UNFINISHED
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
        for row in rows:
            self._attend(row, manifest, work, totals, tell)
        return totals

    def _attend(self, row: Row, manifest: Manifest, work: Path, totals: Totals, tell: Callable[[str], None]) -> None:
        """Run a row, unless it is finished or another process runs it."""
        began = time.perf_counter()
        record: dict[str, Any] = {"row": row.name, "inputs": dict(row.values), "settings": list(self.settings)}
        if row.seed is not None:
            record["seed"] = row.seed
        try:
            graph = self.graph_of(row)
            key = _key(graph, row, self.options)
            if manifest.is_finished(key):
                totals.kept += 1
                return
            with try_lock(work / f"{key}.lock") as is_ours:
                # Again: another process may have finished it since.
                if not is_ours or manifest.is_finished(key):
                    totals.busy += not is_ours
                    totals.kept += is_ours
                    return
                files = self._run_row(graph, row.name, manifest.folder, work / key)
                record |= {"key": key, "files": files, "seconds": round(time.perf_counter() - began, 3)}
                manifest.append(record)
        except Interrupted:
            raise
        except (CoreError, OSError) as caught:
            error = caught if isinstance(caught, CoreError) else CoreError(f"{caught}: check the file")
            totals.failed[row.name] = error
            message = " ".join(str(error).split())
            manifest.append({**record, "error": message, "seconds": round(time.perf_counter() - began, 3)})
            tell(f"{row.name}: failed: {message}")
            return
        totals.done += 1
        totals.files += [str(manifest.folder / name) for name in files]
        tell(f"{row.name}: {', '.join(files) or 'no file'} ({record['seconds']:.1f} s)")

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


def _key(graph: Graph, row: Row, options: Mapping[str, Any]) -> str:
    """Return a digest of what decides a row's files: workflow with its values, state of its pictures, options."""
    stamps = [(file.stat().st_mtime_ns, file.stat().st_size) for file in row.files]
    # Without options the digest is that of earlier versions, whose rows stay finished.
    parts = [graph.to_api(), stamps, *([options] if options else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


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
