"""Which hints `controlnet preprocess` makes, from which file and into which file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..controlnet_core.errors import CoreError, MissingFileError, ValueRangeError

if TYPE_CHECKING:
    import numpy as np

_NOTE = "controlnet-preprocess"


@dataclass(frozen=True)
class Job:
    """One hint to make: from which frame of which file, and into which file."""

    source: Path
    target: Path
    frame: int = 0


def plan(
    inputs: Sequence[str], output: Path, suffixes: frozenset[str], count_frames: Callable[[Path], int]
) -> list[Job]:
    """One job per frame, in order; folders are read in the order of the numbers in the names.

    A file of several frames, such as a GIF, gets numbered hints: a_00000.png, a_00001.png and so on.
    Hints of an earlier run, in an `output` below a folder that is read, are no pictures to read, nor are hidden files.
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
            jobs += [job for file in found for job in _jobs_of(file, output / file.relative_to(path), count_frames)]
        elif path.is_file():
            jobs += _jobs_of(path, output / path.name, count_frames)
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


def _jobs_of(source: Path, target: Path, count_frames: Callable[[Path], int]) -> Iterator[Job]:
    """A job for each frame of a file; one for a file that cannot be read, so that the error is reported later."""
    try:
        count = count_frames(source)
    except CoreError:
        count = 1
    for frame in range(count):
        yield Job(
            source, target.with_name(f"{target.stem}_{frame:05d}.png" if count > 1 else f"{target.stem}.png"), frame
        )


def _files_of(folder: Path, output: Path) -> Iterator[Path]:
    """All files in and below a folder, without hidden ones and those below `output` where that lies inside of it."""
    here, hints = folder.resolve(), output.resolve()
    inside = here in hints.parents
    for path in folder.rglob("*"):
        below = path.relative_to(folder)  # macOS puts a hidden "._a.png" beside "a.png", which is no picture
        hidden = any(part.startswith(".") for part in below.parts)
        if path.is_file() and not hidden and not (inside and hints in (here / below).parents):
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


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key by which frame 10 comes after frame 9."""
    words = re.split(r"(\d+)", str(path).lower())
    return [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in words]
