"""All preprocessors by name, and the one function that runs any of them.

Importing this loads neither numpy, torch nor cv2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .catalog import ENTRIES
from .entry import Entry
from .errors import ParameterError

if TYPE_CHECKING:
    from .image_ops import Array

_BY_NAME = {entry.name: entry for entry in ENTRIES}


def get(name: str) -> Entry:
    """The entry called `name`. Raises ParameterError with similar names if there is none."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    # Not at the top: it takes as long as the rest of the package's import.
    from difflib import get_close_matches

    near = get_close_matches(name, _BY_NAME, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(_BY_NAME)}"
    raise ParameterError(f"there is no preprocessor {name!r}; {hint}")


def names() -> tuple[str, ...]:
    """All names, in the order of the catalogue."""
    return tuple(_BY_NAME)


def process(kind: str | Entry, image: Array, **options: Any) -> Array:
    """Run a preprocessor, by its name or its entry. `run.process` lists the options."""
    from . import run

    return run.process(get(kind) if isinstance(kind, str) else kind, image, **options)
