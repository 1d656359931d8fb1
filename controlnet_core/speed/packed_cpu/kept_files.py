"""Files of packed weights: how they are written and read, where they lie, and which are there.

A file is: 8 bytes of magic, the length of the table (8 bytes, little endian), its SHA-256, the table (JSON), and from
the next page on the packed tensors, each at a multiple of 64 bytes. The table has a sum of the 64-bit words of each.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...atomic_files import atomic_write

MAGIC = b"CNPACK01"
HEAD_BYTES = len(MAGIC) + 8 + 32
PAGE, ALIGNMENT = 4096, 64
MOST_TABLE_BYTES = 64_000_000
ENDING = ".packed"
SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Variables that keep torch from using some of the processor's instructions."""


@dataclass(frozen=True)
class Entry:
    """A packed tensor in a file. key: what it was made of, and how. description: number of its layout in the table."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    description: int
    begin: int
    length: int
    sum: int


class UnfitFile(Exception):
    """A file that cannot be used; the text says why."""


class KeptFile:
    """A file whose table was read and checked. Raises UnfitFile where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table, data_begin = _read_table(path)
        try:
            self.made_on, self.sources = str(table["made_on"]), [str(source) for source in table["sources"]]
            self.descriptions = [base64.b64decode(text) for text in table["descriptions"]]
            entries = [Entry(**{**row, "shape": tuple(row["shape"])}) for row in table["entries"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UnfitFile("its table is malformed") from error
        self.entries = {entry.key: entry for entry in entries}
        end = max((entry.begin + entry.length for entry in entries), default=data_begin)
        if any(entry.begin < data_begin for entry in entries) or path.stat().st_size < end:
            raise UnfitFile("it is shorter than its table says")
        self._memory: Tensor | None = None

    def memory_of(self, entry: Entry) -> Tensor:
        """Return the bytes of an entry, uint8 (n,), mapped from the file. Raises UnfitFile for damaged ones."""
        if self._memory is None:
            size = self.path.stat().st_size
            self._memory = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8)
        memory = self._memory[entry.begin : entry.begin + entry.length]
        if word_sum(memory) != entry.sum:
            raise UnfitFile("it is damaged")
        return memory


def word_sum(memory: Tensor) -> int:
    """Sum of the 64-bit words of uint8 (n,), as fast as memory is read. It finds damage, not forgery."""
    whole = memory.numel() // 8 * 8
    rest = int.from_bytes(bytes(memory[whole:].tolist()), "little")
    return (int(memory[:whole].view(torch.int64).sum()) + rest) % 2**64


def _read_table(path: Path) -> tuple[dict[str, Any], int]:
    """The table of a file and where its data begin."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            length = int.from_bytes(head[8:16], "little")
            if head[:8] != MAGIC or length > MOST_TABLE_BYTES:
                raise UnfitFile("it is no file of packed weights")
            raw = file.read(length)
    except OSError as error:
        raise UnfitFile(f"it cannot be read ({error.strerror})") from error
    if hashlib.sha256(raw).digest() != head[16:]:
        raise UnfitFile("its table is damaged")
    return json.loads(raw), _aligned(HEAD_BYTES + length, PAGE)


def write_file(
    folder: Path, made_on: str, sources: Iterable[str], tensors: Sequence[tuple[str, Tensor, tuple[Tensor, bytes]]]
) -> Path:
    """Write a file that gets its name only when it is complete. Raises OSError.

    tensors: (key, the packed tensor, its bytes and their description) of each. It is not forced to the disk: after a
    power cut the sums show what is missing, and it is made again.
    """
    descriptions = list(dict.fromkeys(description for _, _, (_, description) in tensors))
    numbers = {description: number for number, description in enumerate(descriptions)}
    entries, begin = [], 0
    for key, packed, (memory, description) in tensors:
        dtype = str(packed.dtype).removeprefix("torch.")
        number, length = numbers[description], memory.numel()
        entries.append(Entry(key, tuple(packed.shape), dtype, number, begin, length, word_sum(memory)))
        begin = _aligned(begin + length, ALIGNMENT)
    texts = [base64.b64encode(description).decode() for description in descriptions]
    raw, data_begin = _table(made_on, sorted(set(sources)), texts, entries)
    digest = hashlib.sha256(raw).digest()
    path = folder / f"{_short(made_on)}-{digest.hex()[:16]}{ENDING}"
    with atomic_write(path) as file:
        file.write(MAGIC + len(raw).to_bytes(8, "little") + digest + raw)
        for entry, (_, _, (memory, _)) in zip(entries, tensors, strict=True):
            file.seek(data_begin + entry.begin)
            file.write(memory.numpy().data)
    return path


def _table(made_on: str, sources: list[str], descriptions: list[str], entries: list[Entry]) -> tuple[bytes, int]:
    """The table as JSON, and where the data begin. Places in it count from the beginning of the file."""
    facts = {"made_on": made_on, "sources": sources, "descriptions": descriptions}
    data_begin = 0
    while True:  # the places have more digits, the further behind the data begin
        rows = [{**asdict(entry), "begin": entry.begin + data_begin} for entry in entries]
        raw = json.dumps({**facts, "entries": rows}, separators=(",", ":")).encode()
        if _aligned(HEAD_BYTES + len(raw), PAGE) == data_begin:
            return raw, data_begin
        data_begin = _aligned(HEAD_BYTES + len(raw), PAGE)


def _aligned(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def kept_folder() -> Path:
    """The folder of packed weights: `controlnet-core/packed` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "controlnet-core" / "packed"


def kept_paths(folder: Path, made_on: str = "") -> list[Path]:
    """Files of packed weights in a folder; with `made_on`, those that should be usable here."""
    start = f"{_short(made_on)}-" if made_on else ""
    return sorted(path for path in folder.glob(f"{start}*{ENDING}") if path.is_file())


@dataclass(frozen=True)
class KeptFileInfo:
    """A file of packed weights. sources: names of the model files. problem: why it is not used here; or empty."""

    path: Path
    size: int
    sources: tuple[str, ...]
    problem: str = ""


def list_kept_files(folder: Path) -> Iterator[KeptFileInfo]:
    """Yield what is in a folder of packed weights. Only tables are read."""
    for path in kept_paths(folder):
        sources: list[str] = []
        try:
            file = KeptFile(path)
            sources = file.sources
            problem = "" if file.made_on == here() else "made with another torch or on another processor"
        except UnfitFile as error:
            problem = str(error)
        yield KeptFileInfo(path, path.stat().st_size, tuple(sources), problem)


def remove_kept_files(folder: Path) -> Iterator[Path]:
    """Remove all files of packed weights, and what interrupted writes left; yields each. Runs that use one go on."""
    for path in [*kept_paths(folder), *folder.glob(f".*{ENDING}.*.tmp")]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            yield path


@cache
def here() -> str:
    """What layouts depend on: torch with its oneDNN, the processor's instructions, and switches that limit them."""
    facts = [torch.__version__, torch.__config__.show(), platform.machine(), torch.backends.cpu.get_cpu_capability()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "Features", "CPU part")
        facts += sorted({line for line in info.read_text().splitlines() if line.startswith(wanted)})
    facts += [f"{name}={os.environ.get(name)}" for name in SWITCHES]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _short(made_on: str) -> str:
    return made_on[:12]
