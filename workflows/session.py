"""What the subcommands share: options for folders and device, and the host and classes made from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..controlnet_core.errors import MissingFileError, ValueRangeError
from .model_paths import model_folders

if TYPE_CHECKING:
    from ..nodes.standalone.host import StandaloneHost

MOST_THREADS = 1024
DTYPES = ("auto", "fp32", "fp16", "bf16")
SHORTCUTS = {
    "reuse": "reuse_every", "reuse_tolerance": "reuse_tolerance", "encoder_every": "encoder_every",
    "deep_every": "deep_every", "careful": "careful",
}  # fmt: skip
"""What an option of the command line is called in `Shortcuts`."""
Progress = Callable[..., None]


@dataclass(frozen=True)
class Session:
    """The standalone host and the node classes that are bound to it."""

    host: StandaloneHost
    classes: Mapping[str, type]


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """--input, --output, --models."""
    parser.add_argument("--input", metavar="DIR", help="where LoadImage reads (default: ./input)")
    parser.add_argument("--output", metavar="DIR", default="output", help="where pictures go (default: ./output)")
    parser.add_argument(
        "--models",
        metavar="DIR",
        action="append",
        help="a ComfyUI models folder or extra_model_paths.yaml, may be repeated (default: ./models)",
    )


def add_strict_argument(parser: argparse.ArgumentParser) -> None:
    """--strict."""
    parser.add_argument(
        "--strict", action="store_true", help="refuse a workflow with any problem, instead of skipping output nodes"
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --dtype."""
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="precision of the models (default: auto)")


def add_shortcut_arguments(parser: argparse.ArgumentParser) -> None:
    """--reuse, --reuse-tolerance, --encoder-every, --deep-every, --careful, --guidance, --measure.

    None for what is not given: as the workflow says, which is to leave nothing out unless a node says otherwise.
    """
    group = parser.add_argument_group(
        "faster at a price",
        "off by default; --measure tells the error. One of them puts all that the workflow's node Shortcuts says aside "
        "(--reuse 1: nothing is left out)",
    )
    group.add_argument("--reuse", type=int, metavar="K", help="run the nets at every K-th evaluation only")
    group.add_argument(
        "--reuse-tolerance", type=float, metavar="E",
        help="run the nets only when the latent has moved by this share, such as 0.1",
    )  # fmt: skip
    group.add_argument(
        "--encoder-every", type=int, metavar="K", help="run the UNet's encoder at every K-th evaluation only"
    )
    group.add_argument(
        "--deep-every", type=int, metavar="K",
        help="run the ControlNets and the UNet's lower levels at every K-th evaluation only, the top level at each",
    )  # fmt: skip
    group.add_argument(
        "--careful", action="store_const", const=True,
        help="with one of these K: leave nothing out in the first 30 %% of the way, where the layout is made",
    )  # fmt: skip
    group.add_argument(
        "--guidance", type=float, nargs=2, metavar=("FROM", "TO"),
        help="guide by the negative prompt only in this part of the run, such as 0.1 0.8",
    )  # fmt: skip
    group.add_argument(
        "--measure", action="store_true", help="sample twice more, exactly and again, and print error and times"
    )


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """--memory, --chunk, --graphs, --side-by-side, --wide, --compile, --no-winograd, --threads."""
    group = parser.add_argument_group("memory and speed, the picture stays the same within rounding")
    group.add_argument(
        "--memory", choices=("auto", "resident", "streamed"), default="auto",
        help="keep weights on the device, or bring them from the host layer by layer (default: what fits, on a GPU)",
    )  # fmt: skip
    group.add_argument(
        "--chunk", type=int, default=0, metavar="N", help="evaluate N pictures of a batch at a time; 0: as many as fit"
    )
    group.add_argument(
        "--graphs", action="store_true", help="replay evaluations as CUDA graphs, captured once for each picture size"
    )
    group.add_argument(
        "--side-by-side", action="store_true", help="run the ControlNets beside the UNet's encoder, each on a stream"
    )
    group.add_argument(
        "--wide", action="store_true", help="compute blocks in fewer, larger kernels (made for CUDA, not measured yet)"
    )
    group.add_argument(
        "--compile", action="store_true", help="compile transformer blocks with torch.compile, at the first step"
    )
    group.add_argument(
        "--no-winograd", dest="winograd", action="store_false",
        help="compute large convolutions by their definition: on the CPU less memory for weights, more time",
    )  # fmt: skip
    group.add_argument("--threads", type=int, metavar="N", help="threads of torch on the CPU (default: one per core)")


def tuned(args: argparse.Namespace, device: str, dtype: str) -> Any:
    """The `Runtime` that was asked for. Raises ValueRangeError."""
    import torch

    from ..controlnet_core.engine.runtime import Runtime

    chunk = getattr(args, "chunk", 0)
    if chunk < 0:
        raise ValueRangeError(f"--chunk {chunk}: give a number of pictures, or 0 for as many as fit")
    threads = getattr(args, "threads", None)
    if threads is not None:
        if not 1 <= threads <= MOST_THREADS:
            raise ValueRangeError(f"--threads {threads}: give 1 to {MOST_THREADS}")
        torch.set_num_threads(threads)
    names = ("memory", "graphs", "side_by_side", "wide", "compile", "winograd")
    asked = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return replace(Runtime.choose(device, dtype), chunk=chunk, **asked)


def shortcuts(args: argparse.Namespace) -> Any:
    """The `Shortcuts` that were asked for; None for none, and by commands that do not offer them.

    Raises ValueRangeError.
    """
    found = {field: getattr(args, option, None) for option, field in SHORTCUTS.items()}
    given = {field: value for field, value in found.items() if value is not None}
    if getattr(args, "guidance", None) is not None:
        given["guidance_start"], given["guidance_end"] = args.guidance
    if not given:
        return None
    from ..controlnet_core.engine.run import Shortcuts

    return Shortcuts(**given)


def open_session(args: argparse.Namespace, progress: Progress | None = None) -> Session:
    """Host and classes for parsed arguments. Imports torch."""
    from ..nodes import build_nodes
    from ..nodes.standalone.host import StandaloneHost

    options = host_arguments(args)
    runtime = tuned(args, options["device"], options["dtype"])
    host = StandaloneHost(**options, progress=progress, shortcuts=shortcuts(args), runtime=runtime)
    return Session(host, build_nodes(host))


def host_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `StandaloneHost`.

    Raises MissingFileError when a named folder is missing, ValueRangeError when this machine has no such device.
    """
    from ..controlnet_core.engine.runtime import choose_device

    if args.input is not None and not Path(args.input).is_dir():
        raise MissingFileError(f"--input {args.input}: there is no such folder: check the path", args.input)
    roots, by_kind = model_folders(args.models or [])
    if not args.models and Path("models").is_dir():
        roots = (Path("models"),)
    return {
        "input_dir": Path(args.input or "input"),
        "output_dir": Path(args.output),
        "models_dirs": roots,
        "model_folders": by_kind,
        "device": str(choose_device(getattr(args, "device", "auto"))),
        "dtype": getattr(args, "dtype", "auto"),
    }
