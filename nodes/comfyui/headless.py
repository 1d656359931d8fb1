"""A whole ComfyUI in this process: its nodes, its packs and its executor, without its server and browser.

ComfyUI sets itself up as in its own program, by `main.start_comfyui`, which also loads the packs and starts the worker
that runs prompts. The server object exists, because packs register routes with it, but it never listens: prompts are
put into its queue from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...controlnet_core import errors
from ...controlnet_core.errors import CoreError, MissingFileError, OutOfMemory, WorkflowError

if TYPE_CHECKING:
    from ...controlnet_core.control.report import RunReport

Send = Callable[[str, Mapping[str, Any]], None]
MARKS = ("main.py", "nodes.py", "execution.py", "folder_paths.py")
"""Files by which a folder is recognised as ComfyUI's."""
CLIENT = "controlnet"
POLL = 0.01
"""Seconds between two looks at the record of a running prompt."""
_STARTED: dict[str, Headless] = {}


@dataclass(frozen=True)
class Setup:
    """How ComfyUI starts. device: "auto", "cpu", "cuda" or "cuda:N"; dtype: "auto", "fp32", "fp16" or "bf16".

    models: further models folders, with a subfolder for each kind of file. by_kind: further folders of a kind.
    """

    folder: Path
    input_dir: Path | None
    output_dir: Path
    device: str = "auto"
    dtype: str = "auto"
    models: tuple[Path, ...] = ()
    by_kind: Mapping[str, Iterable[Path]] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Fields of ComfyUI's arguments."""
        given: dict[str, Any] = {
            "output_directory": str(self.output_dir.absolute()),
            "disable_auto_launch": True,
            "auto_launch": False,
            # Any folder: nothing is served. Without it the frontend's package would have to be installed.
            "front_end_root": str(self.folder),
        }
        if self.input_dir is not None:
            given["input_directory"] = str(self.input_dir.absolute())
        if self.device == "cpu":
            given["cpu"] = True
        if self.dtype != "auto":
            given |= {"force_fp32": self.dtype == "fp32", "force_fp16": self.dtype == "fp16"}
            given["bf16_unet"] = self.dtype == "bf16"
        return given


@dataclass(frozen=True)
class Verdict:
    """ComfyUI's own check of a prompt. outputs: ids of the output nodes that can run. faults: (node, input, text)."""

    outputs: tuple[str, ...]
    faults: tuple[tuple[str, str, str], ...]


class Headless:
    """A running ComfyUI. classes: node classes by ID, those of packs included."""

    def __init__(self, server: Any, modules: SimpleNamespace, workers: Iterable[threading.Thread]) -> None:
        self._server, self._modules, self._workers = server, modules, tuple(workers)
        self.classes: Mapping[str, type] = modules.nodes.NODE_CLASS_MAPPINGS
        self._numbers = itertools.count(1)
        self._send: Send = lambda event, data: None
        server.send_sync = self._on_message

    def check(self, prompt: Mapping[str, Any]) -> Verdict:
        """Let ComfyUI check a prompt in its API form."""
        check = self._modules.execution.validate_prompt
        # Since 0.3.41 a coroutine with the prompt's id in front.
        arguments = (prompt,) if len(inspect.signature(check).parameters) == 1 else (CLIENT, prompt, None)
        with _quiet_stdout():
            verdict = check(*arguments)
            valid, error, outputs, by_node = asyncio.run(verdict) if inspect.iscoroutine(verdict) else verdict
        faults = [
            (str(node), str((fault.get("extra_info") or {}).get("input_name") or ""), _sentence(fault))
            for node, found in (by_node or {}).items()
            for fault in found.get("errors", ())
        ]
        if not valid and not faults and error:
            faults.append(("", "", _sentence(error)))
        return Verdict(tuple(str(node) for node in outputs) if valid else (), tuple(faults))

    def run(
        self, prompt: Mapping[str, Any], outputs: Iterable[str], workflow: Mapping[str, Any] | None, send: Send
    ) -> dict[str, Any]:
        """Run output nodes of a checked prompt, and return what nodes show in the editor (`ui`), by node id.

        workflow: the editor's form, for saved pictures. send(event, data): receives ComfyUI's messages. Raises the
        error of the node that failed.
        """
        extra: dict[str, Any] = {"client_id": CLIENT}
        if workflow is not None:
            extra["extra_pnginfo"] = {"workflow": workflow}
        number = next(self._numbers)
        name = f"{CLIENT}-{number}"
        self._send = send
        try:
            with _quiet_stdout():
                # As the server does for a request. The last entry holds secrets of nodes that call paid services.
                self._server.prompt_queue.put((number, name, prompt, extra, list(outputs), {}))
                record = self._wait(name)
        finally:
            self._send = lambda event, data: None
        status = record.get("status") or {}
        if not status.get("completed"):
            raise _failure(status.get("messages", ()))
        return {str(node): ui for node, ui in record["outputs"].items()}

    def report(self, receive: Callable[[RunReport], None]) -> None:
        """Report each sampling from now on; see `watch`. Before the workflow is read, since it changes `classes`."""
        from .watch import watch_loaders

        watch_loaders(self._modules.nodes.NODE_CLASS_MAPPINGS, receive)

    def folder(self, kind: str) -> Path:
        """The folder of pictures of a kind: "input", "output" or "temp"."""
        return Path(getattr(self._modules.folder_paths, f"get_{kind}_directory")())

    def use_folder(self, kind: str, folder: Path) -> None:
        """Read or write pictures of a kind in another folder from now on."""
        getattr(self._modules.folder_paths, f"set_{kind}_directory")(str(folder.absolute()))

    def model_folders(self, kind: str) -> tuple[Path, ...]:
        """Folders in which files of a kind are looked for; empty for a kind that ComfyUI does not know."""
        known = self._modules.folder_paths.folder_names_and_paths
        return tuple(map(Path, known[kind][0])) if kind in known else ()

    def _wait(self, name: str) -> Mapping[str, Any]:
        """The record of a prompt, once ComfyUI's worker is done with it."""
        try:
            while not (found := self._server.prompt_queue.get_history(prompt_id=name)):
                if not any(thread.is_alive() for thread in self._workers):
                    raise CoreError("ComfyUI's worker has ended: see its messages above")
                time.sleep(POLL)
        except KeyboardInterrupt:
            # The sampler of the worker stops at its next step.
            self._modules.nodes.interrupt_processing()
            raise
        return found[name]

    def _on_message(self, event: Any, data: Any, sid: Any = None) -> None:
        # Previews of a picture under way are bytes under a number, and nobody sees them here.
        if isinstance(event, str) and isinstance(data, Mapping):
            self._send(event, data)


