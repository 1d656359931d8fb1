"""Opens the examples of a folder, and checks every file of it before the training begins."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from ..errors import DamagedFileError, ValueRangeError
from ..picture_files import quiet
from .buckets import bucket_sizes, choose_bucket
from .example_forms import Columns, list_examples
from .examples import Example, Examples, ExampleSet, proportions_fault, read_pixels
from .known_files import KnownFiles
from .tar_examples import find_shards, open_tars


def open_examples(
    folder: Path,
    size: int,
    *,
    columns: Columns | None = None,
    skip_bad: bool = False,
    on_fault: Callable[[str], None] = lambda fault: None,
    known_sizes: Path | None = None,
    bucket_multiple: int | None = None,
) -> Examples:
    """The examples of a folder as squares of `size` pixels. All pictures are read once, to check them, but not in tars.

    bucket_multiple: sort the pictures into buckets with sides in multiples of it instead, see `bucket_sizes`.
    columns: of a metadata file, or of the files in tars. skip_bad: leave out examples with files that are missing,
    unreadable, or of other proportions, instead of raising. on_fault: called with a line about each such example.
    known_sizes: a JSON file in which the sizes of good pictures are kept, so that files that did not change are not
    read again. Raises MissingFileError for a folder without examples, DamagedFileError for bad examples and for
    captions that are not UTF-8, ValueRangeError for an index that cannot be read, and for buckets of pictures in tars.
    """
    columns = columns or Columns()
    if shards := find_shards(folder):
        if bucket_multiple is not None:
            raise ValueRangeError(
                f"{folder} holds tar files, which are read in a stream, before the proportions of all pictures are "
                "known: train without buckets, or unpack them"
            )
        return open_tars(shards, size, columns, skip_bad=skip_bad, on_fault=on_fault, known_counts=known_sizes)
    examples = list_examples(folder, columns)
    shapes = measure_files(examples, known_sizes)
    faults = find_faults(examples, shapes)
    for fault in faults.values():
        on_fault(fault)
    if faults and not skip_bad:
        first = next(iter(faults.values()))
        raise DamagedFileError(
            f"{folder}: {len(faults)} of {len(examples)} examples cannot be used, first: {first}. "
            "Replace or remove these files, or leave the examples out with --skip-bad",
            folder,
        )
    good = tuple(example for row, example in enumerate(examples) if row not in faults)
    if bucket_multiple is None:
        return ExampleSet(good, size)
    sizes = bucket_sizes(size, bucket_multiple)
    if not sizes:
        raise ValueRangeError(f"the size is {size} pixels, this base needs a multiple of {bucket_multiple}")
    # The cast is for what a file without fault has: numbers.
    pictures = [cast("list[int]", shapes[example.picture]) for example in good]
    return ExampleSet(good, size, tuple(choose_bucket(shape, sizes) for shape in pictures))


def measure_files(examples: tuple[Example, ...], known_sizes: Path | None = None) -> dict[Path, list[int] | str]:
    """[height, width] of each file of the examples, or a text that says why it cannot be used.

    known_sizes: see `open_examples`.
    """
    files = dict.fromkeys(file for example in examples for file in (example.picture, example.hint))
    known = KnownFiles(known_sizes)
    # Pillow decodes without holding the interpreter lock, so threads work in parallel.
    with quiet(), ThreadPoolExecutor(8) as pool:
        found = dict(zip(files, pool.map(lambda file: _measure(file, known), files), strict=True))
    known.save()
    return found


def find_faults(examples: tuple[Example, ...], found: dict[Path, list[int] | str]) -> dict[int, str]:
    """Row -> reason, for each example whose files are missing, unreadable, or of other proportions.

    found: of `measure_files`.
    """
    faults = {row: _fault(example, found) for row, example in enumerate(examples)}
    return {row: fault for row, fault in faults.items() if fault}


def _measure(file: Path, known: KnownFiles) -> list[int] | str:
    """[height, width] of a good picture, or a text that says why the file cannot be used."""
    try:
        if not file.stat().st_size:
            return f"{file} is empty (0 bytes)"
        return known.recall(file, lambda: list(read_pixels(file).shape[:2]))
    except DamagedFileError as error:
        return str(error)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"there is no file {file} ({getattr(error, 'strerror', error)})"


def _fault(example: Example, found: dict[Path, list[int] | str]) -> str:
    """What is wrong with an example, empty where it can be used."""
    picture, hint = found[example.picture], found[example.hint]
    if isinstance(picture, str) or isinstance(hint, str):
        return "; ".join(value for value in (picture, hint) if isinstance(value, str))
    return proportions_fault(example.hint, hint, example.picture, picture)
