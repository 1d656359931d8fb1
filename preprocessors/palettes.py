"""Palettes: the colours that stand for classes in the hints of segmentation ControlNets.

ADE20K has 150 classes in the order of the MIT Scene Parsing benchmark. Two of them, road (6) and skyscraper (48), have
the same colour; it is read back as road. COCO has the 133 classes of its panoptic task, 80 things and then 53 kinds of
stuff. The v1.1 network reads both palettes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import ParameterError, PictureError, check_choice
from .image_ops import like, to_numpy

if TYPE_CHECKING:
    from .image_ops import Array

PALETTES = ("ade20k", "coco")


@dataclass(frozen=True)
class Palette:
    """The classes of one data set: names, and colours (N,3) uint8, read-only."""

    name: str
    classes: tuple[str, ...]
    colours: np.ndarray

    def numbers(self, names: str) -> list[int]:
        """Names such as "sky, tree, road", or numbers, separated by commas -> class numbers.

        Raises ParameterError with similar names for an unknown word.
        """
        # Reversed, so that the first of two classes with one name wins; full names go before shortened ones.
        known = {name.removesuffix("-merged"): index for index, name in reversed(list(enumerate(self.classes)))}
        known |= {name: index for index, name in reversed(list(enumerate(self.classes)))}
        words = [word for part in names.split(",") if (word := part.strip().lower())]
        if not words:
            raise ParameterError("no class was named: give one or more, such as 'sky, tree, road'")
        return [self._number(word, known) for word in words]

    def _number(self, word: str, known: Mapping[str, int]) -> int:
        if word in known:
            return known[word]
        if word.isascii() and word.isdigit() and len(word) < 5 and int(word) < len(self.classes):
            return int(word)
        near = ", ".join(get_close_matches(word, known)) or ", ".join(self.classes[:5]) + ", ..."
        raise ParameterError(f"{word!r} is not a class of {self.name}; near it are: {near}")


@cache
def palette(name: str) -> Palette:
    """The palette called "ade20k" or "coco"; ParameterError for any other name."""
    check_choice("palette", name, PALETTES)
    # One class a line, in the order of the data set: its colour in hexadecimal, its name.
    table = (Path(__file__).parent / "data" / f"{name}.csv").read_text("utf-8")
    codes, labels = zip(*(row.split(",") for row in table.splitlines()), strict=True)
    colours = np.array([list(bytes.fromhex(code)) for code in codes], np.uint8)
    colours.flags.writeable = False
    return Palette(name, labels, colours)


def labels_to_hint(labels: Array, name: str = "ade20k") -> Array:
    """Class numbers (...,H,W) -> colours (...,H,W,3) float32. Numbers of no class, such as -1 and 255, become black."""
    numbers = to_numpy(labels)
    if numbers.ndim < 2 or numbers.dtype.kind not in "iub":
        raise PictureError(
            f"labels have shape {tuple(numbers.shape)} and type {numbers.dtype}, expected integers (H,W) or (B,H,W)"
        )
    colours = palette(name).colours
    table = np.vstack((colours, np.zeros((1, 3), np.uint8))).astype(np.float32) / np.float32(255.0)
    known = (numbers >= 0) & (numbers < len(colours))
    return like(table[np.where(known, numbers, len(colours))], labels)


def nearest_classes(pixels: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,3) bytes -> the number of the nearest of `colours` (N,3), and its Euclidean distance, both (P,)."""
    # A painted map has few colours: each is compared once instead of once per pixel.
    packed = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    seen, where = np.unique(packed, return_inverse=True)
    values = np.stack([seen >> 16, (seen >> 8) & 255, seen & 255], axis=1).astype(np.float32)
    targets = colours.astype(np.float32)
    numbers = np.empty(len(values), np.int64)
    for start in range(0, len(values), 8192):
        part = values[start : start + 8192]
        # |v - c|^2 without |v|^2, which is the same for all colours. It is exact in float32 for bytes.
        numbers[start : start + 8192] = ((targets**2).sum(axis=1) - 2.0 * part @ targets.T).argmin(axis=1)
    distance = np.sqrt(((values - targets[numbers]) ** 2).sum(axis=1))
    return numbers[where.ravel()], distance[where.ravel()]


def panoptic_to_labels(segments: Array, classes: Mapping[int, int]) -> Array:
    """Segment numbers (...,H,W) and the class of each -> class numbers (...,H,W). Other segments become -1.

    All instances of a class become one class, since the networks were trained on semantic maps.
    """
    numbers = to_numpy(segments)
    labels = np.full(numbers.shape, -1, np.int64)
    for segment, label in classes.items():
        labels[numbers == segment] = label
    return like(labels, segments)
