"""Places that a command is told to write to, looked at first: hours of work must not end at a closed door."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile

from ..controlnet_core.errors import ValueRangeError


def check_folder(option: str, folder: Path) -> None:
    """Raise ValueRangeError when files cannot be written into a folder, which need not be there yet.

    Nothing is made: a run that fails earlier leaves no empty folders.
    """
    _check(f"{option} {folder}", folder)


def check_file(option: str, file: Path) -> None:
    """Raise ValueRangeError when a file of this name cannot be written; its folder need not be there yet."""
    if file.is_dir():
        raise ValueRangeError(f"{option} {file}: this is a folder, a file was expected: name a file in it")
    if file.exists() and not os.access(file, os.W_OK):
        raise ValueRangeError(f"{option} {file}: the file there may not be written to: choose another name")
    _check(f"{option} {file}", file.parent)


def _check(given: str, folder: Path) -> None:
    """given: the option as it was written."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueRangeError(f"{given}: {there} is a file, a folder was expected: choose another name")
    try:
        with TemporaryFile(dir=there):  # permissions alone do not tell: nobody makes files in /proc
            pass
    except OSError as error:
        raise ValueRangeError(f"{given}: {there} may not be written to: choose another folder") from error
