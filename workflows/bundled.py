"""Finding workflow files: a path as given, else one of those that come with the package, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..controlnet_core.errors import MissingFileError

FOLDER = Path(__file__).resolve().parent


def bundled_names() -> tuple[str, ...]:
    """Names of the workflows that come with the package, such as "canny_to_image"."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def find_workflow(name: str) -> Path:
    """The file for "my/own.json", "picture.png", "canny_to_image" or "workflows/canny_to_image.json".

    Raises MissingFileError, naming the nearest bundled workflow, when there is none.
    """
    given = Path(name).expanduser()
    if given.exists():
        return given
    stem = given.name[:-5] if given.name.endswith(".json") else given.name
    names = bundled_names()
    if str(given.parent) in (".", "workflows") and stem in names:
        return FOLDER / f"{stem}.json"
    near = difflib.get_close_matches(stem, names, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}?" if near else f"bundled are {', '.join(names) or 'none'}"
    raise MissingFileError(f"there is no file {name}: {meant}", given)
