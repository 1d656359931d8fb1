"""`controlnet preprocess KIND IN... --output DIR`: hints for pictures, folders of pictures, and frames.

Each input becomes one PNG of the same name, in order, so that the count of frames is kept. A hint that is
there already, made by the same settings, mask and nets from a file that is no newer, is not made again; where one
range counts over all frames, they are made again together. A file that cannot be read does not keep the others
from their hints: it is named at the end, and the exit code says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...controlnet_core.errors import CoreError, DamagedFileError, MissingFileError, ValueRangeError
from ..destinations import check_folder
from ..session import add_device_arguments, host_arguments

if TYPE_CHECKING:
    import numpy as np

    from ...preprocessors.learned.library import Library
    from ...preprocessors.registry import Entry

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy"})
POSE = "pose"
_FLOAT_COLOURS = frozenset({".tif", ".tiff"})  # may hold floats in three channels, which Pillow does not know
_PNG_DEPTH = 24  # the byte of the file that says how many bits a channel has
_TIFF_DEPTHS = 258  # the tag that does
_TIFF_DATA = ((273, 279), (324, 325))  # the tags of places and sizes, of strips or of tiles
_NOTE = "controlnet-preprocess"
_NAMED = 3  # of the files that failed, in the error


class _PreprocessError(CoreError):
    """An error of the preprocessors, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Job:
    """One hint to make: where from, where to."""

    source: Path
    target: Path


@dataclass
class Outcome:
    """What became of the jobs: hints made, and inputs without one, each with the reason."""

    made: int = 0
    failed: dict[Path, CoreError] = field(default_factory=dict)

    def check(self, total: int) -> None:
        """Raise where an input has no hint: its own error if it was the only one, else one that names the first."""
        if not self.failed:
            return
        errors = list(self.failed.values())
        if total == 1:
            raise errors[0]
        more = f", and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        named = "; ".join(str(error) for error in errors[:_NAMED])
        message = f"{len(errors)} of {total} inputs have no hint, all others have theirs: {named}{more}"
        raise _PreprocessError(message, max(error.exit_code for error in errors))


@dataclass(frozen=True)
class Settings:
    """What is done to every picture; `note` is written into the hints, so that a later run recognises them."""

    kind: str
    options: dict[str, Any]
    parameters: dict[str, Any]
    chunk: int
    whole: bool = False
    """Whether one range counts over all frames."""
    sources: dict[str, Any] = field(default_factory=dict)
    """What goes into every hint beside its picture: see `_sources`."""

    @property
    def note(self) -> str:
        extra = [self.sources] if self.sources else []
        return json.dumps([self.kind, self.options, self.parameters, *extra], sort_keys=True, default=str)


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
        jobs = plan(args.inputs, Path(args.output), frozenset({".json"}) if args.kind == POSE else PICTURES)
        mask = None if args.mask is None else read_picture(Path(args.mask))[..., 0]
        library = _library(args)
        settings = replace(settings, sources=_sources(settings, jobs, mask, library))
        waiting = _waiting(jobs, settings, args.overwrite)
        outcome = _make_all(waiting, settings, mask, library)
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
    return _PreprocessError(str(error), error.exit_code)


def plan(inputs: Sequence[str], output: Path, suffixes: frozenset[str]) -> list[Job]:
    """One job per picture, in order; folders are read in the order of the numbers in the names.

    Hints of an earlier run, in an `output` below a folder that is read, are no pictures to read.
    Raises MissingFileError where there is nothing to read, ValueRangeError where two inputs would write
    the same file.
    """
    if not inputs:
        raise ValueRangeError("no input was given: name pictures, or folders of them")
    jobs: list[Job] = []
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted((f for f in _files_of(path, output) if f.suffix.lower() in suffixes), key=_natural)
            if not found:
                raise MissingFileError(f"{path} holds no file of type {', '.join(sorted(suffixes))}", path)
            jobs += [Job(file, output / file.relative_to(path).with_suffix(".png")) for file in found]
        elif path.is_file():
            jobs.append(Job(path, output / f"{path.stem}.png"))
        else:
            raise MissingFileError(f"there is no file or folder {path}: check the path", path)
    targets: dict[Path, Path] = {}
    for job in jobs:
        if job.target in targets:
            raise ValueRangeError(
                f"{targets[job.target]} and {job.source} would both be written to {job.target}: rename one"
            )
        if job.target.exists() and job.target.samefile(job.source):
            raise ValueRangeError(f"{job.source} would be overwritten by its own hint: choose another --output")
        targets[job.target] = job.source
    return jobs


