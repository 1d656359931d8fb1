"""Reads a folder of examples, and checks every file of it before the training begins.

There are two forms. The one of fill50k, the example of the ControlNet release: `prompt.json`, one JSON object per line
with "source" (the hint's file), "target" (the picture's file) and "prompt". Or two folders `source` and `target` with
files of the same name, in subfolders too; a text file beside a picture (`target/17.txt`) holds its caption.
"""

from __future__ import annotations

import codecs
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..checkpoints.io import atomic_write
from ..errors import DamagedFileError, MissingFileError, ValueRangeError, reading, writing
from ..picture_files import PICTURE_ENDINGS, quiet
from .examples import Example, ExampleSet, read_pixels

INDEX, HINTS, PICTURES = "prompt.json", "source", "target"
ASPECT_TOLERANCE = 0.02
"""Largest relative difference between the proportions of a hint and its picture; beyond it, their crops differ."""


def open_examples(
    folder: Path,
    size: int,
    *,
    skip_bad: bool = False,
    on_fault: Callable[[str], None] = lambda fault: None,
    known_sizes: Path | None = None,
) -> ExampleSet:
    """The examples of a folder, in either form, as squares of `size` pixels. All pictures are read once, to check them.

    skip_bad: leave out examples with files that are missing, unreadable, or of other proportions, instead of raising.
    on_fault: called with a line about each such example. known_sizes: a JSON file in which the sizes of good pictures
    are kept, so that files that did not change are not read again. Raises MissingFileError for a folder without
    examples, DamagedFileError for bad examples and for captions that are not UTF-8, ValueRangeError for an index that
    cannot be read.
    """
    if (folder / INDEX).is_file():
        examples = tuple(_read_index(folder))
    elif (folder / HINTS).is_dir() and (folder / PICTURES).is_dir():
        examples = tuple(_pair_files(folder))
    else:
        raise MissingFileError(
            f"{folder} holds no examples: expected {INDEX}, or the folders {HINTS} (hints) and {PICTURES} (pictures)",
            folder,
        )
    if not examples:
        raise MissingFileError(f"{folder}: it names no examples", folder)
    faults = find_faults(examples, known_sizes)
    for fault in faults.values():
        on_fault(fault)
    if faults and not skip_bad:
        first = next(iter(faults.values()))
        raise DamagedFileError(
            f"{folder}: {len(faults)} of {len(examples)} examples cannot be used, first: {first}. "
            "Replace or remove these files, or leave the examples out with --skip-bad",
            folder,
        )
    return ExampleSet(tuple(example for row, example in enumerate(examples) if row not in faults), size)


def find_faults(examples: tuple[Example, ...], known_sizes: Path | None = None) -> dict[int, str]:
    """Row -> reason, for each example whose files are missing, unreadable, or of other proportions.

    known_sizes: see `open_examples`.
    """
    files = dict.fromkeys(file for example in examples for file in _files(example))
    known = _load_sizes(known_sizes)
    # Pillow decodes without holding the interpreter lock, so threads work in parallel.
    with quiet(), ThreadPoolExecutor(8) as pool:
        found = dict(zip(files, pool.map(lambda file: _measure(file, known), files), strict=True))
    if known_sizes is not None:
        good = {str(file): value for file, value in found.items() if not isinstance(value, str)}
        with writing(known_sizes), atomic_write(known_sizes) as out:
            out.write(json.dumps(good).encode())
    faults = {row: _fault(example, found) for row, example in enumerate(examples)}
    return {row: fault for row, fault in faults.items() if fault}


def _files(example: Example) -> tuple[Path, Path]:
    return example.picture, example.hint


def _load_sizes(path: Path | None) -> dict[str, list[int]]:
    if path is None or not path.exists():
        return {}
    try:
        known = json.loads(path.read_bytes())
    except ValueError:  # damaged: the pictures are read again
        return {}
    return known if isinstance(known, dict) else {}


def _measure(file: Path, known: dict[str, list[int]]) -> list[int] | str:
    """[file time, file size, width, height] of a good picture, or what is wrong with the file."""
    try:
        status = file.stat()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"there is no file {file} ({getattr(error, 'strerror', error)})"
    if not status.st_size:
        return f"{file} is empty (0 bytes)"
    before = known.get(str(file), [])
    if len(before) == 4 and before[:2] == [status.st_mtime_ns, status.st_size]:
        return before
    try:
        height, width, _ = read_pixels(file).shape
    except DamagedFileError as error:
        return str(error)
    return [status.st_mtime_ns, status.st_size, width, height]


def _fault(example: Example, found: dict[Path, list[int] | str]) -> str:
    """What is wrong with an example, empty where it can be used."""
    picture, hint = found[example.picture], found[example.hint]
    if isinstance(picture, str) or isinstance(hint, str):
        return "; ".join(value for value in (picture, hint) if isinstance(value, str))
    (width, height), (hint_width, hint_height) = picture[2:], hint[2:]
    if abs((hint_width / hint_height) / (width / height) - 1.0) <= ASPECT_TOLERANCE:
        return ""
    return (
        f"the hint {example.hint.name} is {hint_width}x{hint_height}, its picture {width}x{height} "
        f"({example.picture}): both need the same proportions"
    )


def _read_index(folder: Path) -> Iterator[Example]:
    path = folder / INDEX
    # Only \n, \r and \r\n end a line here; str.splitlines would also split at U+2028 inside a prompt.
    for number, line in enumerate(io.StringIO(_read_text(path), newline=None), start=1):
        if not line.strip():
            continue
        try:
            entry: dict[str, Any] = json.loads(line)
            picture, hint, caption = (entry[key] for key in ("target", "source", "prompt"))
            caption.encode()  # not for half a surrogate pair, which JSON can hold and no tokenizer reads
            yield Example(_inside(folder, picture), _inside(folder, hint), caption)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueRangeError(
                f"{path}, line {number}: expected an object with source, target and prompt ({error!r})"
            ) from error


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
        caption = _read_text(text).strip() if text.is_file() else ""
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


def _read_text(path: Path) -> str:
    """A text file in UTF-8, with or without byte order mark. Raises DamagedFileError naming file and line."""
    with reading(path):
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    bad = data.find(b"\0")  # UTF-16 without a mark can be valid UTF-8, with zeros
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text, bad = "", error.start if bad < 0 else min(bad, error.start)
    if bad < 0:
        return text
    line = data.count(b"\n", 0, bad) + 1
    raise DamagedFileError(f"{path}, line {line}: this is not text in UTF-8: save the file as UTF-8", path)
