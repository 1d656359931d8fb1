"""Typed errors of the preprocessors. Each message says what was given, what was expected, and what to do.

`exit_code` is the exit code of the command line: 2 for wrong usage, 3 for a missing or damaged file.
"""

from __future__ import annotations

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


class WeightsError(PreprocessorError):
    """A weights file is missing, damaged, or made for another network. `path` is the file, if there is one."""

    exit_code = 3

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)
