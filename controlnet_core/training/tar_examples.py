"""Examples in the tar files (shards) of a WebDataset, read in a random order without an index in memory.

The files of an example stand one after the other, and share their name up to the first dot: `17.jpg` (the picture),
`17.conditioning_image.png` (the hint), `17.txt` (the caption, optional; or an entry of `17.json`). Hints may also be in
shards of their own, as `controlnet preprocess` writes them: `17.png` in `source/0.tar` for `17.jpg` in `target/0.tar`.

An epoch goes through the shards in a random order and through a buffer, from which the next example is drawn at random.
The buffer holds places in the shards, no pictures, so that it can be large. The seed and the number of an example
decide which one it is: a training that continues reads on from its number, and processes that train together agree.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from threading import Lock
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import DamagedFileError, MissingFileError, reading
from ..limits import check_end, check_member
from ..picture_files import PICTURE_ENDINGS, decode_picture
from ..text_files import decode_text
from .disk_cache import file_stamp
from .draw import DrawRows
from .example_forms import HINTS, PICTURES, Columns
from .examples import fit_pixels, plain_pixels, proportions_fault
from .known_files import KnownFiles
from .probe import count_held_out

BUFFER = 10_000
"""Examples in the buffer that mixes them: as many as some shards have, and a few megabytes."""
WINDOW = 4096
"""Rows whose places are kept after they were drawn; more than any batch has."""
T = TypeVar("T")


class Shard(NamedTuple):
    """A tar with pictures, and the tars with their hints where these are apart."""

    pictures: Path
    hints: tuple[Path, ...] = ()


class Part(NamedTuple):
    """One file in a tar: its name, and where its bytes are."""

    tar: Path
    name: str
    offset: int
    size: int

    @property
    def path(self) -> Path:
        """Names the file in messages."""
        return self.tar / self.name

    def read(self) -> bytes:
        """The bytes of the file."""
        with reading(self.tar), self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Place(NamedTuple):
    """Where the files of an example are."""

    picture: Part
    hint: Part
    caption: Part | None


class TarExamples:
    """Examples in shards, see `Examples`. Rows count the examples over all epochs; those held out have rows below 0."""

    def __init__(self, counts: dict[Shard, int], columns: Columns, size: int) -> None:
        self.size = size
        self._counts, self._columns = counts, columns
        self._held: list[Place] = []
        self._order: Iterator[Place] = iter(())
        self._row, self._end, self._seed, self._first = 0, 0, 0, 0
        # Threads that read ahead go through the shards together.
        self._lock = Lock()
        self._window: dict[int, Place] = {}
        self._shapes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def split(self, seed: int) -> tuple[DrawRows, tuple[int, ...]]:
        """See `Examples.split`. The first examples are held out."""
        held, trained_too = count_held_out(len(self))
        self._held = list(itertools.islice(self._places(self._counts, 0), held))
        self._seed, self._first = seed, 0 if trained_too else held
        return (lambda count, drawn: list(range(drawn, drawn + count))), tuple(range(-held, 0))

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [-1, 1]."""
        return torch.stack([self._read(row, is_hint=False) for row in rows]) * 2.0 - 1.0

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [0, 1]."""
        return torch.stack([self._read(row, is_hint=True) for row in rows])

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        return [read_caption(self._find(row), self._columns) for row in rows]

    def squares(self) -> TarExamples:
        """See `Examples.squares`."""
        return self

    def stamp(self, row: int) -> str:
        """See `Examples.stamp`."""
        picture = self._find(row).picture
        return f"{file_stamp(picture.tar)} {picture.name} {picture.offset}"

    def _read(self, row: int, *, is_hint: bool) -> Tensor:
        place = self._find(row)
        part = place.hint if is_hint else place.picture
        pixels = plain_pixels(decode_picture(part.read(), part.path), part.path)
        if not is_hint:
            self._shapes[row] = pixels.shape[:2]
        elif row in self._shapes:
            fault = proportions_fault(part.path, pixels.shape[:2], place.picture.path, self._shapes[row])
            if fault:
                raise DamagedFileError(f"{fault}: mend the tar file", part.path)
        return fit_pixels(pixels, (self.size, self.size), is_hint=is_hint)

    def _find(self, row: int) -> Place:
        """The place of a row. Rows usually come in rising order; a smaller number starts the epoch again."""
        if row < 0:
            return self._held[row]
        with self._lock:
            return self._find_trained(row)

    def _find_trained(self, row: int) -> Place:
        per_epoch = len(self) - self._first
        while row not in self._window:
            if not self._row <= row < self._end:
                epoch = row // per_epoch
                self._order = self._epoch(epoch)
                self._row, self._end = epoch * per_epoch, (epoch + 1) * per_epoch
            self._window[self._row] = next(self._order)
            self._row += 1
            if len(self._window) > WINDOW:
                oldest = next(iter(self._window))
                del self._window[oldest]
                self._shapes.pop(oldest, None)
        return self._window[row]

    def _epoch(self, number: int) -> Iterator[Place]:
        random = Random(f"{self._seed} {number}")
        shards = list(self._counts)
        random.shuffle(shards)
        return mix(self._places(shards, self._first), random)

    def _places(self, shards: Iterable[Shard], first: int) -> Iterator[Place]:
        """Examples of the shards. first: number of the first one to read, in the order of `_counts`."""
        begins = dict(zip(self._counts, itertools.accumulate(self._counts.values(), initial=0), strict=False))
        for shard in shards:
            found = (place for place in read_shard(shard, self._columns) if isinstance(place, Place))
            yield from itertools.islice(found, max(0, first - begins[shard]), None)


def open_tars(
    shards: Sequence[Shard],
    size: int,
    columns: Columns,
    *,
    skip_bad: bool = False,
    on_fault: Callable[[str], None] = lambda fault: None,
    known_counts: Path | None = None,
) -> TarExamples:
    """The examples of shards. The headers of all shards are read once, to count them and to find incomplete ones.

    Other arguments and errors: see `open_examples`.
    """
    known = KnownFiles(known_counts)
    faults: list[str] = []
    counts: dict[Shard, int] = {}
    for shard in shards:
        bad: list[str] = []

        def count(shard: Shard = shard, bad: list[str] = bad) -> list[int]:
            found = list(read_shard(shard, columns))
            bad += [place for place in found if isinstance(place, str)]
            return [len(found) - len(bad)]

        (counts[shard],) = known.recall(shard.pictures, count, shard.hints)
        if bad:  # its faults are named again at the next start
            known.forget(shard.pictures)
        for fault in bad:
            on_fault(fault)
        faults += bad
    known.save()
    if faults and not skip_bad:
        raise DamagedFileError(
            f"{len(faults)} examples cannot be used, first: {faults[0]}. Mend the tar file, or leave the examples out "
            "with --skip-bad"
        )
    if not sum(counts.values()):
        folder = shards[0].pictures.parent
        raise MissingFileError(f"{folder}: its tar files hold no examples", folder)
    return TarExamples(counts, columns, size)


def find_shards(folder: Path) -> list[Shard]:
    """The shards of a folder, sorted: tars in it, or in `target` with the tars of their hints in `source`."""
    if together := sorted(folder.glob("*.tar")):
        return [Shard(path) for path in together]
    hints = sorted((folder / HINTS).glob("*.tar"))
    # `controlnet preprocess --shard 1/3` writes the hints of a part of 0.tar to 0-1of3.tar.
    of = {path: re.sub(r"-\d+of\d+$", "", path.stem) for path in hints}
    return [
        Shard(path, tuple(hint for hint in hints if path.stem in (hint.stem, of[hint])))
        for path in sorted((folder / PICTURES).glob("*.tar"))
    ]


def read_shard(shard: Shard, columns: Columns) -> Iterator[Place | str]:
    """The examples of a shard in the order of the file; for an incomplete example, a text that names what it lacks."""
    # An index of this shard's hints only: hints that failed at first may stand behind the others.
    apart = {key: part for tar in shard.hints for key, part in _members(tar) if _role(part.name, columns) == "picture"}
    for key, members in itertools.groupby(_members(shard.pictures), key=lambda member: member[0]):
        roles = {_role(part.name, columns): part for _, part in members}
        picture, hint = roles.get("picture"), apart.get(key) or roles.get("hint")
        if picture and hint:
            yield Place(picture, hint, roles.get("caption"))
        else:
            lacks = f".{columns.hint}.png (the hint)" if picture else ".jpg or .png (the picture)"
            lacks = f"hint in {HINTS}" if picture and shard.hints else lacks
            yield f"{shard.pictures}: {key} has no {lacks}"


def _members(path: Path) -> Iterator[tuple[str, Part]]:
    """(name up to the first dot, file) of the files in a tar."""
    with reading(path), tarfile.open(path, "r:") as tar:
        while (info := tar.next()) is not None:
            # tarfile keeps all headers, which would be the index that is not wanted.
            tar.members.clear()  # type: ignore[attr-defined]
            folder, _, name = info.name.rpartition("/")
            if info.isfile() and not name.startswith("."):
                check_member(info, path)
                yield f"{folder}/{name.partition('.')[0]}", Part(path, info.name, info.offset_data, info.size)
        check_end(tar, path)


def _role(name: str, columns: Columns) -> str:
    """What a file is to its example: "picture", "hint", "caption" or "" for anything else."""
    _, _, ending = name.rpartition("/")[2].partition(".")
    column, _, kind = ending.rpartition(".")
    if f".{kind}".lower() in PICTURE_ENDINGS:
        return {"": "picture", columns.picture: "picture", columns.hint: "hint"}.get(column, "")
    return "caption" if (kind, column) in (("txt", ""), ("json", ""), ("txt", columns.caption)) else ""


def read_caption(place: Place, columns: Columns) -> str:
    """The caption of an example, "" where it has none. Raises DamagedFileError."""
    if place.caption is None:
        return ""
    path = place.caption.path
    text = decode_text(place.caption.read(), path)
    if path.suffix != ".json":
        return text.strip()
    with reading(path):
        return str(json.loads(text)[columns.caption])


def mix(items: Iterable[T], random: Random, size: int = BUFFER) -> Iterator[T]:
    """The items in a random order: each is drawn from a buffer of the next `size` ones."""
    items = iter(items)
    buffer = list(itertools.islice(items, size))
    for item in items:
        at = random.randrange(size)
        yield buffer[at]
        buffer[at] = item
    random.shuffle(buffer)
    yield from buffer
