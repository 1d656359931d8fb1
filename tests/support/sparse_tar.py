"""Tar files of a few bytes that hold terabytes of zeros."""

from __future__ import annotations

import tarfile


def sparse_member(name: str, size: int) -> bytes:
    """The header of a sparse file in GNU's form: no data, and `size` zeros when it is read."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    number = b"\x80" + size.to_bytes(11, "big")
    block[386:398] = number  # where the one extent, of no bytes, begins
    block[483:495] = number  # the size of the whole file
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
