"""Which hints `controlnet preprocess` makes, from which file and into which file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..controlnet_core.errors import MissingFileError, ValueRangeError

if TYPE_CHECKING:
    import numpy as np

_NOTE = "controlnet-preprocess"


@dataclass(frozen=True)
class Job:
    """One hint to make: where from, where to."""

    source: Path
    target: Path


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
