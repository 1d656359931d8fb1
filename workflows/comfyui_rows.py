"""`controlnet run --each --comfyui DIR`: rows that run inside the ComfyUI of a folder."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..nodes.folders import find_file, leaves_folder, walk_files
from ..nodes.pictures import annotated_file
from . import overrides
from .combinations import Row
from .comfyui_run import problems_of, run_once, start_comfyui
from .execution import RunResult
from .formats import Document, to_graph
from .graph import Graph
from .reporting import Reporter
from .row_key import RowKeys
from .row_run import RowRunner
from .session import Session, picture_options
from .validation import as_error

if TYPE_CHECKING:
    from ..nodes.comfyui.headless import Headless


class ComfyHost:
    """The folders of a running ComfyUI, as rows ask for them.

    input_folders: further folders of pictures, by the first part of a picture's name. output_dir, temp_dir: where the
    files of a run belong. ComfyUI keeps a node's object for the next prompt, with the folder that it wrote to first, so
    it writes into one folder all the time, from which `collect` takes the files.
    """

    def __init__(self, comfy: Headless, input_folders: Mapping[str, Path]) -> None:
        self.comfy, self.input_folders = comfy, input_folders
        self.input_dir = comfy.folder("input")
        self.output_dir, self.temp_dir = comfy.folder("output"), comfy.folder("temp")
        self._work = TemporaryDirectory(prefix="cncore-", ignore_cleanup_errors=True)
        self._staged: TemporaryDirectory[str] | None = None
        for kind in ("output", "temp"):
            folder = Path(self._work.name) / kind
            folder.mkdir()
            comfy.use_folder(kind, folder)

    def collect(self) -> None:
        """Move what ComfyUI has written into the folder of this run, and drop its previews."""
        written = Path(self._work.name) / "output"
        for file in list(walk_files(written)):
            target = self.output_dir / file.relative_to(written)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, target)
        for preview in walk_files(Path(self._work.name) / "temp"):
            preview.unlink(missing_ok=True)

    def folders(self, kind: str) -> tuple[Path, ...]:
        """Folders in which files of a kind are looked for."""
        return self.comfy.model_folders(kind)

    def embedding_file(self, name: str) -> Path:
        """The file of a textual inversion. Raises MissingFileError."""
        return find_file(self.folders("embeddings"), name, "embeddings", frozenset())

    def stage(self, graph: Graph) -> None:
        """Offer the pictures that a graph names in one folder, where some lie outside of the input folder.

        ComfyUI reads from one input folder, and refuses links that lead out of it, so the files themselves are there.
        """
        if not self.input_folders:
            return
        self.close()
        self._staged = TemporaryDirectory(prefix="cncore-", ignore_cleanup_errors=True)
        folder = Path(self._staged.name)
        for name, path in self._pictures(graph):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                # Another disk, or a file system without hard links.
                shutil.copy2(path, target)
        self.comfy.use_folder("input", folder)

    def close(self) -> None:
        """Read from ComfyUI's own input folder again."""
        self.comfy.use_folder("input", self.input_dir)
        if self._staged is not None:
            self._staged.cleanup()
            self._staged = None

    def _pictures(self, graph: Graph) -> Iterator[tuple[str, Path]]:
        """Yield the names of pictures with their files, each once."""
        values = (value for node in graph.nodes.values() for value in node.inputs.values())
        for name in dict.fromkeys(value for value in values if isinstance(value, str) and len(value) < 1024):
            if name.partition("/")[0] in self.input_folders:
                yield name, annotated_file(name, self)
            elif name and not leaves_folder(name) and "\0" not in name and (self.input_dir / name).is_file():
                yield name, self.input_dir / name


@dataclass(frozen=True)
class ComfyRows(RowRunner):
    """Runs rows inside ComfyUI, which checks them by its own rules."""

    def check(self, row: Row, *, strict: bool) -> None:
        """Raise the error of a workflow that cannot run, whatever the values of its rows are."""
        graph = self.graph_of(row)
        host: Any = self.session.host
        host.stage(graph)
        outputs, problems = problems_of(graph, host.comfy)
        others = [problem for problem in problems if (problem.node, problem.input) not in self.varied(graph, row)]
        if others and (strict or not outputs):
            raise as_error(others)


def open_comfy_rows(
    args: argparse.Namespace, document: Document, folders: Mapping[str, Path], reporter: Reporter
) -> ComfyRows:
    """Return what makes rows of a workflow in this process. folders: see `each_sources.Sources`.

    Raises ValueRangeError for an option that acts without ComfyUI only, CoreError where ComfyUI does not start.
    """
    comfy = start_comfyui(args)
    host = ComfyHost(comfy, folders)
    graph = overrides.apply_settings(to_graph(document, comfy.classes), comfy.classes, args.set)

    def run_graph(graph: Graph) -> RunResult:
        host.stage(graph)
        try:
            return run_once(graph, comfy, reporter, strict=args.strict)
        finally:
            host.collect()
            host.close()

    session = Session(host, comfy.classes)  # type: ignore[arg-type]
    # A ComfyUI may give other pictures than our engine, so its rows are told apart.
    options = {**picture_options(args), "comfyui": True}
    return ComfyRows(graph, session, RowKeys(session.host, comfy.classes, options), run_graph)
