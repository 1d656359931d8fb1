"""Examples to train on: pictures, their hints and captions, in memory or in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DamagedFileError
from ..picture_files import Picture, read_picture
from .disk_cache import file_stamp
from .probe import DrawRows, split_rows

ASPECT_TOLERANCE = 0.02
"""Largest relative difference between the proportions of a hint and its picture; beyond it, their crops differ."""


class Examples(Protocol):
    """Square pictures of `size` pixels with hints and captions, read by their rows."""

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        ...

    def __len__(self) -> int: ...

    def split(self, seed: int) -> tuple[DrawRows, tuple[int, ...]]:
        """How to draw rows to train on, and the rows that are held out for the probe."""
        ...

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [-1, 1]."""
        ...

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [0, 1]."""
        ...

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        ...

    def stamp(self, row: int) -> str:
        """File, time and size of a picture, which change with it; "" for one in memory."""
        ...


@dataclass(frozen=True)
class Example:
    """The files of a picture and its hint, and the caption."""

    picture: Path
    hint: Path
    caption: str


class RandomAccess:
    """Examples that are drawn at random, with repetition: a continuation needs the state of the generator only."""

    def __len__(self) -> int:
        raise NotImplementedError

    def stamp(self, row: int) -> str:
        """See `Examples.stamp`."""
        return ""

    def split(self, seed: int) -> tuple[DrawRows, tuple[int, ...]]:
        """See `Examples.split`."""
        rows, held_out = split_rows(len(self))

        def draw(count: int, generator: torch.Generator, drawn: int) -> list[int]:
            return rows[torch.randint(len(rows), (count,), generator=generator)].tolist()

        return draw, held_out


@dataclass(frozen=True)
class ExampleSet(RandomAccess):
    """Examples in files, see `Examples`; a file is read each time it is used.

    Pictures and hints are scaled to cover the square and cut at its centre. The methods raise DamagedFileError for a
    file that is no picture.
    """

    examples: tuple[Example, ...]
    size: int

    def __len__(self) -> int:
        return len(self.examples)

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [-1, 1]."""
        return torch.stack([self._read(self.examples[row].picture) for row in rows]) * 2.0 - 1.0

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [0, 1]."""
        return torch.stack([self._read(self.examples[row].hint, is_hint=True) for row in rows])

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        return [self.examples[row].caption for row in rows]

    def stamp(self, row: int) -> str:
        """See `Examples.stamp`."""
        return file_stamp(self.examples[row].picture)

    def _read(self, path: Path, *, is_hint: bool = False) -> Tensor:
        return to_square(read_pixels(path), self.size, is_hint=is_hint)


@dataclass(frozen=True)
class ExampleBatch(RandomAccess):
    """Examples in memory, see `Examples`: picture (N, 3, S, S) in [-1, 1], hint (N, 3, S, S) in [0, 1]."""

    picture: Tensor
    hint: Tensor
    caption: tuple[str, ...]

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.picture.shape[-1]

    def __len__(self) -> int:
        return len(self.caption)

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, S, S) float32 in [-1, 1]."""
        return self.picture[list(rows)]

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1]."""
        return self.hint[list(rows)]

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        return [self.caption[row] for row in rows]


def to_square(pixels: np.ndarray, size: int, *, is_hint: bool) -> Tensor:
    """(H, W, 3) uint8 -> (3, size, size) in [0, 1]: scaled to cover the square and cut at its centre."""
    from PIL import Image, ImageOps

    # BOX averages when it shrinks and repeats pixels when it enlarges: colours that stand for labels are not mixed.
    method = Image.Resampling.BOX if is_hint else Image.Resampling.LANCZOS
    square = ImageOps.fit(Image.fromarray(pixels), (size, size), method)
    return torch.from_numpy(np.asarray(square).copy()).movedim(-1, 0).float() / 255.0


def proportions_fault(hint: Path, hint_size: Sequence[int], picture: Path, picture_size: Sequence[int]) -> str:
    """What is wrong with the sizes (height, width) of a hint and its picture, empty where they fit."""
    (hint_height, hint_width), (height, width) = hint_size, picture_size
    if abs((hint_width / hint_height) / (width / height) - 1.0) <= ASPECT_TOLERANCE:
        return ""
    return (
        f"the hint {hint.name} is {hint_width}x{hint_height}, its picture {width}x{height} ({picture}): both need the "
        "same proportions"
    )


def read_pixels(path: Path) -> np.ndarray:
    """A picture file -> (H, W, 3) uint8, see `plain_pixels`. Raises DamagedFileError."""
    return plain_pixels(read_picture(path), path)


def plain_pixels(picture: Picture, path: Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8: laid over white where it is transparent.

    Raises DamagedFileError for one that holds floats outside 0..1.
    """
    if picture.pixels.dtype == np.uint8 and not picture.has_alpha:
        return picture.pixels
    colours = picture.over_white()
    if not bool(((colours >= 0.0) & (colours <= 1.0)).all()):
        raise DamagedFileError(
            f"{path} holds numbers from {colours.min():g} to {colours.max():g}, expected 0 to 1, as in a hint: convert "
            "depths with `controlnet preprocess depth_map`",
            path,
        )
    # 8 bits are enough: a net is trained and used with hints of 8 bits.
    return (colours * 255.0 + 0.5).astype(np.uint8)
