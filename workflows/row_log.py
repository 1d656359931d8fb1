"""The rows of `controlnet run --each` that are still to be made, and their results.

The process that a person started keeps this log: it alone writes the manifest and holds the locks of rows, wherever
the rows are made. Lines of a manifest are whole then also on a network drive, where appending is not safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import CoreError, Interrupted, writing
from .combinations import Row
from .locks import try_lock
from .manifest import Manifest

UNFINISHED = ".unfinished"
"""Folder in the output folder for the files of rows that are under way."""


class RowsFailed(CoreError):
    """Some rows failed, the others are done."""


@dataclass
class Totals:
    """What came of the rows. files: of finished ones. busy: rows that another process is making."""

    done: int = 0
    kept: int = 0
    busy: int = 0
    files: list[str] = field(default_factory=list)
    failed: dict[str, CoreError] = field(default_factory=dict)

    def check(self, manifest: Path) -> None:
        """Raise RowsFailed, with the highest exit code, if a row failed."""
        if self.failed:
            name, first = next(iter(self.failed.items()))
            total = self.done + self.kept + self.busy + len(self.failed)
            error = RowsFailed(
                f"{len(self.failed)} of {total} rows failed, the others are done: {name}: {first}; {manifest} names "
                "them, and the same command tries them again"
            )
            error.exit_code = max(failure.exit_code for failure in self.failed.values())
            raise error


@dataclass(frozen=True)
class Task:
    """A row to make, and the key by which the manifest will know it."""

    row: Row
    key: str


@dataclass(frozen=True)
class Made:
    """What came of a task: its files, relative to the output folder, or the error. Also its seconds and warnings."""

    files: tuple[str, ...] = ()
    error: CoreError | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


class RowLog:
    """Which rows of an output folder are made, under way, or failed.

    settings: those of the command line, for the manifest. tell: called with a line for each row that ended.
    """

    def __init__(self, folder: Path, settings: Sequence[str], tell: Callable[[str], None]) -> None:
        """Make the folder. Raises WriteError."""
        self.manifest, self.totals, self.work = Manifest(folder), Totals(), folder / UNFINISHED
        self._settings, self._tell = list(settings), tell
        self._locks: dict[str, ExitStack] = {}
        with writing(self.work):
            self.work.mkdir(parents=True, exist_ok=True)

    def waiting(self, rows: Iterable[Row], key_of: Callable[[Row], str]) -> Iterator[Task]:
        """Lock and yield the rows that are not finished and that no other process makes, one at a time."""
        for row in rows:
            try:
                key = key_of(row)
            except (CoreError, OSError) as error:
                self._fail(row, {}, as_core_error(error), 0.0)
                continue
            if self.manifest.is_finished(key):
                self.totals.kept += 1
                continue
            lock = ExitStack()
            is_ours = lock.enter_context(try_lock(self.work / f"{key}.lock"))
            # Again: another process may have finished it since.
            if not is_ours or self.manifest.is_finished(key):
                self.totals.busy += not is_ours
                self.totals.kept += is_ours
                lock.close()
                continue
            self._locks[key] = lock
            yield Task(row, key)

    def record(self, task: Task, made: Made) -> None:
        """Write what came of a task into the manifest, and free its lock. Raises WriteError."""
        with self._locks.pop(task.key):
            if made.error is not None:
                self._fail(task.row, {"key": task.key}, made.error, made.seconds)
                return
            record = {"key": task.key, "files": list(made.files), "seconds": round(made.seconds, 3)}
            self.manifest.append({**self._facts(task.row), **record})
        self.totals.done += 1
        self.totals.files += [str(self.manifest.folder / name) for name in made.files]
        self._tell(f"{task.row.name}: {', '.join(made.files) or 'no file'} ({made.seconds:.1f} s)")

    def close(self) -> None:
        """Free the locks of tasks that did not end."""
        while self._locks:
            self._locks.popitem()[1].close()

    def _fail(self, row: Row, known: Mapping[str, Any], error: CoreError, seconds: float) -> None:
        message = " ".join(str(error).split())
        self.totals.failed[row.name] = error
        self.manifest.append({**self._facts(row), **known, "error": message, "seconds": round(seconds, 3)})
        self._tell(f"{row.name}: failed: {message}")

    def _facts(self, row: Row) -> dict[str, Any]:
        facts: dict[str, Any] = {"row": row.name, "inputs": dict(row.values), "settings": self._settings}
        return facts if row.seed is None else {**facts, "seed": row.seed}


def as_core_error(error: CoreError | OSError) -> CoreError:
    """Return an error that can be sent to another process, with the same message and exit code.

    Raises Interrupted for that error itself, which ends the whole command.
    """
    if isinstance(error, Interrupted):
        raise error
    # Errors with further arguments cannot be unpickled: their classes are called with the message alone.
    plain = CoreError(str(error) if isinstance(error, CoreError) else f"{error}: check the file")
    plain.exit_code = getattr(error, "exit_code", CoreError.exit_code)
    return plain
