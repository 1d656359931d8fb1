"""RenderedScene scenes on disk: pictures, captions and hints, memory-mapped.

A folder is complete when it holds `scenes.json`, which is written last: a render that was cut off
starts again, one that was finished is opened at once.
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

from ..errors import ValueRangeError
from .demo_world import RenderedScene, render_many

HintFunction: TypeAlias = Callable[[RenderedScene], np.ndarray]
"""A rendered scene -> its hint (H, W, 3), float 0..1. Passed in: the engine knows no preprocessor."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total)."""

INDEX = "scenes.json"


@dataclass(frozen=True)
class SceneSet:
    """N scenes: pictures and hints (N, H, W, 3) uint8, one caption each."""

    pictures: np.ndarray
    hints: Mapping[str, np.ndarray]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def picture(self, rows: Sequence[int] | Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1], as the autoencoder reads it."""
        return _unit(self.pictures, rows) * 2.0 - 1.0

    def hint(self, kind: str, rows: Sequence[int] | Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1]. Raises ValueRangeError for a kind that was not rendered."""
        if kind not in self.hints:
            raise ValueRangeError(f"no hints of kind {kind!r} in this set: it has {', '.join(self.hints)}")
        return _unit(self.hints[kind], rows)


def open_scenes(folder: Path) -> SceneSet:
    """Open a complete folder without reading the pictures. Raises FileNotFoundError otherwise."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    hints = {kind: np.load(folder / f"hint_{kind}.npy", mmap_mode="r") for kind in index["hints"]}
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    return SceneSet(pictures, hints, tuple(index["captions"]))


def render_scenes(
    folder: Path,
    seeds: range,
    hints: Mapping[str, HintFunction],
    *,
    size: int = 128,
    workers: int = 2,
    progress: Progress = lambda done, total: None,
) -> SceneSet:
    """Render scenes and their hints into `folder`, or open it if that was done before with the same arguments."""
    about = {"seeds": [seeds.start, seeds.stop], "size": size, "hints": sorted(hints)}
    if _is_complete(folder, about):
        return open_scenes(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    shape = (len(seeds), size, size, 3)
    names = ["pictures", *(f"hint_{kind}" for kind in sorted(hints))]
    arrays = {n: np.lib.format.open_memmap(folder / f"{n}.npy", "w+", np.uint8, shape) for n in names}
    captions: list[str] = []
    for row, scene in enumerate(render_many(seeds, size, workers)):
        arrays["pictures"][row] = _bytes(scene.image)
        for kind, function in hints.items():
            arrays[f"hint_{kind}"][row] = _bytes(function(scene))
        captions.append(scene.caption)
        progress(row + 1, len(seeds))
    for array in arrays.values():
        array.flush()
    (folder / INDEX).write_text(json.dumps({**about, "captions": captions}), encoding="utf-8")
    return open_scenes(folder)


def draw_rows(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Random rows (batch,), each independent: a run that goes on needs the generator's state and nothing else."""
    return torch.randint(count, (batch,), generator=generator)


def _is_complete(folder: Path, about: Mapping[str, object]) -> bool:
    index = folder / INDEX
    if not index.exists():
        return False
    stored = json.loads(index.read_text(encoding="utf-8"))
    return all(stored.get(key) == value for key, value in about.items())


def _bytes(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _unit(array: np.ndarray, rows: Sequence[int] | Tensor) -> Tensor:
    rows = np.asarray(rows)
    return torch.from_numpy(array[rows]).permute(0, 3, 1, 2).float() / 255.0