def start(setup: Setup) -> Headless:
    """Start the ComfyUI of a folder, once in a process. Raises MissingFileError where there is none."""
    missing = [name for name in MARKS if not (setup.folder / name).is_file()]
    if missing:
        raise MissingFileError(
            f"--comfyui {setup.folder}: this is no folder of ComfyUI, it has no {missing[0]}: give the one that has it",
            setup.folder,
        )
    folder = str(setup.folder.resolve())
    if folder in _STARTED:
        return _STARTED[folder]
    if _STARTED:
        raise CoreError(f"--comfyui {folder}: {next(iter(_STARTED))} runs in this process: start another one for this")
    with _quiet_stdout():
        _STARTED[folder] = _start(setup, folder)
    return _STARTED[folder]


def _start(setup: Setup, folder: str) -> Headless:
    sys.path.insert(0, folder)
    # Before `nodes` is imported, which puts the folder with another module `utils` in front.
    try:
        options = importlib.import_module("comfy.cli_args")
        arguments = options.args
        # What an option is stored as differs between releases, so ComfyUI's own parser makes it.
        arguments.verbose = options.parser.parse_args(["--verbose", "WARNING"]).verbose
        for name, value in setup.arguments().items():
            if hasattr(arguments, name):
                setattr(arguments, name, value)
        # ComfyUI empties its folder for temporary files at the start; a server beside this process may use it.
        with tempfile.TemporaryDirectory() as temporary:
            arguments.temp_directory = temporary
            program = importlib.import_module("main")
            before = set(threading.enumerate())
            _, server, _ = program.start_comfyui()
    except ImportError as error:
        raise CoreError(
            f"--comfyui {folder}: ComfyUI does not start ({error}): run this command with the Python that it is "
            "installed in"
        ) from error
    names = ("execution", "folder_paths", "nodes")
    modules = SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    _add_folders(modules.folder_paths, setup)
    _add_own_nodes(modules.nodes.NODE_CLASS_MAPPINGS)
    return Headless(server, modules, set(threading.enumerate()) - before)


def _add_folders(paths: Any, setup: Setup) -> None:
    temp = setup.output_dir.absolute() / "temp"
    temp.mkdir(parents=True, exist_ok=True)
    paths.set_temp_directory(str(temp))
    for root in setup.models:
        for kind in list(paths.folder_names_and_paths):
            if (root / kind).is_dir():
                paths.add_model_folder_path(kind, str((root / kind).absolute()))
    for kind, folders in setup.by_kind.items():
        for folder in folders:
            paths.add_model_folder_path(kind, str(folder.absolute()))


def _add_own_nodes(classes: dict[str, type]) -> None:
    """Offer our nodes where this pack is not among those of the folder."""
    from . import editor_nodes

    for name, cls in editor_nodes()[0].items():
        classes.setdefault(name, cls)


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Packs print on stdout, where the result of the command goes."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _sentence(fault: Mapping[str, Any]) -> str:
    parts = (str(fault.get(key) or "").strip().rstrip(".") for key in ("message", "details"))
    return ": ".join(part for part in parts if part) or "ComfyUI refuses it"


def _failure(messages: Iterable[Any]) -> CoreError:
    """The error of the node that failed; our own errors keep their class, and with it their exit code."""
    for event, data in messages:
        if event == "execution_interrupted":
            return errors.Interrupted("interrupted; what was saved before stays")
        if event == "execution_error":
            kind = str(data.get("exception_type", ""))
            text = " ".join(str(data.get("exception_message", "")).split())
            label = f"node {data.get('node_id')} ({data.get('node_type')})"
            own = getattr(errors, kind.rpartition(".")[2], None)
            if inspect.isclass(own) and issubclass(own, CoreError):
                return own(text if text.startswith("node ") else f"{label}: {text}")
            if "OutOfMemory" in kind or "out of memory" in text.lower():
                return OutOfMemory(f"{label}: out of memory: use a smaller picture or batch")
            return CoreError(f"{label} failed: {kind}: {text}")
    return WorkflowError("ComfyUI stopped without a reason: see its messages above")
