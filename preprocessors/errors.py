"""Typed errors of the preprocessors. Each message says what was given, what was expected, and what to do.

`exit_code` is the exit code of the command line: 2 for wrong usage, 3 for a missing or damaged file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


class PreprocessorError(Exception):
    """Base of all errors of this package that are meant for the user."""

    exit_code = 1


class PictureError(PreprocessorError, ValueError):
    """A picture, mask, map or pose has a shape or a type that cannot be read."""

    exit_code = 2


class ParameterError(PreprocessorError, ValueError):
    """A preprocessor or one of its parameters is unknown, of the wrong type, or outside its range."""

    exit_code = 2


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise ParameterError unless `value` of the parameter `name` is one of the choices."""
    if value not in choices:
        raise ParameterError(f"{name}={value!r}: choose one of {', '.join(choices)}")


class WeightsError(PreprocessorError):
    """A weights file is missing, damaged, or made for another network. `path` is the file, if there is one."""

    exit_code = 3

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)


@contextmanager
def reading_weights(
    path: str | Path, fault: str = "cannot be read as weights, it is damaged or no such file"
) -> Iterator[None]:
    """Turn every exception that is raised while weights are read into a WeightsError that names the file.

    Readers of foreign files raise almost anything (struct.error, AttributeError, RecursionError, ...), so that a list
    of exceptions is never complete. Too little memory is a MemoryError: the file is not to blame for it.
    """
    try:
        yield
    except (WeightsError, MemoryError):
        raise
    except Exception as error:
        if "allocate memory" in str(error):  # torch reports this as a RuntimeError
            raise MemoryError(f"no memory left to read {path}") from error
        # What follows the first sentence is advice for programmers.
        reason = " ".join(str(error).split()).partition(". ")[0][:160] or type(error).__name__
        raise WeightsError(f"{path} {fault} ({reason}): get it again", path) from error
