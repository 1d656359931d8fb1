"""Typed errors. Each message says what was given, what was expected, and what to do.

`exit_code` is the exit code of the command line: 2 bad usage or invalid workflow, 3 a missing or unfit file,
4 out of memory, 130 interrupted, 1 anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CoreError(Exception):
    """Base of all errors that are meant for the user."""

    exit_code = 1


class ShapeError(CoreError, ValueError):
    """A tensor has the wrong shape; the message names both shapes."""

    exit_code = 2


class ValueRangeError(CoreError, ValueError):
    """A parameter is outside its range or not one of its choices."""

    exit_code = 2


class WorkflowError(CoreError):
    """A workflow is malformed or invalid; the message names the node, the input and the fix."""

    exit_code = 2


class PathError(CoreError):
    """A path leaves the folders that a workflow may read from or write to."""

    exit_code = 2


class _FileError(CoreError):
    """Base of the errors about one file, `path`."""

    exit_code = 3

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)


class CheckpointError(_FileError):
    """A model file is damaged, of another kind, or has missing or unexpected weights."""


class MissingFileError(CheckpointError):
    """A named file is in none of the folders that were searched."""


class DamagedFileError(_FileError, ValueError):
    """A picture or another file exists and cannot be read; the message says what is wrong with it."""


class UnfitError(CheckpointError):
    """A sound file that does not fit the other models, such as a ControlNet made for another base."""


class NonFiniteError(CoreError):
    """NaN or infinity appeared; the message names the step and the net it came from."""

    exit_code = 3


class OutOfMemory(CoreError):
    """The device has no memory left; the message says what would need less."""

    exit_code = 4


class Interrupted(CoreError):
    """The user stopped the run."""

    exit_code = 130


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
        raise kind(
            f"{path.name} cannot be read ({error.strerror or error}): check its name, and the permissions of the file "
            "and its folder",
            path,
        ) from error
    except Exception as error:
        if "allocate memory" in str(error):  # torch reports this as a RuntimeError
            raise OutOfMemory(
                f"no memory left to read {path.name}: close other programs, or use a smaller file"
            ) from error
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise kind(f"{path.name} is damaged or incomplete ({reason}); download or copy it again", path) from error
