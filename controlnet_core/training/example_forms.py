"""The forms in which a folder holds examples, each read as a list of files with captions.

| form | files |
| --- | --- |
| fill50k, the example of the release | `prompt.json`: an object per line with "source" (hint), "target", "prompt" |
| image folder of Hugging Face `datasets` | `metadata.jsonl` or `metadata.csv`, with columns that `Columns` names |
| two folders | `source` (hints) and `target` with files of the same name, in subfolders too; `target/17.txt`: caption |
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, ValueRangeError, reading
from ..picture_files import PICTURE_ENDINGS
from ..text_files import decode_text, table_rows
from .examples import Example

HINTS, PICTURES = "source", "target"


@dataclass(frozen=True)
class Columns:
    """What the columns of a table of examples are called; the defaults are those of diffusers' training script."""

    picture: str = "image"
    hint: str = "conditioning_image"
    caption: str = "text"


INDEXES = {"prompt.json": Columns("target", "source", "prompt"), "metadata.jsonl": None, "metadata.csv": None}
"""Tables of examples, in the order in which they are looked for; None: columns that the caller names."""


def list_examples(folder: Path, columns: Columns) -> tuple[Example, ...]:
    """The examples of a folder in any of the forms. Nothing is checked but that names stay inside the folder.

    Raises MissingFileError for a folder without examples, ValueRangeError for a table that cannot be read,
    DamagedFileError for texts that are not UTF-8.
    """
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index is not None:
        examples = tuple(_read_index(index, INDEXES[index.name] or columns))
    elif (folder / HINTS).is_dir() and (folder / PICTURES).is_dir():
        examples = tuple(_pair_files(folder))
    else:
        raise MissingFileError(
            f"{folder} holds no examples: expected {', '.join(INDEXES)}, tar files, or the folders {HINTS} (hints) and "
            f"{PICTURES} (pictures)",
            folder,
        )
    if not examples:
        raise MissingFileError(f"{folder}: it names no examples", folder)
    return examples


def _read_index(path: Path, columns: Columns) -> Iterator[Example]:
    # With \r\n as \n: str.splitlines would also split at U+2028 inside a prompt.
    lines = io.StringIO(read_text(path), newline=None)
    try:
        table = [row for _, row in table_rows(csv.DictReader(lines), path)] if path.suffix == ".csv" else None
    except csv.Error as error:
        raise ValueRangeError(f"{path}: this is not a table of comma-separated values ({error})") from error
    for number, row in enumerate(lines if table is None else table, start=1):
        if isinstance(row, str) and not row.strip():
            continue
        try:
            entry = json.loads(row) if isinstance(row, str) else row
            picture = _value(entry, columns.picture, "file_name")
            hint, caption = _value(entry, columns.hint), _value(entry, columns.caption)
            if others := [value for value in (picture, hint, caption) if not isinstance(value, str)]:
                raise ValueError(f"{others[0]!r} is no text")
            caption.encode()  # not for half a surrogate pair, which JSON can hold and no tokenizer reads
            yield Example(_inside(path.parent, picture), _inside(path.parent, hint), caption)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            place = f"{'line' if table is None else 'row'} {number}"
            raise ValueRangeError(
                f"{path}, {place}: expected an object with {columns.hint}, {columns.picture} and {columns.caption} "
                f"({error!r})"
            ) from error


def _value(entry: Mapping[str, Any], column: str, *others: str) -> Any:
    # `datasets` calls a column of files NAME_file_name, and its first one file_name.
    for name in (column, f"{column}_file_name", *others):
        if name in entry:
            return entry[name]
    raise KeyError(column)


def _inside(folder: Path, name: str) -> Path:
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leaves the folder; give a name inside it")
    return folder / path


def _pair_files(folder: Path) -> Iterator[Example]:
    pictures, hints = (_find_pictures(folder / name) for name in (PICTURES, HINTS))
    by_stem = {name.with_suffix(""): path for name, path in hints.items()}
    for name, picture in pictures.items():
        text = picture.with_suffix(".txt")
        caption = read_text(text).strip() if text.is_file() else ""
        # The same name comes first: 1.jpg and 1.png may both have a hint of their own.
        hint = hints.get(name) or by_stem.get(name.with_suffix(""), folder / HINTS / name)
        yield Example(picture, hint, caption)


def _find_pictures(folder: Path) -> dict[Path, Path]:
    """Name relative to the folder -> file, sorted; linked subfolders too, hidden files (`._0.png` of macOS) not."""
    found, seen = [], set()
    for place, subfolders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        # A link to a folder above would be followed for ever.
        if here.resolve() in seen:
            subfolders.clear()
            continue
        seen.add(here.resolve())
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [here / name for name in names if not name.startswith(".")]
    files = sorted(path for path in found if path.suffix.lower() in PICTURE_ENDINGS)
    return {path.relative_to(folder): path for path in files}


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without byte order mark. Raises DamagedFileError naming file and line."""
    with reading(path):
        return decode_text(path.read_bytes(), path)
