"""Options that several subcommands share, and the host and node classes that are made from them."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..controlnet_core.errors import MissingFileError, ValueRangeError
from ..controlnet_core.runtime.options import MEMORY, RuntimeOptions
from .model_paths import model_folders
from .paths import path_argument
from .terminal import printable

if TYPE_CHECKING:
    from ..nodes.standalone.host import StandaloneHost

MAX_THREADS = 1024
COMFYUI_DIR = "COMFYUI_DIR"
DTYPES = ("auto", "fp32", "fp16", "bf16")
Progress = Callable[..., None]


@dataclass(frozen=True)
class Session:
    """The standalone host and the node classes that are bound to it."""

    host: StandaloneHost
    classes: Mapping[str, type]


def add_file_argument(parser: argparse.ArgumentParser) -> None:
    """Add FILE, a workflow."""
    help = "a workflow .json, a picture saved with one, or a bundled name"
    parser.add_argument("file", metavar="FILE", help=help)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --quiet, --json."""
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the last line")


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --input, --output, --models."""
    add = parser.add_argument
    add("--input", metavar="DIR", type=path_argument, help="folder that LoadImage reads from (default: ./input)")
    add("--output", metavar="DIR", type=path_argument, default="output", help="folder for pictures (default: ./output)")
    add_models_argument(parser)


def add_models_argument(parser: argparse.ArgumentParser) -> None:
    """Add --models."""
    parser.add_argument(
        "--models", metavar="DIR", action="append",
        help="a ComfyUI models folder or an extra_model_paths.yaml; may be repeated (default: ./models)",
    )  # fmt: skip


def add_comfyui_argument(parser: argparse.ArgumentParser) -> None:
    """Add --comfyui."""
    parser.add_argument(
        "--comfyui", metavar="DIR", nargs="?", const="", type=str,
        help="run inside the ComfyUI of this folder, with the packs that are installed there, without its server; "
        f"without DIR that of the variable {COMFYUI_DIR}",
    )  # fmt: skip


def comfyui_folder(args: argparse.Namespace) -> Path:
    """Return the folder of --comfyui. Raises ValueRangeError where neither option nor variable names one."""
    name = args.comfyui or os.environ.get(COMFYUI_DIR, "")
    if not name:
        raise ValueRangeError(f"--comfyui needs a folder: write --comfyui DIR, or set the variable {COMFYUI_DIR}")
    return Path(name)


def add_strict_argument(parser: argparse.ArgumentParser) -> None:
    """Add --strict."""
    parser.add_argument(
        "--strict", action="store_true", help="refuse a workflow with any problem, instead of skipping output nodes"
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device, --dtype."""
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="precision of the models (default: auto)")


def add_shortcut_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that trade accuracy for speed, stored under the names of the fields of `Shortcuts`.

    An option that is not given is None: the workflow decides.
    """
    add = parser.add_argument_group(
        "faster, less exact",
        "off by default; --measure reports the error. Any of these options replaces all settings of the workflow's "
        "Shortcuts node (--reuse 1: skip nothing)",
    ).add_argument
    add("--reuse", dest="reuse_every", type=int, metavar="K", help="run the ControlNets only at every K-th evaluation")
    add("--reuse-tolerance", type=float, metavar="E", help="run them only when the latent changed by this share: 0.1")
    add("--encoder-every", type=int, metavar="K", help="run the UNet's encoder only at every K-th evaluation")
    add("--deep-every", type=int, metavar="K", help="run ControlNets and the UNet's lower levels at every K-th only")
    add(
        "--careful", action="store_const", const=True,
        help="with one of the options K: skip nothing in the first 30 %% of the run, where the layout is made",
    )  # fmt: skip
    add(
        "--guidance", type=float, nargs=2, metavar=("FROM", "TO"),
        help="use the negative prompt only in this part of the run, such as 0.1 0.8",
    )  # fmt: skip
    add("--measure", action="store_true", help="sample twice more, exactly and again; print the error and both times")


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for memory and speed that change the picture only by rounding: fields of `Runtime`."""
    add = parser.add_argument_group("memory and speed; the picture stays the same within rounding").add_argument
    for field in fields(RuntimeOptions):
        given: dict[str, Any] = {"dest": field.name, "help": field.metadata["help"], "default": field.default}
        if isinstance(field.default, bool):
            given["action"] = "store_false" if field.default else "store_true"
        elif isinstance(field.default, int):
            given |= {"type": int, "metavar": "N"}
        else:
            given["choices"] = MEMORY
        add(field.metadata["flag"], **given)
    add("--threads", type=int, metavar="N", help="torch threads on a CPU (default: one per core)")


