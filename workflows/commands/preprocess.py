"""`controlnet preprocess KIND IN... --output DIR`: hints for pictures, folders of pictures, and frames.

Each input becomes one PNG of the same name, in order, so that the count of frames is kept; a GIF or another file of
several frames becomes numbered PNGs. A hint that is
there already, made by the same settings, mask and nets from a file that is no newer, is not made again; where one
range counts over all frames, they are made again together. A file that cannot be read does not keep the others
from their hints: it is named at the end, and the exit code says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...controlnet_core.errors import CoreError, ValueRangeError
from ...controlnet_core.picture_files import PICTURE_ENDINGS, count_frames, read_picture
from ..destinations import check_folder
from ..hint_files import Job, is_made, plan
from ..hint_making import POSE, HintError, Outcome, Settings, make_all, read_pose_file
from ..session import add_device_arguments, host_arguments

if TYPE_CHECKING:
    import numpy as np

    from ...preprocessors.learned.library import Library
    from ...preprocessors.registry import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `preprocess`."""
    parser.add_argument("kind", metavar="KIND", nargs="?", help="canny, lines, soft_edge, ...; --list shows all")
    parser.add_argument("inputs", metavar="IN", nargs="*", help="pictures, or folders of them (for pose: JSON files)")
    parser.add_argument("--output", metavar="DIR", default="output", help="where the hints go (default: ./output)")
    parser.add_argument("--list", action="store_true", help="list the kinds, or with KIND its parameters")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="a parameter of the kind")
    parser.add_argument("--resolution", type=int, default=0, help="shortest side for the detection (default: as it is)")
    parser.add_argument("--multiple", type=int, default=1, help="pad the sides to a multiple of this (default: 1)")
    parser.add_argument("--size", choices=("input_size", "detect_size"), default="input_size", help="size of the hints")
    parser.add_argument("--mask", metavar="FILE", help="a mask, white where the hint applies")
    parser.add_argument(
        "--normalize", choices=("frame", "batch", "fixed"), default="frame", help="range over each frame, or over all"
    )
    parser.add_argument(
        "--canvas",
        metavar="WIDTHxHEIGHT",
        help="for pose files that name no canvas: the size of the picture that they were made for, or that picture",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random kinds (default: 0)")
    parser.add_argument(
        "--models",
        metavar="DIR",
        action="append",
        help="where the nets of learned kinds are: a models folder, or its extra_model_paths.yaml (default: ./models)",
    )
    add_device_arguments(parser)
    parser.add_argument("--chunk", type=int, default=16, help="pictures in memory at a time (default: 16)")
    parser.add_argument("--overwrite", action="store_true", help="make all hints again, also those that are there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 when every input has its hint; raises after the last one where some have none."""
    from ...preprocessors.errors import PreprocessorError

    try:
        if args.list or args.kind is None:
            print("\n".join(_listing(args.kind)))
            return 0 if args.list else 2
        settings = _settings(args)
        check_folder("--output", Path(args.output))
        if args.kind == POSE:
            canvas = settings.options.get("canvas")
            count = lambda path: len(read_pose_file(path, canvas))  # noqa: E731
            jobs = plan(args.inputs, Path(args.output), frozenset({".json"}), count)
        else:
            jobs = plan(args.inputs, Path(args.output), PICTURE_ENDINGS | {".npy"}, count_frames)
        mask = None if args.mask is None else read_picture(Path(args.mask)).pixels[..., 0]
        library = _library(args)
        settings = replace(settings, sources=_sources(settings, jobs, mask, library))
        waiting = _waiting(jobs, settings, args.overwrite)
        outcome = make_all(waiting, settings, mask, library)
    except PreprocessorError as error:
        raise _as_core_error(error) from error
    _report(args, jobs, len(jobs) - len(waiting), outcome)
    outcome.check(len(jobs))
    return 0


def _library(args: argparse.Namespace) -> Library | None:
    """The nets, for kinds that have any."""
    from ...preprocessors import registry

    return open_library(args) if args.kind != POSE and registry.get(args.kind).weights else None


def _sources(
    settings: Settings, jobs: Sequence[Job], mask: np.ndarray | None, library: Library | None
) -> dict[str, Any]:
    """What every hint is made of beside its own picture: the mask, the nets, all frames of a shared range."""
    from ...preprocessors import registry

    found: dict[str, Any] = {}
    if mask is not None:
        found["mask"] = hashlib.sha256(f"{mask.shape} {mask.dtype}".encode() + mask.tobytes()).hexdigest()
    if library is not None:
        found |= {"weights": library.stamps(registry.get(settings.kind)), "dtype": str(library.dtype)}
    if settings.whole:
        stamps = [(job.source.name, job.source.stat().st_mtime_ns, job.source.stat().st_size) for job in jobs]
        found["frames"] = hashlib.sha256(repr(stamps).encode()).hexdigest()
    return found


def _waiting(jobs: Sequence[Job], settings: Settings, overwrite: bool) -> list[Job]:
    """The jobs without a hint that may stay; all of them if any, where one range counts over all."""
    waiting = [job for job in jobs if overwrite or not is_made(job, settings.note)]
    return list(jobs) if waiting and settings.whole else waiting


def _as_core_error(error: Any) -> CoreError:
    return HintError(str(error), error.exit_code)


def open_library(args: argparse.Namespace) -> Library:
    """Where the nets of learned kinds come from; half precision where there is a GPU, unless told otherwise."""
    import torch

    from ...preprocessors.learned.library import Library

    options = host_arguments(argparse.Namespace(**{"input": None, **vars(args)}))
    named = [folder for kind, folders in options["model_folders"].items() if "annotator" in kind for folder in folders]
    auto = torch.float16 if options["device"].startswith("cuda") else torch.float32
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(args.dtype, auto)
    return Library([*named, *options["models_dirs"]], device=options["device"], dtype=dtype)


def _settings(args: argparse.Namespace) -> Settings:
    """The parsed arguments, checked against the parameters of the kind."""
    if args.chunk < 1:
        raise ValueRangeError(f"--chunk {args.chunk}: choose 1 or more")
    parameters: dict[str, Any] = dict(_assignment(text) for text in args.set)
    whole = False
    if args.kind == POSE:
        if parameters:
            raise ValueRangeError(f"pose has no parameters, got {', '.join(parameters)}")
    else:
        from ...preprocessors import registry

        entry = registry.get(args.kind)
        parameters = entry.values(_typed(entry, parameters))
        whole = (entry.scope == "batch" or entry.ranged) and args.normalize == "batch"
    options = {
        "resolution": args.resolution,
        "resize": "shortest" if args.resolution else "input",
        "multiple": args.multiple,
        "output": args.size,
        "normalize": args.normalize,
        "seed": args.seed,
    }
    if args.canvas:
        if args.kind != POSE:
            raise ValueRangeError("--canvas is the size of pose files: leave it out for other kinds")
        options["canvas"] = _canvas(args.canvas)
    return Settings(args.kind, options, parameters, args.chunk, whole)


def _canvas(text: str) -> tuple[int, int]:
    """The (height, width) of "512x768" (width first), or of a picture file."""
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if size:
        return int(size[2]), int(size[1])
    if not Path(text).expanduser().is_file():
        raise ValueRangeError(f"--canvas {text}: expected WIDTHxHEIGHT, such as 512x768, or a picture file")
    height, width = read_picture(Path(text).expanduser()).pixels.shape[:2]
    return height, width


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueRangeError(f"--set {text}: expected NAME=VALUE")
    return name.strip(), value.strip()


def _typed(entry: Entry, texts: dict[str, str]) -> dict[str, Any]:
    """Words for true and false as such; numbers are read by the parameters themselves."""
    words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
    switches = {parameter.name for parameter in entry.parameters if parameter.kind == "bool"}
    return {name: words.get(text.lower(), text) if name in switches else text for name, text in texts.items()}


def _listing(kind: str | None) -> Iterator[str]:
    """All kinds with their summaries, or one with its parameters."""
    from ...preprocessors import registry
    from ...preprocessors.catalog import ENTRIES

    if kind is None:
        yield f"{POSE:<20} Poses drawn from OpenPose JSON, with hands and faces."
        yield from (f"{entry.name:<20} {entry.summary}" for entry in ENTRIES)
    elif kind == POSE:
        yield "pose: poses drawn from OpenPose JSON, with hands and faces; no parameters"
    else:
        entry = registry.get(kind)
        yield f"{entry.name}: {entry.summary} ({entry.nature}, {entry.polarity})"
        for parameter in entry.parameters:
            yield f"  {parameter.name}={parameter.default}  {parameter.help} [{parameter.range_text}]"


def _report(args: argparse.Namespace, jobs: Sequence[Job], kept: int, outcome: Outcome) -> None:
    print(*outcome.notes, sep="\n", end="\n" if outcome.notes else "", file=sys.stderr)
    if args.json and outcome.failed:
        return  # the error's object is the one that is printed
    if args.json:
        outputs = [str(job.target) for job in jobs]
        print(json.dumps({"ok": True, "made": outcome.made, "kept": kept, "outputs": outputs}))
    else:
        failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
        white = f", {outcome.over_white} laid over white for their alpha channel" if outcome.over_white else ""
        print(f"{outcome.made} made, {kept} there already{failed}{white}, in {args.output}")