def _files_of(folder: Path, output: Path) -> Iterator[Path]:
    """All files in and below a folder, but for those below `output` where that lies inside of it."""
    here, hints = folder.resolve(), output.resolve()
    inside = here in hints.parents
    for path in folder.rglob("*"):
        if path.is_file() and not (inside and hints in (here / path.relative_to(folder)).parents):
            yield path


def is_made(job: Job, note: str) -> bool:
    """True if the hint is there, no older than its source, and made with the settings of `note`."""
    from PIL import Image, UnidentifiedImageError

    if not job.target.is_file() or job.target.stat().st_mtime < job.source.stat().st_mtime:
        return False
    try:
        with Image.open(job.target) as picture:
            return picture.info.get(_NOTE) == note
    except (OSError, UnidentifiedImageError):
        return False


def read_picture(path: Path) -> np.ndarray:
    """A file -> (H,W,C): bytes, 16-bit words or floats as stored; photos are turned as their camera says.

    Raises DamagedFileError if it is no readable picture.
    """
    import numpy as np
    from PIL import Image

    try:
        picture = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_file(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedFileError(f"{path} cannot be read as a picture: {error}") from error
    return picture[..., None] if picture.ndim == 2 else picture


def _read_file(path: Path) -> np.ndarray:
    """By Pillow, which says what is wrong with a file; by cv2 where Pillow would cut the values down to bytes."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd tags; what keeps a file from being read is an error
            with Image.open(path) as opened:
                opened.load()  # the whole file is looked at before cv2 sees it, which prints warnings of its own
                if not _is_deep(opened, path):
                    turned = ImageOps.exif_transpose(opened)
                    return np.asarray(turned.convert("RGBA" if turned.has_transparency_data else "RGB"))
    except UnidentifiedImageError:
        if path.suffix.lower() not in _FLOAT_COLOURS or not _is_whole_tiff(path):
            raise
    return _read_deep(path)


def _is_deep(opened: Any, path: Path) -> bool:
    """Whether a channel has more than 8 bits."""
    if opened.format == "PNG":
        with path.open("rb") as file:
            return file.read(_PNG_DEPTH + 1)[_PNG_DEPTH] > 8
    if opened.format == "TIFF":
        return max(opened.tag_v2.get(_TIFF_DEPTHS, (1,))) > 8
    return False


def _is_whole_tiff(path: Path) -> bool:
    """Whether a file has the tags of a TIFF and all the bytes that they speak of."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)
            tags = ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            places, counts = next((tags[a], tags[b]) for a, b in _TIFF_DATA if a in tags and b in tags)
    except (OSError, SyntaxError, ValueError, StopIteration, struct.error):
        return False
    return max(start + count for start, count in zip(places, counts, strict=False)) <= path.stat().st_size


def _read_deep(path: Path) -> np.ndarray:
    import cv2
    import numpy as np

    try:
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # an empty file, or more pixels than OpenCV reads
        raise ValueError("it is empty or too large") from error
    if picture is None:
        raise ValueError("it is damaged, or of a type that is not known")
    if picture.ndim == 2:
        return picture
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA if picture.shape[-1] == 4 else cv2.COLOR_BGR2RGB)


def write_hint(hint: np.ndarray, path: Path, note: str) -> None:
    """(H,W,3) 0..1 -> PNG, first under another name, so that no half-written file is left behind."""
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(_NOTE, note)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.part")
    try:
        Image.fromarray(np.rint(hint * 255).astype(np.uint8)).save(part, format="PNG", pnginfo=info)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _make_all(jobs: Sequence[Job], settings: Settings, mask: np.ndarray | None, library: Library | None) -> Outcome:
    """Make the hints in chunks of equal size and order."""
    from tqdm import tqdm

    outcome = Outcome()
    if settings.kind == POSE:
        for job in jobs:
            _draw_poses(job, settings, outcome)
        return outcome
    from ...preprocessors import registry

    entry = registry.get(settings.kind)
    whole = settings.whole
    with tqdm(total=len(jobs), unit="picture", disable=None) as bar:
        for chunk, pictures in _chunks(jobs, len(jobs) if whole else settings.chunk, whole, outcome):
            for job, hint in zip(chunk, _hints(entry, chunk, pictures, mask, settings, library, outcome), strict=False):
                write_hint(hint, job.target, settings.note)
                outcome.made += 1
                bar.update()
    return outcome


