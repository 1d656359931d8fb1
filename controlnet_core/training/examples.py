"""Examples to train on: pictures, their hints and captions, in memory or in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import DamagedFileError
from ..picture_files import Picture, read_picture
from .buckets import Size
from .disk_cache import file_stamp
from .draw import DrawRows, EpochDraw
from .probe import split_rows

ASPECT_TOLERANCE = 0.02
"""Largest relative difference between the proportions of a hint and its picture; beyond it, their crops differ."""


class Examples(Protocol):
    """Pictures with hints and captions, read by their rows: squares of `size` pixels, or of the sizes of buckets."""

    @property
    def size(self) -> int:
        """Side of the squares in pixels; pictures of other proportions have at most the same area."""
        ...

    def __len__(self) -> int: ...

    def split(self, seed: int) -> tuple[DrawRows, tuple[int, ...]]:
        """How to draw rows to train on, all of one size in a batch, and the rows that are held out for the probe."""
        ...

    def squares(self) -> Examples:
        """The same examples as squares; themselves where they are."""
        ...

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1]."""
        ...

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1]."""
        ...

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        ...

    def stamp(self, row: int) -> str:
        """File, time and size of a picture, which change with it, and its bucket; "" for one in memory."""
        ...


@dataclass(frozen=True)
class Example:
    """The files of a picture and its hint, and the caption."""

    picture: Path
    hint: Path
    caption: str


class RandomAccess:
    """Square examples that can be read in any order: they are shuffled in each epoch, see `EpochDraw`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def stamp(self, row: int) -> str:
        """See `Examples.stamp`."""
        return ""

    def split(self, seed: int) -> tuple[DrawRows, tuple[int, ...]]:
        """See `Examples.split`."""
        rows, held_out = split_rows(len(self))
        return EpochDraw((rows.tolist(),), seed), held_out

    def squares(self) -> Examples:
        """See `Examples.squares`."""
        return cast("Examples", self)  # its subclasses are


@dataclass(frozen=True)
class ExampleSet(RandomAccess):
    """Examples in files, see `Examples`; a file is read each time it is used.

    Pictures and hints are scaled to cover the square, or the size of their bucket, and cut at its centre. buckets: the
    size of each example; None for squares. The methods raise DamagedFileError for a file that is no picture.
    """

    examples: tuple[Example, ...]
    size: int
    buckets: tuple[Size, ...] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def split(self, seed: int) -> tuple[DrawRows, tuple[int, ...]]:
        """See `Examples.split`."""
        rows, held_out = split_rows(len(self))
        by_size: dict[Size, list[int]] = {}
        for row in rows.tolist():
            by_size.setdefault(self.size_of(row), []).append(row)
        return EpochDraw([by_size[size] for size in sorted(by_size)], seed), held_out

    def squares(self) -> ExampleSet:
        """See `Examples.squares`."""
        return self if self.buckets is None else replace(self, buckets=None)

    def size_of(self, row: int) -> Size:
        """(height, width) of a picture as it is trained on."""
        return (self.size, self.size) if self.buckets is None else self.buckets[row]

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1]; the rows are of one size."""
        return torch.stack([self._read(row, self.examples[row].picture) for row in rows]) * 2.0 - 1.0

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1]; the rows are of one size."""
        return torch.stack([self._read(row, self.examples[row].hint, is_hint=True) for row in rows])

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        return [self.examples[row].caption for row in rows]

    def stamp(self, row: int) -> str:
        """See `Examples.stamp`."""
        stamp, size = file_stamp(self.examples[row].picture), self.size_of(row)
        # Squares have the same stamp with and without buckets, so that their latents on the disk serve both.
        return stamp if size == (self.size, self.size) else f"{stamp} in {size[1]}x{size[0]}"

    def _read(self, row: int, path: Path, *, is_hint: bool = False) -> Tensor:
        return fit_pixels(read_pixels(path), self.size_of(row), is_hint=is_hint)


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


def fit_pixels(pixels: np.ndarray, size: Size, *, is_hint: bool) -> Tensor:
    """(H, W, 3) uint8 -> (3, height, width) in [0, 1]: scaled to cover this size and cut at its centre."""
    from PIL import Image, ImageOps

    # BOX averages when it shrinks and repeats pixels when it enlarges: colours that stand for labels are not mixed.
    method = Image.Resampling.BOX if is_hint else Image.Resampling.LANCZOS
    fitted = ImageOps.fit(Image.fromarray(pixels), (size[1], size[0]), method)
    return torch.from_numpy(np.asarray(fitted).copy()).movedim(-1, 0).float() / 255.0


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
