"""Read text files that people wrote."""

from __future__ import annotations

import codecs
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
