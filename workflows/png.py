"""The text chunks of PNG files, where the host keeps a picture's workflow.

The host writes two: `prompt` (the API form) and `workflow` (the editor's form), each as JSON in a
tEXt chunk, or iTXt when the text is not Latin-1 (PNG specification, section 11.3.4).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..controlnet_core.errors import WorkflowError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 64 * 2**20


def is_png(data: bytes) -> bool:
    """True for bytes that begin as a PNG does."""
    return data.startswith(SIGNATURE)


def read_text(data: bytes, name: str | Path = "the picture") -> dict[str, str]:
    """Keyword -> text of all text chunks; pixel data are not looked at.

    Raises WorkflowError when the file is no PNG, is cut short, or a text is larger than 64 MB.
    """
    if not is_png(data):
        raise WorkflowError(f"{name} is no PNG picture: give a workflow .json or a PNG that was saved with one")
    texts: dict[str, str] = {}
    for kind, body in _chunks(data, name):
        if kind in _READERS:
            try:
                keyword, text = _READERS[kind](body)
            except (ValueError, zlib.error) as error:
                raise WorkflowError(f"{name} has a damaged text chunk ({error}): use an undamaged copy") from error
            texts[keyword] = text
    return texts


def with_text(data: bytes, texts: Mapping[str, str]) -> bytes:
    """The PNG with these texts in place of those of the same keyword; pixels stay byte-equal."""
    kept = [data[:8]]
    end = b""
    for kind, body in _chunks(data, "the picture"):
        chunk = _chunk(kind, body)
        if kind == b"IEND":
            end = chunk
        elif not (kind in _READERS and _READERS[kind](body)[0] in texts):
            kept.append(chunk)
    return b"".join([*kept, *(_text_chunk(keyword, text) for keyword, text in texts.items()), end])


def _chunks(data: bytes, name: str | Path) -> Iterator[tuple[bytes, bytes]]:
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        if len(body) < length:
            break
        yield kind, body
        if kind == b"IEND":
            return
        position += 12 + length
    raise WorkflowError(f"{name} is cut short: copy or download it again")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _text_chunk(keyword: str, text: str) -> bytes:
    key = keyword.encode("latin-1")
    try:
        return _chunk(b"tEXt", key + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", key + b"\0\0\0\0\0" + text.encode("utf-8"))


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, MAX_TEXT)
    if inflater.unconsumed_tail:
        raise ValueError(f"unpacks to more than {MAX_TEXT >> 20} MB")
    return text


def _plain(body: bytes) -> tuple[str, str]:
    keyword, _, text = body.partition(b"\0")
    return keyword.decode("latin-1"), text.decode("latin-1")


def _compressed(body: bytes) -> tuple[str, str]:
    keyword, _, rest = body.partition(b"\0")
    return keyword.decode("latin-1"), _inflate(rest[1:]).decode("latin-1")


def _international(body: bytes) -> tuple[str, str]:
    keyword, _, rest = body.partition(b"\0")
    if len(rest) < 2:
        raise ValueError("no compression flag")
    compressed = rest[0] == 1
    _, _, rest = rest[2:].partition(b"\0")  # language tag
    _, _, text = rest.partition(b"\0")  # translated keyword
    return keyword.decode("latin-1"), (_inflate(text) if compressed else text).decode("utf-8")


_READERS = {b"tEXt": _plain, b"zTXt": _compressed, b"iTXt": _international}
