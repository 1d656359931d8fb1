"""Reads the pictures that `controlnet preprocess` makes hints of."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..controlnet_core.errors import DamagedFileError

if TYPE_CHECKING:
    import numpy as np

_FLOAT_COLOURS = frozenset({".tif", ".tiff"})  # may hold floats in three channels, which Pillow does not know
_PNG_DEPTH = 24  # the byte of the file that says how many bits a channel has
_TIFF_DEPTHS = 258  # the tag that does
_TIFF_DATA = ((273, 279), (324, 325))  # the tags of places and sizes, of strips or of tiles


def read_picture(path: Path) -> np.ndarray:
    """A file -> (H,W,C): bytes, 16-bit words or floats as stored; photos are turned as their camera says.

    Raises DamagedFileError if it is no readable picture.
    """
    import numpy as np
    from PIL import Image

    try:
        picture = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_file(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedFileError(f"{path} cannot be read as a picture: {error}") from error
    return picture[..., None] if picture.ndim == 2 else picture


def _read_file(path: Path) -> np.ndarray:
    """By Pillow, which says what is wrong with a file; by cv2 where Pillow would cut the values down to bytes."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd tags; what keeps a file from being read is an error
            with Image.open(path) as opened:
                opened.load()  # the whole file is looked at before cv2 sees it, which prints warnings of its own
                if not _is_deep(opened, path):
                    turned = ImageOps.exif_transpose(opened)
                    return np.asarray(turned.convert("RGBA" if turned.has_transparency_data else "RGB"))
    except UnidentifiedImageError:
        if path.suffix.lower() not in _FLOAT_COLOURS or not _is_whole_tiff(path):
            raise
    return _read_deep(path)


def _is_deep(opened: Any, path: Path) -> bool:
    """Whether a channel has more than 8 bits."""
    if opened.format == "PNG":
        with path.open("rb") as file:
            return file.read(_PNG_DEPTH + 1)[_PNG_DEPTH] > 8
    if opened.format == "TIFF":
        return max(opened.tag_v2.get(_TIFF_DEPTHS, (1,))) > 8
    return False


def _is_whole_tiff(path: Path) -> bool:
    """Whether a file has the tags of a TIFF and all the bytes that they speak of."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)
            tags = ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            places, counts = next((tags[a], tags[b]) for a, b in _TIFF_DATA if a in tags and b in tags)
    except (OSError, SyntaxError, ValueError, StopIteration, struct.error):
        return False
    return max(start + count for start, count in zip(places, counts, strict=False)) <= path.stat().st_size


def _read_deep(path: Path) -> np.ndarray:
    import cv2
    import numpy as np

    try:
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # an empty file, or more pixels than OpenCV reads
        raise ValueError("it is empty or too large") from error
    if picture is None:
        raise ValueError("it is damaged, or of a type that is not known")
    if picture.ndim == 2:
        return picture
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA if picture.shape[-1] == 4 else cv2.COLOR_BGR2RGB)
