"""Plan the hints of `controlnet preprocess` (from which file, into which file), and read and write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..controlnet_core.errors import CoreError, MissingFileError, ValueRangeError
from ..nodes.folders import remove_leftovers, walk_entries
from .destinations import check_replacement, complete_file, ignores_case
from .paths import exists, user_path

if TYPE_CHECKING:
    import numpy as np

_NOTE = "controlnet-preprocess"
"""Key of the text in a hint that holds the settings that it was made with."""
_SHOWN_NAMES = 5
_PNG_END = b"IEND\xaeB`\x82"


def ignore(text: str) -> None:
    """A callback for texts that nobody wants to read."""


@dataclass(frozen=True)
class Job:
    """One hint to make: from which frame of which file, and into which file."""

    source: Path
    target: Path
    frame: int = 0


def plan(
    inputs: Sequence[str],
    output: Path,
    suffixes: frozenset[str],
    count_frames: Callable[[Path], int],
    on_note: Callable[[str], None] = ignore,
) -> list[Job]:
    """Return one job per frame, in order. Folders are read in the order of the numbers in the file names.

    A file of several frames, such as a GIF, gets numbered hints: a_00000.png, a_00001.png and so on. Hidden files are
    skipped, and so are hints of an earlier run in an `output` below a folder that is read. on_note: see `files_in`.
    Raises MissingFileError if there is nothing to read, ValueRangeError if two inputs would be written to the same
    file.
    """
    if not inputs:
        raise ValueRangeError("no input was given: name pictures, or folders of them")
    jobs: list[Job] = []
    for path in map(user_path, inputs):
        if path.is_dir():
            found = files_in(path, output, suffixes, on_note)
            jobs += [job for file in found for job in _jobs_of(file, output / file.relative_to(path), count_frames)]
        elif exists(path):
            jobs += _jobs_of(path, output / path.name, count_frames)
        else:
            raise MissingFileError(f"there is no file or folder {path}: check the path", path)
    targets: dict[str, Job] = {}
    for job in jobs:
        other = targets.setdefault(str(job.target).casefold(), job)
        if other is not job and (other.target == job.target or ignores_case(output)):
            raise ValueRangeError(f"{other.source} and {job.source} would both be written to {job.target}: rename one")
    return jobs


def check_targets(jobs: Sequence[Job], others: Iterable[Path], *, overwrite: bool) -> None:
    """Raise ValueRangeError if a hint would replace an input, or a file that is no hint unless `overwrite`.

    others: further files that the run reads, such as the mask.
    """
    taken = [job for job in jobs if exists(job.target)]
    if not taken:
        return
    # Compared by device and inode: on a file system that ignores case, a.PNG and a.png are the same file.
    inputs = {_identity(path): path for path in (*(job.source for job in jobs), *others) if exists(path)}
    for job in taken:
        same = [inputs[_identity(job.target)]] if _identity(job.target) in inputs else []
        check_replacement("hint", job.target, same, lambda path: hint_note(path) is not None, overwrite=overwrite)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _jobs_of(source: Path, target: Path, count_frames: Callable[[Path], int]) -> Iterator[Job]:
    """Yield a job for each frame of a file, or one for a file that cannot be read: the error is reported later."""
    try:
        count = count_frames(source)
    except CoreError:
        count = 1
    for frame in range(count):
        name = f"{target.stem}_{frame:05d}.png" if count > 1 else f"{target.stem}.png"
        yield Job(source, target.with_name(name), frame)


def files_in(
    folder: Path, output: Path, suffixes: frozenset[str], on_note: Callable[[str], None] = ignore
) -> list[Path]:
    """Return the files of these types in and below a folder, in the order of the numbers in their names.

    Files below `output` are left out if it is inside the folder. Hidden files are skipped: macOS puts a "._a.png"
    beside "a.png", which is no picture. on_note(text) is called once if anything else is left out. Raises
    MissingFileError if there is no file of these types.
    """
    # With `preprocess . --output output` the hints of the first run must not become pictures of the second.
    here, hints = folder.resolve(), output.resolve()
    has_hints = here in hints.parents
    found, left_out = [], []
    for path in walk_entries(folder):
        name = path.relative_to(folder)
        if has_hints and hints in (here / name).parents:
            continue
        if not path.is_file():
            left_out.append(f"{name} ({'a link to nothing' if path.is_symlink() else 'no file'})")
        elif path.suffix.lower() in suffixes:
            found.append(path)
        else:
            left_out.append(str(name))
    if not found:
        others = f"; it holds {some_names(left_out)}" if left_out else ""
        raise MissingFileError(f"{folder} holds no file of type {', '.join(sorted(suffixes))}{others}", folder)
    if left_out:
        on_note(left_out_of(folder, left_out))
    return sorted(found, key=_natural)


def left_out_of(place: Path, names: Sequence[str]) -> str:
    """Return the line that says what of a folder or tar is not read."""
    count = "1 file is" if len(names) == 1 else f"{len(names)} files are"
    return f"{place}: {count} left out, of another type or not readable: {some_names(names)}"


def some_names(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def is_made(job: Job, note: str) -> bool:
    """Whether the hint exists, is no older than its source, and was made with the settings of `note`."""
    if not job.target.is_file() or job.target.stat().st_mtime < job.source.stat().st_mtime:
        return False
    # Files appear when they are complete, but a power failure can still cut off the end.
    with job.target.open("rb") as file:
        file.seek(max(0, job.target.stat().st_size - len(_PNG_END)))
        is_whole = file.read() == _PNG_END
    return is_whole and hint_note(job.target) == note


def hint_note(path: Path | BytesIO) -> str | None:
    """Return the settings of a hint, None for any other file."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get(_NOTE)
    except Exception:
        # Pillow raises many types. A file that it cannot read is no hint of this command.
        return None


def write_hint(hint: np.ndarray, path: Path, note: str) -> None:
    """Write a hint (H, W, 3), uint8, as PNG, whose file appears when it is complete. Raises WriteError."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    # The settings stand in the file itself, so they stay with it when it is moved.
    info = PngInfo()
    info.add_text(_NOTE, note)
    with complete_file(path) as temporary:
        Image.fromarray(hint).save(temporary, format="PNG", pnginfo=info)


def remove_old_leftovers(jobs: Sequence[Job]) -> None:
    """Remove the temporary files that a killed run left in the folders of the hints."""
    for folder in {job.target.parent for job in jobs}:
        if folder.is_dir():
            remove_leftovers(folder)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key that puts frame 10 after frame 9."""
    words = re.split(r"(\d+)", str(path).lower())
    return [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in words]
