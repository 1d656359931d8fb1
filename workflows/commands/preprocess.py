"""`controlnet preprocess KIND IN... --output DIR`: make hints from pictures, folders of pictures, and frames.

Each input becomes one PNG of the same name, in order, so that the number of frames stays the same. A GIF or another
file with several frames becomes numbered PNGs. A hint is not made again if it was made with the same settings, mask and
networks from a file that is no newer; if one range counts over all frames, all are made again together. A file that
cannot be read does not stop the others: it is named at the end, and the exit code reports it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import preprocessors
from ...controlnet_core.errors import CoreError, ValueRangeError
from ...controlnet_core.picture_files import PICTURE_ENDINGS, count_frames, read_picture
from ..destinations import OVERWRITE_HELP, check_folder
from ..hint_files import Job, check_targets, is_made, plan, remove_old_leftovers
from ..hint_making import POSE, HintError, Outcome, Settings, hint_sources, make_all, read_pose_file
from ..hint_tasks import HintTask, make_on_ray, make_task, split
from ..paths import path_argument, user_path
from ..ray_pool import RayPool, add_ray_arguments, ray_pool
from ..session import add_device_arguments, add_models_argument, host_arguments
from ..shards import add_shard_argument
from ..tar_hints import make_tar, tar_target
from ..terminal import printable

if TYPE_CHECKING:
    import numpy as np

    from ...controlnet_core.picture_files import Picture
    from ...preprocessors.entry import Entry
    from ...preprocessors.learned.library import Library

_SWITCHES = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `preprocess`."""
    add = parser.add_argument
    add("kind", metavar="KIND", nargs="?", help="canny, lines, soft_edge, ...; --list shows all")
    add("inputs", metavar="IN", nargs="*", help="pictures, folders or .tar files of them (for pose: JSON files)")
    add("--output", metavar="DIR", type=path_argument, default="output", help="folder for hints (default: ./output)")
    add("--list", action="store_true", help="list the kinds, or with KIND its parameters")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="a parameter of the kind")
    add("--resolution", type=int, default=0, help="shortest side for the detection (default: the picture's own)")
    add("--multiple", type=int, default=1, help="pad the sides to a multiple of this (default: 1)")
    add("--size", choices=("input_size", "detect_size"), default="input_size", help="size of the hints")
    add("--mask", metavar="FILE", type=path_argument, help="a mask, white where the hint applies")
    add(
        "--normalize", choices=("frame", "batch", "fixed"), default="frame",
        help="range of values: of each frame, of all frames together, or fixed",
    )  # fmt: skip
    add(
        "--canvas", metavar="WIDTHxHEIGHT",
        help="for pose files without a canvas size: the size of the picture that they were made for, or that picture",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the random kinds (default: 0)")
    add_models_argument(parser)
    add_device_arguments(parser)
    add("--chunk", type=int, default=16, help="pictures in memory at a time (default: 16)")
    add_shard_argument(parser, "pictures, and of each tar")
    add_ray_arguments(parser, "pictures and tars")
    add("--overwrite", action="store_true", help=f"make all hints again; {OVERWRITE_HELP}")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Make the hints. Raises an error at the end if an input has none."""
    try:
        if args.list or args.kind is None:
            print("\n".join(_listing(args.kind)))
            return 0 if args.list else 2
        with ray_pool(args) as pool:
            targets, outcome = _make(args, pool)
    except preprocessors.PreprocessorError as error:
        raise HintError(str(error), error.exit_code) from error
    _report(args, targets, outcome)
    outcome.check(outcome.made + outcome.kept + len(outcome.failed))
    return 0


def _make(args: argparse.Namespace, pool: RayPool | None) -> tuple[list[Path], Outcome]:
    """Make the hints, here or in the workers of a pool. Returns their files, and what came of them."""
    settings = _settings(args)
    check_folder("--output", args.output)
    tars = [path for path in map(user_path, args.inputs) if path.suffix.lower() == ".tar"]
    _check_parts(args, settings, tars)
    jobs = _plan(args, settings, tars)
    # Before any network is loaded, and before the first hint is written.
    others = [path for path in (args.mask, _canvas_picture(args.canvas)) if path is not None]
    check_targets(jobs, others, overwrite=args.overwrite)
    remove_old_leftovers(jobs)
    args, here = _placed(args, pool)
    settings = _with_files(settings, here)
    settings = replace(settings, sources=hint_sources(settings, jobs))
    waiting = [job for job in jobs if args.overwrite or not is_made(job, settings.note)]
    # With one range over all frames, a single new frame changes all hints.
    if waiting and settings.whole:
        waiting = jobs
    packed = {tar: tar_target(tar, args.output, args.shard) for tar in tars}
    targets = [*(job.target for job in jobs), *packed.values()]
    if pool is not None:
        tars_first = (HintTask(source=tar, target=target) for tar, target in packed.items())
        tasks = chain(tars_first, split(waiting, args.chunk))
        outcome = make_on_ray(pool, partial(_hint_maker, args, settings.sources), tasks)
    else:
        outcome = make_all(waiting, settings)
        for tar, target in packed.items():
            outcome.add(make_tar(tar, target, settings, args.shard, overwrite=args.overwrite))
    outcome.kept += len(jobs) - len(waiting)
    return targets, outcome


def _placed(args: argparse.Namespace, pool: RayPool | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Return the options for who makes the hints, and for this process."""
    if pool is None or not _needs_network(args):
        return args, args
    # All workers use the same precision, which stands in the hints; this machine may have no GPU.
    dtype = args.dtype if args.dtype != "auto" else "fp16" if pool.size.gpus else "fp32"
    far = argparse.Namespace(**{**vars(args), "dtype": dtype})
    return far, argparse.Namespace(**{**vars(far), "device": "cpu"})


def _with_files(settings: Settings, args: argparse.Namespace) -> Settings:
    """Return the settings with mask and networks."""
    mask = None if args.mask is None else _mask(read_picture(args.mask))
    return replace(settings, mask=mask, library=_library(args))


def _hint_maker(
    args: argparse.Namespace, sources: dict[str, Any], cores: int
) -> Callable[[HintTask], Outcome | CoreError]:
    """Return what makes hints in a worker of Ray. sources: see `Settings`."""
    import cv2

    settings = replace(_with_files(_settings(args), args), sources=sources)
    cv2.setNumThreads(cores)
    if settings.library is not None:
        import torch

        torch.set_num_threads(cores)
    return partial(make_task, settings=settings, shard=args.shard, overwrite=args.overwrite)


def _check_parts(args: argparse.Namespace, settings: Settings, tars: Sequence[Path]) -> None:
    """Raise ValueRangeError for tars or shards with a kind or a range that they cannot have."""
    if tars and args.kind == POSE:
        raise ValueRangeError(f"{tars[0]}: a tar holds pictures, pose reads JSON files: unpack it")
    if settings.whole and (tars or args.shard.count > 1 or args.ray is not None):
        raise ValueRangeError(
            "--normalize batch needs all frames at once: leave out --shard and --ray, and unpack tars"
        )


def _plan(args: argparse.Namespace, settings: Settings, tars: Sequence[Path]) -> list[Job]:
    inputs = [name for name in args.inputs if user_path(name) not in tars]
    if tars and not inputs:
        return []
    endings, count = PICTURE_ENDINGS | {".npy"}, count_frames
    if args.kind == POSE:
        canvas = settings.options.get("canvas")
        endings, count = frozenset({".json"}), lambda path: len(read_pose_file(path, canvas))
    return list(args.shard.of(plan(inputs, args.output, endings, count, _note)))


def _note(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def _library(args: argparse.Namespace) -> Library | None:
    """Return the networks of learned kinds, None for other kinds."""
    return open_library(args) if _needs_network(args) else None


def _needs_network(args: argparse.Namespace) -> bool:
    return args.kind != POSE and bool(preprocessors.get(args.kind).weights)


def open_library(args: argparse.Namespace) -> Library:
    """Return where the networks of learned kinds come from. On a GPU they run in fp16 unless --dtype is given."""
    from ...controlnet_core.runtime.device import DTYPES
    from ...preprocessors.learned.library import Library

    options = host_arguments(args)
    named = [folder for kind, folders in options["model_folders"].items() if "annotator" in kind for folder in folders]
    # Learned preprocessors are small; on a CPU fp16 would be slower than fp32.
    auto = "fp16" if options["device"].startswith("cuda") else "fp32"
    dtype = DTYPES[auto if args.dtype == "auto" else args.dtype]
    return Library([*named, *options["models_dirs"]], device=options["device"], dtype=dtype)


def _settings(args: argparse.Namespace) -> Settings:
    """Return the parsed arguments, checked against the parameters of the kind."""
    if args.chunk < 1:
        raise ValueRangeError(f"--chunk {args.chunk}: choose 1 or more")
    parameters: dict[str, Any] = dict(_assignment(text) for text in args.set)
    whole = False
    if args.kind != POSE:
        entry = preprocessors.get(args.kind)
        parameters = entry.values(_typed(entry, parameters))
        # Only these kinds can share a range: those that read all frames together, and those that map values to it.
        whole = (entry.scope == "batch" or entry.ranged) and args.normalize == "batch"
    elif parameters:
        raise ValueRangeError(f"pose has no parameters, got {', '.join(parameters)}")
    options: dict[str, Any] = {
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


def _mask(picture: Picture) -> np.ndarray:
    """Return the first channel (H, W). Transparent pixels are black: an editor may keep white under them."""
    if not picture.has_alpha:
        return picture.pixels[..., 0]
    print("the mask has an alpha channel: its transparent parts count as black", file=sys.stderr)
    return picture.unit()[..., 0] * picture.alpha()


def _canvas_picture(text: str | None) -> Path | None:
    """Return the picture that --canvas names, None for a size and where the option is not given."""
    return None if not text or re.fullmatch(r"\d{1,5}x\d{1,5}", text) else user_path(text)


def _canvas(text: str) -> tuple[int, int]:
    """Return the (height, width) of "512x768" (width first), or of a picture file."""
    path = _canvas_picture(text)
    if path is None:
        width, _, height = text.partition("x")
        return int(height), int(width)
    if not path.is_file():
        raise ValueRangeError(f"--canvas {text}: expected WIDTHxHEIGHT, such as 512x768, or a picture file")
    height, width = read_picture(path).pixels.shape[:2]
    return height, width


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueRangeError(f"--set {text}: expected NAME=VALUE")
    return name.strip(), value.strip()


def _typed(entry: Entry, texts: dict[str, str]) -> dict[str, Any]:
    """Replace the words for true and false in values of switches. Parameters read numbers themselves."""
    switches = {parameter.name for parameter in entry.parameters if parameter.kind == "bool"}
    return {name: _SWITCHES.get(text.lower(), text) if name in switches else text for name, text in texts.items()}


def _listing(kind: str | None) -> Iterator[str]:
    """Yield lines with all kinds and their summaries, or one kind with its parameters."""
    from ...preprocessors.catalog import ENTRIES

    if kind is None:
        yield f"{POSE:<20} Poses drawn from OpenPose JSON, with hands and faces."
        yield from (f"{entry.name:<20} {entry.summary}" for entry in ENTRIES)
    elif kind == POSE:
        yield "pose: poses drawn from OpenPose JSON, with hands and faces; no parameters"
    else:
        entry = preprocessors.get(kind)
        yield f"{entry.name}: {entry.summary} ({entry.nature}, {entry.polarity})"
        for parameter in entry.parameters:
            yield f"  {parameter.name}={parameter.default}  {parameter.help} [{parameter.range_text}]"


def _report(args: argparse.Namespace, targets: Sequence[Path], outcome: Outcome) -> None:
    for note in outcome.notes:
        print(note, file=sys.stderr)
    if not args.json:
        failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
        white = f", {outcome.over_white} laid over white for their alpha channel" if outcome.over_white else ""
        print(f"{outcome.made} made, {outcome.kept} there already{failed}{white}, in {args.output}")
    elif not outcome.failed:
        # With a failure the JSON object of the error is printed instead.
        outputs = [str(target) for target in targets]
        print(json.dumps({"ok": True, "made": outcome.made, "kept": outcome.kept, "outputs": outputs}))
