"""Find workflow files: a path, or the name of a workflow that comes with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..controlnet_core.errors import MissingFileError
from .paths import exists, user_path

FOLDER = Path(__file__).resolve().parent
ASSETS = FOLDER.parent / "controlnet_core" / "assets"
"""Demo models and example pictures."""


def bundled_names() -> tuple[str, ...]:
    """Return the names of the workflows that come with the package, such as "canny_to_image"."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def find_workflow(name: str) -> Path:
    """Return the file for "my/own.json", "picture.png", "canny_to_image" or "workflows/canny_to_image.json".

    Raises MissingFileError that names the nearest bundled workflow if there is none.
    """
    # A file of the user wins over a bundled workflow of the same name.
    given = user_path(name)
    if exists(given):
        return given
    stem = given.name.removesuffix(".json")
    names = bundled_names()
    if str(given.parent) in (".", "workflows") and stem in names:
        return FOLDER / f"{stem}.json"
    near = difflib.get_close_matches(stem, names, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}?" if near else f"bundled are {', '.join(names) or 'none'}"
    raise MissingFileError(f"there is no file {name}: {meant}", given)
