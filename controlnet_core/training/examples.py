"""A folder of examples to train on: pictures, their hints and captions.

Two forms. The one of fill50k, the ControlNet release's own example: `prompt.json`, one JSON object per line with
"source" (the hint's file), "target" (the picture's) and "prompt". Or two folders `source` and `target` with files
of the same name, captions in text files beside the pictures (`target/17.txt`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CoreError, MissingFileError, ShapeError, ValueRangeError

INDEX, HINTS, PICTURES = "prompt.json", "source", "target"
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
ASPECT_TOLERANCE = 0.02
"""How much the proportions of a hint may differ from its picture's; more, and the crops would not match."""


@dataclass(frozen=True)
class Example:
    """One picture with its hint and caption."""

    picture: Path
    hint: Path
    caption: str


@dataclass(frozen=True)
class ExampleSet:
    """Examples, read from disk when they are asked for; all are brought to squares of `size` pixels.

    Pictures are scaled to cover the square and cut at its centre; hints likewise, by averaging when they
    are larger and by repeating pixels when they are smaller, so that label colours stay what they are.
    """

    examples: tuple[Example, ...]
    size: int

    def __len__(self) -> int:
        return len(self.examples)

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [-1, 1]. Raises CoreError for a file that is no picture."""
        return torch.stack([self._read(self.examples[row].picture, "LANCZOS") for row in rows]) * 2.0 - 1.0

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [0, 1]. Raises CoreError, and ShapeError for other proportions."""
        return torch.stack([self._hint(self.examples[row]) for row in rows])

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption each."""
        return [self.examples[row].caption for row in rows]

    def _hint(self, example: Example) -> Tensor:
        with _opened(example.picture) as picture, _opened(example.hint) as hint:
            ours, theirs = hint.width / hint.height, picture.width / picture.height
            if abs(ours / theirs - 1.0) > ASPECT_TOLERANCE:
                raise ShapeError(
                    f"the hint {example.hint.name} is {hint.width}x{hint.height}, its picture {picture.width}x"
                    f"{picture.height}: both need the same proportions"
                )
        return self._read(example.hint, "BOX")

    def _read(self, path: Path, method: str) -> Tensor:
        from PIL import Image, ImageOps

        with _opened(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (self.size, self.size), Image.Resampling[method])
        return torch.from_numpy(np.asarray(square).copy()).movedim(-1, 0).float() / 255.0


@dataclass(frozen=True)
class ExampleBatch:
    """Examples that are in memory already: pictures (N, 3, S, S) in [-1, 1], hints (N, 3, S, S) in [0, 1]."""

    picture: Tensor
    hint: Tensor
    caption: tuple[str, ...]

    @property
    def size(self) -> int:
        """Side of the pictures."""
        return self.picture.shape[-1]

    def __len__(self) -> int:
        return len(self.caption)

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """As `ExampleSet.pictures`."""
        return self.picture[list(rows)]

    def hints(self, rows: Sequence[int]) -> Tensor:
        """As `ExampleSet.hints`."""
        return self.hint[list(rows)]

    def captions(self, rows: Sequence[int]) -> list[str]:
        """As `ExampleSet.captions`."""
        return [self.caption[row] for row in rows]


def open_examples(folder: Path, size: int) -> ExampleSet:
    """The examples of a folder, in either form; only their names are read.

    Raises MissingFileError for a folder without examples or with files missing, ValueRangeError for an index that
    cannot be read.
    """
    index = folder / INDEX
    if index.is_file():
        examples = tuple(_indexed(folder, index.read_text("utf-8")))
    elif (folder / HINTS).is_dir() and (folder / PICTURES).is_dir():
        examples = tuple(_paired(folder))
    else:
        raise MissingFileError(
            f"{folder} holds no examples: expected {INDEX}, or the folders {HINTS} (hints) and {PICTURES} (pictures)",
            folder,
        )
    missing = [path for example in examples for path in (example.picture, example.hint) if not path.is_file()]
    if missing or not examples:
        what = f"{len(missing)} of its files are missing, first {missing[0]}" if missing else "it names no examples"
        raise MissingFileError(f"{folder}: {what}", folder)
    return ExampleSet(examples, size)


def _indexed(folder: Path, text: str) -> Iterator[Example]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            names = [str(entry[key]) for key in ("target", "source")]
            caption = str(entry["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueRangeError(
                f"{folder / INDEX}, line {number}: expected an object with source, target and prompt ({error!r})"
            ) from error
        picture, hint = (_inside(folder, name, number) for name in names)
        yield Example(picture, hint, caption)


def _inside(folder: Path, name: str, number: int) -> Path:
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueRangeError(f"{folder / INDEX}, line {number}: {name!r} leaves the folder; give a name inside it")
    return folder / path


def _paired(folder: Path) -> Iterator[Example]:
    hints = {path.stem: path for path in _images(folder / HINTS)}
    for picture in _images(folder / PICTURES):
        words = picture.with_suffix(".txt")
        caption = words.read_text("utf-8").strip() if words.is_file() else ""
        yield Example(picture, hints.get(picture.stem, folder / HINTS / picture.name), caption)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)


def _opened(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError) as error:
        raise CoreError(f"{path} cannot be read as a picture ({error}): replace it or take it out") from error


class LatentCache:
    """Latents of examples, encoded when first needed and kept in half precision up to `limit` bytes."""

    def __init__(self, encode: Callable[[Sequence[int]], Tensor], count: int, limit: int = 2 * 1024**3) -> None:
        self._encode, self._count, self._limit = encode, count, limit
        self._kept: Tensor | None = None
        self._known = torch.zeros(count, dtype=torch.bool)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """(B, 4, h, w) float32 on the CPU."""
        rows = list(rows)
        wanted = [row for row in dict.fromkeys(rows) if not self._known[row]]
        fresh = dict(zip(wanted, self._encode(wanted).float().cpu(), strict=True)) if wanted else {}
        if fresh and self._kept is None:
            shape = next(iter(fresh.values())).shape
            if self._count * shape.numel() * 2 <= self._limit:
                self._kept = torch.empty(self._count, *shape, dtype=torch.float16)
        if self._kept is None:
            return torch.stack([fresh[row] for row in rows])
        for row, latent in fresh.items():
            self._kept[row] = latent
            self._known[row] = True
        return self._kept[rows].float()
