"""Check the places that a command writes to before it begins: hours of work must not end with an error, and no file of
the user may be lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile

from ..controlnet_core.errors import ValueRangeError, writing
from ..nodes.folders import temporary_file
from .paths import exists

OVERWRITE_HELP = "replace files that another program wrote, too"


def check_folder(option: str, folder: Path) -> None:
    """Raise ValueRangeError if files cannot be written into a folder, which need not exist yet.

    Nothing is created: a run that fails earlier leaves no empty folders.
    """
    _check(f"{option} {folder}", folder)


def check_file(option: str, file: Path) -> None:
    """Raise ValueRangeError if a file of this name cannot be written. Its folder need not exist yet."""
    if file.is_dir():
        raise ValueRangeError(f"{option} {file}: this is a folder, expected a file: name a file in it")
    if exists(file) and not os.access(file, os.W_OK):
        raise ValueRangeError(f"{option} {file}: this file is not writable: choose another name")
    _check(f"{option} {file}", file.parent)


def check_replacement(
    option: str, file: Path, inputs: Iterable[Path], is_own: Callable[[Path], bool], *, overwrite: bool
) -> None:
    """Raise ValueRangeError if writing a file would lose data that this tool did not make.

    An output never replaces an input of the same run, and replaces a file of another program only with `overwrite`.
    is_own: whether this tool wrote the file that has the name now.
    """
    if not exists(file):
        return
    # By file, not by name: one of the names may be a link, or written in another way.
    same = next((path for path in inputs if exists(path) and file.samefile(path)), None)
    if same is not None:
        raise ValueRangeError(f"{option} {file}: the run reads {same}, which would be overwritten: choose another name")
    if not overwrite and not is_own(file):
        raise ValueRangeError(
            f"{option} {file}: this file exists and was not made by this command: choose another name, or give "
            "--overwrite to replace it"
        )


def ignores_case(folder: Path) -> bool:
    """Whether names that differ only in upper and lower case are one file in a folder, as on Windows and macOS.

    The folder need not exist yet: then its nearest existing parent is asked.
    """
    with NamedTemporaryFile(dir=_nearest(folder), prefix="case-") as file:
        path = Path(file.name)
        return path.with_name(path.name.upper()).exists()


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file gets its own name when it is complete, and no rest is left.

    The folder is made if needed. Raises WriteError, such as on a full disk.
    """
    temporary = temporary_file(path.parent)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
    finally:
        # The folder may not exist, or may be a file.
        with contextlib.suppress(OSError):
            temporary.unlink()


def _check(given: str, folder: Path) -> None:
    """given: the option as it was written."""
    existing = _nearest(folder)
    if not existing.is_dir():
        raise ValueRangeError(f"{given}: {existing} is a file, expected a folder: choose another name")
    try:
        # Permissions are not enough: nobody can create files in /proc.
        with TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueRangeError(f"{given}: {existing} is not writable: choose another folder") from error


def _nearest(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    existing = folder.absolute()
    while not exists(existing) and existing != existing.parent:
        existing = existing.parent
    return existing
