"""Read text files that people wrote."""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .errors import DamagedFileError


def decode_text(data: bytes, path: Path) -> str:
    """The text in the bytes of a file. Raises DamagedFileError naming file and line."""
    data = data.removeprefix(codecs.BOM_UTF8)
    bad = data.find(b"\0")  # UTF-16 without a mark can be valid UTF-8, with zeros
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text, bad = "", error.start if bad < 0 else min(bad, error.start)
    if bad < 0:
        return text
    line = data.count(b"\n", 0, bad) + 1
    raise DamagedFileError(f"{path}, line {line}: this is not text in UTF-8: save the file as UTF-8", path)


def table_rows(table: csv.DictReader[str], path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, values by column) of a table. Raises DamagedFileError where a value would be lost."""
    names = table.fieldnames or ()
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if twice:
        raise DamagedFileError(f"{path}: has several columns {twice[0]!r}: give each its own name", path)
    for row in table:
        # csv puts what is beyond the header under None; programs for tables write empty cells there.
        surplus = row.pop(None, [])  # type: ignore[call-overload]
        if any(value.strip() for value in surplus):
            raise DamagedFileError(
                f"{path}, line {table.line_num}: has {len(names) + len(surplus)} values for {len(names)} columns: put "
                "a text that holds commas between double quotes",
                path,
            )
        yield table.line_num, row
