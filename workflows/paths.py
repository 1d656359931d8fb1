"""Paths that a user gives on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..controlnet_core.errors import ValueRangeError


def user_path(text: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder. Raises ValueRangeError for `~name` of an unknown user.

    The shell replaces `~` only at the start of a word, so not in `--output=~/pictures`.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueRangeError(f"{text}: the home folder is not known: write the whole path") from error


def exists(path: Path) -> bool:
    """Whether there is a file or folder; False for names that no file can have, for which `Path.exists` raises."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def path_argument(text: str) -> Path:
    """Return `user_path`, for the type of an argument."""
    try:
        return user_path(text)
    except ValueRangeError as error:
        # argparse replaces the message of any other error.
        raise argparse.ArgumentTypeError(str(error)) from error