def open_library(args: argparse.Namespace) -> Library:
    """Where the nets of learned kinds come from; half precision where there is a GPU, unless told otherwise."""
    import torch

    from ...preprocessors.learned.library import Library

    options = host_arguments(argparse.Namespace(**{"input": None, **vars(args)}))
    named = [folder for kind, folders in options["model_folders"].items() if "annotator" in kind for folder in folders]
    auto = torch.float16 if options["device"].startswith("cuda") else torch.float32
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(args.dtype, auto)
    return Library([*named, *options["models_dirs"]], device=options["device"], dtype=dtype)


def _hints(
    entry: Entry,
    jobs: Sequence[Job],
    pictures: np.ndarray,
    mask: np.ndarray | None,
    settings: Settings,
    library: Library | None,
    outcome: Outcome,
) -> Sequence[np.ndarray]:
    """The hints of pictures of one shape; none where that shape cannot be read, which is noted for each of them."""
    from ...preprocessors.errors import PictureError

    try:
        hints = entry.process(pictures, mask=mask, library=library, **settings.options, **settings.parameters)
    except PictureError as error:
        outcome.failed |= {job.source: DamagedFileError(f"{job.source}: {error}") for job in jobs}
        return ()
    if hints.min() < 0:
        raise ValueRangeError(
            f"{entry.name} marks pixels by values below 0, which a PNG cannot hold: use the node, or "
            "--set masked_value=0"
        )
    return hints


def _chunks(jobs: Sequence[Job], size: int, whole: bool, outcome: Outcome) -> Iterator[tuple[list[Job], np.ndarray]]:
    """Up to `size` pictures of one shape and type at a time, in order; unreadable ones are noted and left out."""
    import numpy as np

    group: list[Job] = []
    pictures: list[np.ndarray] = []
    for job in jobs:
        try:
            picture = read_picture(job.source)
        except DamagedFileError as error:
            outcome.failed[job.source] = error
            continue
        same = not pictures or (picture.shape, picture.dtype) == (pictures[0].shape, pictures[0].dtype)
        if whole and not same:
            raise ValueRangeError(
                f"{job.source} is {picture.shape} and the frames before it are {pictures[0].shape}: one range "
                "over all frames needs frames of one size; choose --normalize frame"
            )
        if pictures and (not same or len(pictures) == size):
            yield group, np.stack(pictures)
            group, pictures = [], []
        group.append(job)
        pictures.append(picture)
    if pictures:
        yield group, np.stack(pictures)


def _draw_poses(job: Job, settings: Settings, outcome: Outcome) -> None:
    """OpenPose JSON -> drawn poses; a file of several frames gives numbered pictures."""
    from ...preprocessors.errors import PictureError
    from ...preprocessors.pose import read_poses, render
    from ...preprocessors.resize import detect_size

    try:
        frames = read_poses(job.source.read_text("utf-8"))
    except (PictureError, OSError, UnicodeError) as error:
        outcome.failed[job.source] = DamagedFileError(f"{job.source}: {error}")
        return
    side = settings.options["resolution"]
    for index, pose in enumerate(frames):
        size = detect_size(pose.height, pose.width, resolution=side, resize="shortest", multiple=1)
        name = job.target if len(frames) == 1 else job.target.with_stem(f"{job.target.stem}_{index:05d}")
        write_hint(render([pose], height=size.height, width=size.width)[0], name, settings.note)
        outcome.made += 1


def _settings(args: argparse.Namespace) -> Settings:
    """The parsed arguments, checked against what the kind declares."""
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
    return Settings(args.kind, options, parameters, args.chunk, whole)


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
    if args.json and outcome.failed:
        return  # the error's object is the one that is printed
    if args.json:
        outputs = [str(job.target) for job in jobs]
        print(json.dumps({"ok": True, "made": outcome.made, "kept": kept, "outputs": outputs}))
    else:
        failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
        print(f"{outcome.made} made, {kept} there already{failed}, in {args.output}")


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key by which frame 10 comes after frame 9."""
    words = re.split(r"(\d+)", str(path).lower())
    return [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in words]
