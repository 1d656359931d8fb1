"""Typed errors. Each message says what came, what was expected, and what to do.

`exit_code` is what the command line ends with: 2 bad usage or invalid workflow, 3 a missing or
unfit file, 4 out of memory, 130 interrupted, 1 anything else.
"""

from __future__ import annotations

from pathlib import Path


class CoreError(Exception):
    """Base of all errors that are meant to be read by a person."""

    exit_code = 1


class ShapeError(CoreError, ValueError):
    """A tensor has a shape that does not fit; the message names both shapes."""

    exit_code = 2


class ValueRangeError(CoreError, ValueError):
    """A parameter is outside its range or not one of its choices."""

    exit_code = 2


class WorkflowError(CoreError):
    """A workflow is malformed or does not validate; the message names node, input and remedy."""

    exit_code = 2


class PathError(CoreError):
    """A path leaves the folders that a workflow may read from or write to."""

    exit_code = 2


class CheckpointError(CoreError):
    """A model file is damaged, of another kind, or has keys missing or left over."""

    exit_code = 3

    def __init__(self, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)


class MissingFileError(CheckpointError):
    """A named file is not in any of the folders that were searched."""


class DamagedFileError(CoreError, ValueError):
    """A picture or other file that is there cannot be read; the message says what is wrong with it."""

    exit_code = 3


class UnfitError(CheckpointError):
    """A sound file that does not fit the rest, such as a ControlNet made for another base."""


class NonFiniteError(CoreError):
    """NaN or infinity appeared; the message names the step and the net it came from."""

    exit_code = 3


class OutOfMemory(CoreError):
    """The device has no memory left; the message says what would need less."""

    exit_code = 4


class Interrupted(CoreError):
    """The user stopped the run."""

    exit_code = 130
