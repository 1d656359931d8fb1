"""Releases of installed packages, for tests that need newer ones than the package itself."""

from __future__ import annotations

import re
from importlib.metadata import version


def is_older(package: str, *release: int) -> bool:
    """Whether the installed package is of an older release than this one, such as 2, 5."""
    numbers = [int(number) for number in re.findall(r"\d+", version(package))]
    return numbers[: len(release)] < list(release)
