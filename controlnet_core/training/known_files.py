"""What was found out about files before, kept in a JSON file, so that only files that changed are read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..atomic_files import atomic_write
from ..errors import writing


class KnownFiles:
    """Numbers about files. path: of the JSON file; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._before = _load(path)
        self._now: dict[str, list[int]] = {}

    def recall(self, file: Path, measure: Callable[[], list[int]], beside: Sequence[Path] = ()) -> list[int]:
        """What `measure` returns, or returned when the file had the same time and size, and so had those beside it.

        Raises OSError for a file that is not there, and what `measure` raises.
        """
        stamp = [number for path in (file, *beside) for number in (path.stat().st_mtime_ns, path.stat().st_size)]
        before = self._before.get(str(file))
        if isinstance(before, list) and before[: len(stamp)] == stamp and len(before) > len(stamp):
            found = before[len(stamp) :]
        else:
            found = measure()
        self._now[str(file)] = [*stamp, *found]
        return found

    def forget(self, file: Path) -> None:
        """Measure a file again the next time."""
        self._now.pop(str(file), None)

    def save(self) -> None:
        """Write the sizes of all files that `recall` returned."""
        if self._path is not None:
            with writing(self._path), atomic_write(self._path) as out:
                out.write(json.dumps(self._now).encode())


def _load(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    try:
        known = json.loads(path.read_bytes())
    except ValueError:  # damaged: the files are read again
        return {}
    return known if isinstance(known, dict) else {}
