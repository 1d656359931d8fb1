"""Rendered scenes on disk: pictures, captions and hints, mapped into memory.

`scenes.json` is written last. A folder without it was cut off, and is rendered again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..atomic_files import atomic_write
from ..errors import ValueRangeError, reading
from .demo_world import RenderedScene, render_many

HintFunction: TypeAlias = Callable[[RenderedScene], np.ndarray]
"""A rendered scene -> its hint (H, W, 3), float in 0..1. Passed in, because the engine imports no preprocessor."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total)."""

INDEX = "scenes.json"


@dataclass(frozen=True)
class RenderedSet:
    """N scenes: pictures and hints (N, H, W, 3) uint8, and one caption each."""

    pictures: np.ndarray
    hints: Mapping[str, np.ndarray]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def picture(self, rows: Sequence[int] | Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1], the range of the autoencoder."""
        return _to_float(self.pictures, rows) * 2.0 - 1.0

    def hint(self, kind: str, rows: Sequence[int] | Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1]. Raises ValueRangeError for a kind that was not rendered."""
        if kind not in self.hints:
            raise ValueRangeError(f"there are no hints of kind {kind!r} in this set: choose {', '.join(self.hints)}")
        return _to_float(self.hints[kind], rows)


def open_scenes(folder: Path) -> RenderedSet:
    """Open a complete folder; pictures are read when they are used. Raises MissingFileError, DamagedFileError."""
    with reading(folder / INDEX):
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        hints = {kind: np.load(folder / f"hint_{kind}.npy", mmap_mode="r") for kind in index["hints"]}
        pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        return RenderedSet(pictures, hints, tuple(index["captions"]))


def render_scenes(
    folder: Path,
    seeds: range,
    hints: Mapping[str, HintFunction],
    *,
    size: int = 128,
    workers: int = 2,
    progress: Progress = lambda done, total: None,
) -> RenderedSet:
    """Render scenes and their hints into a folder, or open it if this was done before with the same arguments."""
    about = {"seeds": [seeds.start, seeds.stop], "size": size, "hints": sorted(hints)}
    if _is_complete(folder, about):
        return open_scenes(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # the folder is not complete until it is written again
    shape = (len(seeds), size, size, 3)
    names = ["pictures", *(f"hint_{kind}" for kind in sorted(hints))]
    # Mapped files: 24,000 scenes with five hints each are 7 GB, more than many machines have in memory.
    arrays = {n: np.lib.format.open_memmap(folder / f"{n}.npy", "w+", np.uint8, shape) for n in names}
    captions: list[str] = []
    for row, scene in enumerate(render_many(seeds, size, workers)):
        arrays["pictures"][row] = _to_bytes(scene.image)
        for kind, function in hints.items():
            arrays[f"hint_{kind}"][row] = _to_bytes(function(scene))
        captions.append(scene.caption)
        progress(row + 1, len(seeds))
    for array in arrays.values():
        array.flush()
    with atomic_write(folder / INDEX) as file:
        file.write(json.dumps({**about, "captions": captions}).encode())
    return open_scenes(folder)


def draw_rows(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Random rows (batch,), with repetition: a continuation needs only the state of the generator, and no order."""
    return torch.randint(count, (batch,), generator=generator)


def _is_complete(folder: Path, about: Mapping[str, object]) -> bool:
    index = folder / INDEX
    if not index.exists():
        return False
    with reading(index):
        stored = json.loads(index.read_text(encoding="utf-8"))
        return all(stored.get(key) == value for key, value in about.items())


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _to_float(array: np.ndarray, rows: Sequence[int] | Tensor) -> Tensor:
    return torch.from_numpy(array[np.asarray(rows)]).permute(0, 3, 1, 2).float() / 255.0