def make_runtime(args: argparse.Namespace, device: str, dtype: str) -> Any:
    """Return the `Runtime` for the options. Raises ValueRangeError."""
    import torch

    from ..controlnet_core.runtime.device import Runtime

    given = _given(args, RuntimeOptions)
    threads = getattr(args, "threads", None)
    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise ValueRangeError(f"--threads {threads}: give 1 to {MAX_THREADS}")
        torch.set_num_threads(threads)
    return replace(Runtime.choose(device, dtype), **given)


def _given(args: argparse.Namespace, record: type[Any]) -> dict[str, Any]:
    """Return the options that are fields of a record. Subcommands offer different ones."""
    names = [field.name for field in fields(record)]
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def run_options(args: argparse.Namespace) -> Any:
    """Return the `RunOptions` for the shortcut options, None if there are none. Raises ValueRangeError."""
    from ..controlnet_core.run_options import RunOptions, Shortcuts

    given = _given(args, Shortcuts)
    if getattr(args, "guidance", None) is not None:
        given["guidance_start"], given["guidance_end"] = args.guidance
    # Without any option the Shortcuts node of the workflow decides.
    return RunOptions(Shortcuts(**given)) if given else None


def picture_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the given options that change pictures by more than rounding: the precision, and the shortcuts."""
    from ..controlnet_core.run_options import Shortcuts

    dtype = getattr(args, "dtype", "auto")
    given = {**({} if dtype == "auto" else {"dtype": dtype}), **_given(args, Shortcuts)}
    guidance = getattr(args, "guidance", None)
    return given if guidance is None else {**given, "guidance": list(guidance)}


@contextmanager
def paused_collector() -> Iterator[None]:
    """Pause the garbage collector while torch is first imported, in a process that keeps it until its end.

    It would look through torch's quarter of a million objects several times and find nothing: a fifth of the start.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()  # later collections need not look at these objects either
    finally:
        gc.enable()


def open_session(args: argparse.Namespace, progress: Progress | None = None) -> Session:
    """Return host and node classes for parsed arguments. Imports torch."""
    with paused_collector():
        from ..nodes import build_nodes
        from ..nodes.standalone.host import StandaloneHost

    options = host_arguments(args)
    runtime = make_runtime(args, options["device"], options["dtype"])
    host = StandaloneHost(**options, progress=progress, options=run_options(args), runtime=runtime)
    return Session(host, build_nodes(host))


def host_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `StandaloneHost`.

    Raises MissingFileError for a folder that does not exist, ValueRangeError for a device that this machine lacks.
    """
    from ..controlnet_core.runtime.device import choose_device

    source = getattr(args, "input", None)
    if source is not None and not source.is_dir():
        raise MissingFileError(f"--input {source}: there is no such folder: check the path", source)
    roots, by_kind = model_folders(
        args.models or [], lambda text: print(f"warning: {printable(text)}", file=sys.stderr, flush=True)
    )
    # ./models is used only without --models, so that its files never shadow those of a named folder.
    if not args.models and Path("models").is_dir():
        roots = (Path("models"),)
    return {
        "input_dir": source or Path("input"),
        "output_dir": Path(args.output),
        "models_dirs": roots,
        "model_folders": by_kind,
        "device": str(choose_device(getattr(args, "device", "auto"))),
        "dtype": getattr(args, "dtype", "auto"),
    }
