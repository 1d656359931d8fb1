"""Packed weights from the disk, so that the first evaluation of the next start packs nothing.

A packed tensor is found by the place of its weight in the model's file (see `mapped_file`), its dtype and its form.
What has no place, because it was computed, is packed as always. Nothing here changes a number: the bytes are those that
oneDNN wrote.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from ...models.float8 import FLOAT8
from ...runtime.tensor_memory import uncounted
from . import opaque
from .kept_files import KeptFile, UnfitFile, here, kept_folder, kept_paths, write_file
from .mapped_file import MappedFiles, Place, file_digest

LEAST_BYTES = 100_000_000
"""Less than this is packed faster than it is worth a file: the demo model takes 0.1 s."""
ROOM = 2
"""A file is written where the disk has this many times its size free."""

Placed: TypeAlias = dict[str, tuple[Tensor, Place]]
"""Packed tensors by key, each with the place of its weight."""


class KeptWeights:
    """The packed weights of a folder, and those that this process made and that are to be added.

    notes: lines for the user. Not for several threads at once; two processes may share a folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = kept_folder() if folder is None else folder
        self.notes: list[str] = []
        self._files: list[KeptFile] | None = None
        self._mapped = MappedFiles()
        self._fresh: Placed = {}
        self._used: dict[Path, Placed] = {}
        if blocker := opaque.unsupported():
            self.notes.append(f"packed weights are not kept: {blocker}")
            self._files = []

    def once(self, weight: Tensor, form: str, count: int, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the packed tensors of a weight: from the disk, or made and noted for `write`.

        form: everything that they depend on besides the weight, as a text. count: how many `make` returns.
        """
        if opaque.unsupported() or (place := self._mapped.place(weight)) is None:
            return make()
        # oneDNN may choose a layout by the number of threads.
        facts = (place.digest, place.offset, tuple(weight.shape), weight.dtype, form, torch.get_num_threads())
        keys = [f"{facts} {number}" for number in range(count)]
        for file in list(self._opened()):
            try:
                if all(key in file.entries for key in keys):
                    found = [_tensor(file, key) for key in keys]
                    self._used.setdefault(file.path, {}).update(_with_place(keys, found, place))
                    return found
            except UnfitFile as error:
                self._drop(file.path, error)
        made = make()
        if all(tensor.is_mkldnn for tensor in made):  # without a layout of its own, oneDNN leaves a weight as it is
            self._fresh |= _with_place(keys, made, place)
        return made

    def _opened(self) -> list[KeptFile]:
        if self._files is None:
            self._files = []
            for path in kept_paths(self.folder, here()):
                try:
                    file = KeptFile(path)
                    if file.made_on != here():
                        raise UnfitFile("it was made on another machine")
                    self._files.append(file)
                    _read_ahead(path)
                except UnfitFile as error:
                    self._drop(path, error)
        return self._files

    def _drop(self, path: Path, error: UnfitFile) -> None:
        """Use a file no more and remove it: what it had is packed and written again."""
        self.notes.append(f"packed weights in {path.name} are made again: {error}")
        self._files = [file for file in self._files or () if file.path != path]
        # What was sound in it is in use, and goes into the next file.
        self._fresh |= self._used.pop(path, {})
        path.unlink(missing_ok=True)

    def write(self) -> None:
        """Write what was packed since the last call to a file of its own; a disk without room is noted."""
        fresh, self._fresh = self._fresh, {}
        # A file of weights may be rewritten in place before the next run, so each run looks at it anew.
        self._mapped = MappedFiles()
        places = {(place.path, place.inode, place.digest) for _, place in fresh.values()}
        current = {digest for path, inode, digest in places if file_digest(path, inode) == digest}
        tensors = [
            (key, tensor, opaque.bytes_of(tensor))
            for key, (tensor, place) in fresh.items()
            if place.digest in current  # the others were changed while they were packed
        ]
        size = sum(tensor.nbytes for _, tensor, _ in tensors)
        if size < LEAST_BYTES:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < ROOM * size:
                self.notes.append(f"packed weights are not kept: {size / 1e6:,.0f} MB do not fit into {self.folder}")
                return
            write_file(self.folder, here(), [Path(path).name for path, _, _ in places], tensors)
        except OSError as error:
            self.notes.append(f"packed weights are not kept in {self.folder}: {error.strerror or error}")
            return
        self.notes.append(
            f"packed weights kept for the next start: {size / 1e6:,.0f} MB in {self.folder} (`controlnet cache`)"
        )


def packed_once(
    kept: KeptWeights | None,
    weight: Tensor,
    form: str,
    shapes: Sequence[torch.Size],
    dtype: torch.dtype,
    make: Callable[[], list[Tensor]],
) -> list[Tensor]:
    """The same as `KeptWeights.once`, where packed weights are kept; else what `make` returns, of these shapes."""
    if weight.dtype in FLOAT8:  # these are packed in every call
        return make()
    if weight.is_meta:
        with uncounted():  # a memory estimate adds up all packed weights by itself
            return [torch.empty(shape, dtype=dtype, device=weight.device) for shape in shapes]
    form = f"{form} {dtype}"
    return make() if kept is None else kept.once(weight, form, len(shapes), make)


def _with_place(keys: Sequence[str], tensors: Sequence[Tensor], place: Place) -> Placed:
    return {key: (tensor, place) for key, tensor in zip(keys, tensors, strict=True)}


def _tensor(file: KeptFile, key: str) -> Tensor:
    entry = file.entries[key]
    description = file.descriptions[entry.description]
    return opaque.packed_tensor(file.memory_of(entry), entry.shape, getattr(torch, entry.dtype), description)


def _read_ahead(path: Path) -> None:
    """Ask the system to read a file while other work goes on."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
