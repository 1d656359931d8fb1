"""`manifest.jsonl` in an output folder: one line for each finished or failed row, by which a later run goes on.

Several processes may append to one file: each line is written at once. A line that a kill cut off is ignored.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import writing


class Manifest:
    """The lines of a manifest, those of other processes too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "manifest.jsonl"
        self._read = 0
        self._files: dict[str, list[str]] = {}

    def is_finished(self, key: str) -> bool:
        """Whether the row of this key was finished, and all its files are there."""
        self._refresh()
        return key in self._files and all((self.folder / name).is_file() for name in self._files[key])

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line. Raises WriteError."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with writing(self.path), self.path.open("a+b") as file:
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                # Without its end the last line was cut off by a kill: it must not swallow this one.
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def _refresh(self) -> None:
        """Read the lines that were added since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                record = json.loads(line)
                if "error" not in record:
                    self._files[record["key"]] = [str(name) for name in record["files"]]
