"""The rows of a run over many inputs: every combination of the sources' entries, or their pairs, with every seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..controlnet_core.errors import ValueRangeError
from .each_sources import Entry


@dataclass(frozen=True)
class Row:
    """One run. name: of its pictures. values: by "NODE.INPUT". files: the pictures that it reads."""

    name: str
    values: Mapping[str, str]
    files: tuple[Path, ...]
    seed: int | None


class Combinations:
    """A sequence of rows. Each is made when it is read: millions take no memory. The last source varies fastest."""

    def __init__(self, sources: Sequence[Sequence[Entry]], seeds: Sequence[int | None], *, paired: bool) -> None:
        """paired: the first entry of each source makes the first row, and so on. Raises ValueRangeError for unequal
        numbers of entries."""
        self.sources, self.seeds, self.paired = sources, seeds, paired
        lengths = [len(source) for source in sources]
        if paired and len(set(lengths)) > 1:
            raise ValueRangeError(f"--zip: the sources have {', '.join(map(str, lengths))} entries: give equal numbers")
        self._groups = lengths[0] if paired else math.prod(lengths)

    def __len__(self) -> int:
        return self._groups * len(self.seeds)

    def __getitem__(self, index: int) -> Row:
        group, at = divmod(index, len(self.seeds))
        entries = []
        for source in reversed(self.sources):
            group, place = (group, group) if self.paired else divmod(group, len(source))
            entries.insert(0, source[place])
        seed = self.seeds[at]
        names = [entry.name for entry in entries] + ([] if seed is None else [f"seed{seed}"])
        # Picture and mask of one name are paired: the name need not be there twice.
        name = "_".join(dict.fromkeys(names))
        values = {target: value for entry in entries for target, value in entry.values.items()}
        return Row(name, values, tuple(entry.file for entry in entries if entry.file), seed)
