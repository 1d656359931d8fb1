"""Values for `--each NODE.INPUT=SOURCE`: the pictures of a folder, the lines of a text, or the rows of a table."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..controlnet_core.errors import DamagedFileError, MissingFileError, ValueRangeError, reading
from ..controlnet_core.picture_files import PICTURE_ENDINGS
from ..controlnet_core.text_files import decode_text, table_rows
from .hint_files import files_in, ignore
from .paths import exists, user_path


@dataclass(frozen=True)
class Entry:
    """One picture, line or row of a source.

    name: its part in the names of what is made of it. values: by "NODE.INPUT", as a person writes them. file: the
    picture.
    """

    name: str
    values: Mapping[str, str]
    file: Path | None = None


@dataclass(frozen=True)
class Sources:
    """What `--each` names. folders: where the host finds pictures of other folders than --input, by a name of ours."""

    entries: Sequence[Sequence[Entry]]
    folders: Mapping[str, Path]


def read_sources(
    options: Sequence[str], input_dir: Path, output: Path, on_note: Callable[[str], None] = ignore
) -> Sources:
    """Return the entries of each source, in the order of the options. Inputs that share a source vary together.

    on_note(text) is called for a folder with files that are left out. Raises ValueRangeError for a wrong option,
    MissingFileError for a source that does not exist or is empty, DamagedFileError for a file that cannot be read, or
    lacks a column.
    """
    columns: dict[Path, dict[str, str]] = {}
    for option in options:
        target, _, text = option.partition("=")
        node, _, name = target.rpartition(".")
        if not (node.strip() and name.strip() and text):
            raise ValueRangeError(f"--each {option}: expected NODE.INPUT=SOURCE, such as 3.image=photos")
        path, column = _source(text)
        if any(target in known for known in columns.values()):
            raise ValueRangeError(f"--each {option}: {target} has a source already: name each input once")
        columns.setdefault(path, {})[target] = column or name.strip()
    folders: dict[str, Path] = {}
    found = []
    for path, targets in columns.items():
        if path.is_dir():
            files = files_in(path, output, PICTURE_ENDINGS, on_note)
            found.append(_pictures(path, files, list(targets), input_dir, folders))
        else:
            found.append(_lines(path, targets))
    return Sources(found, folders)


def _source(text: str) -> tuple[Path, str]:
    """Return the (path, column) of "prompts.csv" or "prompts.csv:style"; the column may be empty."""
    path, column = user_path(text), ""
    if not exists(path) and ":" in text:
        before, _, column = text.rpartition(":")
        path = user_path(before)
    if not exists(path):
        raise MissingFileError(f"--each: there is no file or folder {text}: check the path", path)
    return path, column


def _pictures(
    folder: Path, files: Sequence[Path], targets: Sequence[str], input_dir: Path, folders: dict[str, Path]
) -> list[Entry]:
    """Entries for pictures of a folder. Values are names below `input_dir`, or below a name in `folders`."""
    here, inputs = folder.resolve(), input_dir.resolve()
    if here == inputs or inputs in here.parents:
        prefix = here.relative_to(inputs)
    else:
        label, number = here.name or "pictures", 1
        # A name that already leads to other pictures would hide them.
        while label in folders or exists(inputs / label):
            number += 1
            label = f"{here.name}_{number}"
        folders[label], prefix = here, Path(label)
    names = [file.relative_to(folder) for file in files]
    # Files that differ by their ending only are told apart by it.
    stems = Counter(name.with_suffix("") for name in names)
    entries = []
    for file, name in zip(files, names, strict=True):
        stem = name.with_suffix("") if stems[name.with_suffix("")] == 1 else name.with_name(name.name.replace(".", "_"))
        value = (prefix / name).as_posix()
        entries.append(Entry(stem.as_posix(), dict.fromkeys(targets, value), file))
    return entries


def _lines(path: Path, targets: Mapping[str, str]) -> list[Entry]:
    """The records of a file. targets: "NODE.INPUT" -> column."""
    if path.suffix.lower() not in (".txt", ".jsonl", ".csv"):
        raise ValueRangeError(f"--each: {path} is no source: give a folder of pictures, or a .txt, .jsonl or .csv file")
    with reading(path):
        records = list(_records(path))
    if not records:
        raise MissingFileError(f"--each: {path} has no lines: write one value a line", path)
    width = max(4, len(str(len(records))))
    return [
        Entry(
            f"{path.stem}_{number:0{width}}",
            {target: _value(record, column, f"{path}, line {line}") for target, column in targets.items()},
        )
        for number, (line, record) in enumerate(records, start=1)
    ]


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, record): a mapping by column, or a single value. Empty lines are skipped."""
    text = decode_text(path.read_bytes(), path)
    kind = path.suffix.lower()
    if kind == ".csv":
        yield from table_rows(csv.DictReader(io.StringIO(text, newline=""), strict=True), path)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield number, line.strip() if kind == ".txt" else json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(f"{path}, line {number}: is no JSON ({error}): correct the line", path) from error


def _value(record: Any, column: str, where: str) -> str:
    value = record
    if isinstance(record, dict):
        if column not in record:
            known = ", ".join(str(name) for name in record if name)
            raise DamagedFileError(f"{where}: has no column {column!r}, only {known}: name one, as in FILE:COLUMN")
        value = record[column]
    if not isinstance(value, (str, int, float)):
        raise DamagedFileError(f"{where}: {column} holds {json.dumps(value)[:40]}, expected a text or a number")
    return str(value)
