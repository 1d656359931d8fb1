"""Errors for users. Each message says what was given, what was expected, and what to do.

The command line ends with the `exit_code` of the error: 2 for wrong usage or an invalid workflow, 3 for a file that
is missing, damaged or does not fit, 4 when memory runs out, 130 when the user interrupts, 1 for anything else.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CoreError(Exception):
    """Base class of all errors whose message is for the user; raised itself for what no subclass covers.

    Exit code 1. The command prints the message only; `--debug` adds the traceback.
    """

    exit_code = 1


class ShapeError(CoreError, ValueError):
    """Raised when a tensor or picture has a shape that does not fit. The message names both shapes. Exit code 2."""

    exit_code = 2


class ValueRangeError(CoreError, ValueError):
    """Raised when a parameter is outside its range or is not one of its choices. Exit code 2."""

    exit_code = 2


class MissingPackageError(CoreError):
    """Raised when an option needs a package that is not installed. The message says how to get it. Exit code 3."""

    exit_code = 3


class WorkflowError(CoreError):
    """Raised when a workflow cannot be read or is invalid. The message names the node and the input. Exit code 2."""

    exit_code = 2


class PathError(CoreError):
    """Raised when a path is outside the folders that a workflow may read from or write to. Exit code 2."""

    exit_code = 2


class _FileError(CoreError):
    """Base class of the errors about one file, `path`. Exit code 3."""

    exit_code = 3

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)


class CheckpointError(_FileError):
    """Raised when a model file is damaged, is of another kind, or has missing or unexpected weights. Exit code 3."""


class MissingFileError(CheckpointError):
    """Raised when a file is in none of the folders that were searched. Exit code 3."""


class DamagedFileError(_FileError, ValueError):
    """Raised when a picture, or another file that is not a model, exists but cannot be read. Exit code 3."""


class WriteError(_FileError):
    """A file cannot be written, for example because the disk is full."""


class UnfitError(CheckpointError):
    """Raised when a valid file does not fit the other models, as a ControlNet made for another base. Exit code 3."""


class NonFiniteError(CoreError):
    """Raised when NaN or infinity appears in a run. The message names the step and the net. Exit code 3."""

    exit_code = 3


class OutOfMemory(CoreError):
    """Raised when the device has no memory left. The message says what would need less. Exit code 4."""

    exit_code = 4


class Interrupted(CoreError):
    """Raised when the user stops the run. Exit code 130, as of a program that Ctrl+C ends in a shell."""

    exit_code = 130


def unreadable(name: str, error: OSError) -> str:
    """The message for a file that the system does not let us read."""
    reason = error.strerror or error
    return f"{name} cannot be read ({reason}): check its name, and the permissions of the file and its folder"


@contextmanager
def reading(path: str | Path, kind: type[_FileError] = DamagedFileError) -> Iterator[None]:
    """Turn every exception that is raised while a file is read into one typed error that names the file.

    Parsers of foreign bytes raise almost anything (struct.error, AssertionError, RecursionError, ...), so that a
    list of exceptions is never complete. path: the file. kind: the error to raise; errors of this kind pass
    unchanged if they know their file. A missing file is a MissingFileError, too little memory OutOfMemory.
    """
    path = Path(path)
    try:
        yield
    except (OutOfMemory, Interrupted, MemoryError):
        raise
    except CoreError as error:
        if isinstance(error, kind) and error.path is not None:
            raise
        raise kind(f"{path.name}: {error}", path) from error
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no file {path}: check the name and the folder", path) from error
    except OSError as error:
        raise kind(unreadable(path.name, error), path) from error
    except Exception as error:
        if "allocate memory" in str(error):  # torch reports this as a RuntimeError
            raise OutOfMemory(
                f"no memory left to read {path.name}: close other programs, or use a smaller file"
            ) from error
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise kind(f"{path.name} is damaged or incomplete ({reason}); download or copy it again", path) from error


DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
"""Errors of the system when there is no space, on the disk or within a quota."""


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError that is raised while a file is written into a WriteError that names the file."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} could not be written ({error.strerror or error}): make room, or choose another folder", path
        ) from error
