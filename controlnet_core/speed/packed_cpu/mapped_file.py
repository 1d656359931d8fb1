"""Which file a tensor is mapped from, and whether the file is still the same (Linux).

A weight that is mapped from its file needs no hash of its content: the file, unchanged, and the place in it say what it
is. Weights that were computed, by a LoRA for example, are in no file and so have no place.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/smaps")
HEAD = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) \S+ (?P<offset>[0-9a-f]+) \S+ (?P<inode>\d+)\s*(?P<path>.*)"
)
SAMPLES = 64
SAMPLE_BYTES = 4096
SETTLED_SECONDS = 2.0
"""A file that was changed less than this long ago may change again within the resolution of its time."""


@dataclass(frozen=True)
class Place:
    """Where a weight lies: a digest of the file's state, its path and inode, and the byte where the weight begins."""

    digest: str
    path: str
    inode: int
    offset: int


@dataclass(frozen=True)
class _Mapping:
    start: int
    end: int
    offset: int
    inode: int
    path: str


class MappedFiles:
    """The file mappings of this process at the first question. Make a new object for another run."""

    def __init__(self) -> None:
        self._mappings: list[_Mapping] | None = None
        self._digests: dict[_Mapping, str | None] = {}

    def place(self, tensor: Tensor) -> Place | None:
        """Return the place of a tensor in its file; None if it is in none, was written to, or its file is new."""
        if not tensor.is_contiguous():
            return None
        if self._mappings is None:
            self._mappings = list(_read_mappings())
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        mapping = next((m for m in self._mappings if m.start <= begin and end <= m.end), None)
        if mapping is None:
            return None
        if mapping not in self._digests:
            self._digests[mapping] = file_digest(mapping.path, mapping.inode)
        digest = self._digests[mapping]
        if digest is None:
            return None
        return Place(digest, mapping.path, mapping.inode, begin - mapping.start + mapping.offset)


def file_digest(path: str, inode: int) -> str | None:
    """Return a digest of a file's state, None if it is not the one with this inode any more or was changed just now.

    It holds the size, both times and the inode, and some of the content. Every write changes the time of change, which
    no program can set back (mtime can be). The content, from end to end at 64 places, is for file systems whose times
    are coarse: two versions of a model differ nearly everywhere.
    """
    try:
        with Path(path).open("rb") as file:
            state = os.fstat(file.fileno())
            newest = max(state.st_mtime, state.st_ctime)
            if state.st_ino != inode or not 0 <= newest <= time.time() - SETTLED_SECONDS:
                return None
            facts = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_dev, inode)
            digest = hashlib.sha256(repr(facts).encode())
            for number in range(SAMPLES):
                file.seek(number * max(0, state.st_size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    except OSError:
        return None
    return digest.hexdigest()


def _read_mappings() -> Iterator[_Mapping]:
    """Yield the mappings of files that nothing was written to; none where the system does not list them."""
    if not MAPS.exists():
        return
    mapping: _Mapping | None = None
    for line in MAPS.read_text().splitlines():
        name, _, value = line.partition(":")
        if match := HEAD.fullmatch(line):
            start, end, offset = (int(match[name], 16) for name in ("start", "end", "offset"))
            # The device is left out: layered file systems name another one here than in `stat`.
            mapping = _Mapping(start, end, offset, int(match["inode"]), match["path"])
        # Writing into a privately mapped tensor gives its page a copy without a file, and leaves the file alone.
        elif name in ("Anonymous", "Swap") and int(value.split()[0]):
            mapping = None
        elif name == "VmFlags" and mapping is not None and mapping.path.startswith("/"):  # the last line of each
            yield mapping
