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
from ..picture_files import read_picture


class Examples(Protocol):
    """Square pictures of `size` pixels with hints and captions, read by their rows."""

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        ...

    def __len__(self) -> int: ...

    def pictures(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [-1, 1]."""
        ...

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [0, 1]."""
        ...

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        ...


@dataclass(frozen=True)
class Example:
    """The files of a picture and its hint, and the caption."""

    picture: Path
    hint: Path
    caption: str


@dataclass(frozen=True)
class ExampleSet:
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
        return torch.stack([self._read(self.examples[row].picture, "LANCZOS") for row in rows]) * 2.0 - 1.0

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, 3, size, size) float32 in [0, 1]."""
        # BOX averages when it shrinks and repeats pixels when it enlarges, so that colours that stand for labels are
        # not mixed.
        return torch.stack([self._read(self.examples[row].hint, "BOX") for row in rows])

    def captions(self, rows: Sequence[int]) -> list[str]:
        """One caption for each row."""
        return [self.examples[row].caption for row in rows]

    def _read(self, path: Path, method: str) -> Tensor:
        from PIL import Image, ImageOps

        image = Image.fromarray(read_pixels(path))
        square = ImageOps.fit(image, (self.size, self.size), Image.Resampling[method])
        return torch.from_numpy(np.asarray(square).copy()).movedim(-1, 0).float() / 255.0


@dataclass(frozen=True)
class ExampleBatch:
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


def read_pixels(path: Path) -> np.ndarray:
    """A picture file -> (H, W, 3) uint8: upright, laid over white where it is transparent.

    Raises DamagedFileError for a file that cannot be read, is empty, or holds floats outside 0..1.
    """
    picture = read_picture(path)
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
