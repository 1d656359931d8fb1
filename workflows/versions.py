"""Versions of installed packages."""

from __future__ import annotations

from importlib import metadata


def installed_version(*names: str) -> str | None:
    """Return the version of the first of these packages that is installed, None if none is."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
