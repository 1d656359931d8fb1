"""The one reader of picture files: LoadImage, `controlnet preprocess` and training all read pictures here.

Pictures come out upright (the camera's EXIF orientation is applied) and at full depth: 16-bit files keep 16 bits,
float files keep their floats. Every fault of a file is one DamagedFileError that names the file.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import DamagedFileError, unreadable
from .limits import ANIMATION_PIXELS, ARRAY_VALUES, FRAMES, PICTURE_PIXELS, Limit

PICTURE_ENDINGS = frozenset(
    {
        ".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff",
        ".tga", ".ico", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm",
    }
)  # fmt: skip
"""Endings, in lower case, of the files that count as pictures in a folder. Colours of the second row have 8 bits."""

_ANIMATED = frozenset({"GIF", "PNG", "WEBP", "AVIF", "TIFF"})
"""Formats whose frames are pictures of their own. MPO is not one: its further frames are previews and depth maps."""
_PROGRAMS = frozenset({"EPS", "WMF"})
"""Formats that Pillow gives to another program to draw; a picture file must not start a program."""
_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _ORIENTATION = 254, 256, 257, 258, 274  # TIFF tags
_HELPER_PAGE = 1 | 4  # bits of the subfile type: a smaller copy of another page, the transparency mask of a page
_TIFF_DATA = ((273, 279), (324, 325))  # TIFF tags of the offsets and byte counts of strips, and of tiles
_PNG_BIT_DEPTH = 24  # offset in the file of the number of bits per channel


@dataclass(frozen=True)
class Picture:
    """One picture, or one frame of a file.

    pixels (H, W, C): uint8 with C = 3 or 4, or, from deeper files, uint16 (white is 65535) or float32 (any range) with
    C = 1 to 4. C = 2 and C = 4 end with alpha; the colours are stored as they are, not multiplied by alpha.
    """

    pixels: np.ndarray

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is opacity."""
        return self.pixels.shape[-1] in (2, 4)

    def unit(self) -> np.ndarray:
        """(H, W, C) float32 with white at 1; floats stay as stored."""
        return _unit(self.pixels)

    def colours(self) -> np.ndarray:
        """(H, W, 3) float32: gray is repeated, alpha is left out."""
        values = _unit(self.pixels[..., :-1] if self.has_alpha else self.pixels)
        return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values

    def alpha(self) -> np.ndarray:
        """(H, W) float32, 1 where the picture is opaque."""
        return _unit(self.pixels[..., -1]) if self.has_alpha else np.ones(self.pixels.shape[:2], np.float32)

    def over_white(self) -> np.ndarray:
        """(H, W, 3) float32: the picture laid over white, as the official ControlNet annotators do.

        This hides colours that an editor left behind full transparency.
        """
        if not self.has_alpha:
            return self.colours()
        colours, alpha = self.colours(), self.alpha()[..., None]
        colours *= alpha
        colours += np.float32(1.0) - alpha
        return colours


def _unit(pixels: np.ndarray) -> np.ndarray:
    """A copy of any pixels as float32, white at 1; floats stay as stored."""
    values = pixels.astype(np.float32)
    kind = pixels.dtype
    return np.divide(values, np.float32(np.iinfo(kind).max), out=values) if kind.kind == "u" else values


def read_picture(path: Path) -> Picture:
    """The picture in a file; the first frame of an animation. Raises DamagedFileError."""
    return next(read_frames(path, limit=None))


def decode_picture(data: bytes, path: Path) -> Picture:
    """The picture in the bytes of a file, such as a member of an archive. path: names it in errors, and has its ending.

    Raises DamagedFileError.
    """
    with _named_faults(path):
        return Picture(next(_decode(io.BytesIO(data), path, None)))


def read_frames(path: Path, limit: Limit | None = ANIMATION_PIXELS) -> Iterator[Picture]:
    """All frames of a GIF, APNG, animated WebP or AVIF, all pages of a TIFF; one picture of every other file.

    limit: for the pixels of all frames together, None for no such limit; each single frame is within PICTURE_PIXELS.
    `.npy` files are read as arrays. Raises DamagedFileError for a file that is damaged or no picture, LimitError.
    """
    with _named_faults(path):
        if path.suffix.lower() == ".npy":
            yield Picture(_read_array(path))
            return
        with _open_file(path) as file:
            yield from map(Picture, _decode(file, path, limit))


def count_frames(path: Path) -> int:
    """The number of pictures that `read_frames` gives, from the headers alone. Raises DamagedFileError."""
    with _named_faults(path), _open_file(path) as file:
        image = None if path.suffix.lower() == ".npy" else _open(file, path)
        return 1 if image is None else len(_frame_numbers(image, path)[0])


@contextmanager
def _named_faults(path: Path) -> Iterator[None]:
    """Turn every error into a DamagedFileError that names the file.

    Decoders of damaged files raise almost anything: OSError, ValueError, struct.error, KeyError, AssertionError.
    """
    try:
        yield
    except (DamagedFileError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of the system; those of Pillow have no number
            raise DamagedFileError(unreadable(str(path), error), path) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"{path} cannot be read as a picture ({reason}): save it again as PNG or JPEG"
        raise DamagedFileError(message, path) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings about unusual tags. What makes a file unreadable is an error, not a warning.

    Filters of warnings act on the whole process: where several threads read pictures, also enter this around all of
    them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _WholeReader(io.BufferedReader):
    """A file that never allocates more than its size. A damaged PNG may claim 2 GB, and Pillow would ask for them."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes, or all if None."""
        # Python allocates the size that it is asked for before it reads.
        if size is not None and size > 0:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _open_file(path: Path) -> BinaryIO:
    return _WholeReader(io.FileIO(path))


def _decode(file: BinaryIO, path: Path, limit: Limit | None) -> Iterator[np.ndarray]:
    """The frames of an open file, upright, as `Picture.pixels`."""
    image = _open(file, path)
    if image is None:
        yield from _read_deep(file)
        return
    numbers, pixels = _frame_numbers(image, path)
    if limit is not None:
        limit.check(pixels, f"{path} is too large: {len(numbers)} frames of {image.width}x{image.height}")
    is_deep = _is_deep(image, file)
    with quiet():
        turn = image.getexif().get(_ORIENTATION, 1) if is_deep and image.format == "PNG" else 1
    for number in numbers:  # of deep files too: Pillow says what is damaged, cv2 would only print a warning
        frame = _frame(image, number, path)
        if not is_deep:
            yield frame
    if is_deep:
        pages = list(_read_deep(file))
        yield from (_upright(pages[number], turn) for number in numbers)


def _open(file: BinaryIO, path: Path) -> Any:
    """The picture in an open file; None for a TIFF that Pillow does not know, such as one with float colours.

    Pillow gets an open file, never a name: with a name it maps uncompressed gray TIFF into memory, and then garbles
    those with the orientations 6 and 8, since it exchanges width and height before it maps the rows.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet():
            image = Image.open(file)
    except UnidentifiedImageError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise ValueError("it is empty, damaged, or of a type that is not known") from None
        _check_tiff(file, path)
        return None
    except Image.DecompressionBombError as error:  # raised before the sides can be asked for; its text has the pixels
        PICTURE_PIXELS.check(max(map(int, re.findall(r"\d+", str(error)))), f"{path} is too large: it")
        raise
    if image.format in _PROGRAMS:
        raise ValueError(f"{image.format} is a program that draws, not pixels")
    _check_size(image.size, path)
    return image


@quiet()
def _frame_numbers(image: Any, path: Path) -> tuple[Sequence[int], int]:
    """The numbers of the frames that are pictures of their own, and their pixels together. Raises LimitError."""
    count = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
    FRAMES.check(count, f"{path} is too large: it")
    if image.format != "TIFF":
        # The default image of an APNG may be a stand-in for programs without animation, and is then no frame of it.
        numbers = range(1 if count > 1 and image.info.get("default_image") else 0, count)
        return numbers, len(numbers) * image.width * image.height
    sizes = {}
    for number in range(count):
        image.seek(number)
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & _HELPER_PAGE:
            sizes[number] = image.width * image.height
    return list(sizes) or [0], sum(sizes.values())


def _frame(image: Any, number: int, path: Path) -> np.ndarray:
    """One frame, upright: (H, W, 3 or 4) uint8, or (H, W, 1 or 2) uint16 or float32 where a gray is deep."""
    from PIL import ImageOps

    with quiet():
        image.seek(number)
        _check_size(image.size, path)
        frame = ImageOps.exif_transpose(image)
        if frame.mode[0] not in "IF":
            return np.asarray(frame.convert("RGBA" if frame.has_transparency_data else "RGB"))
        gray = np.asarray(frame)
    # Pillow holds 16-bit gray as 16 or as 32 bits, by the file; what fits into 16 bits is a picture of 16 bits.
    fits = gray.dtype.kind in "iu" and gray.size > 0 and gray.min() >= 0 and gray.max() <= 65535
    gray = gray.astype(np.uint16 if fits else np.float32)
    clear = frame.info.get("transparency")
    if not isinstance(clear, int):
        return gray[..., None]
    white = 65535 if gray.dtype == np.uint16 else 1
    return np.stack([gray, np.where(gray == clear, 0, white).astype(gray.dtype)], axis=-1)


def _is_deep(image: Any, file: BinaryIO) -> bool:
    """Whether a picture has colours of more than 8 bits, which Pillow would cut to 8."""
    if image.mode[0] in "IF":
        return False
    if image.format == "PNG" and not getattr(image, "is_animated", False):
        # Pillow reads on from where the file stands, not from where it left off.
        at = file.tell()
        file.seek(_PNG_BIT_DEPTH)
        depth = file.read(1)[0]
        file.seek(at)
        return depth > 8
    return image.format == "TIFF" and max(image.tag_v2.get(_BITS, (1,))) > 8


def _read_deep(file: BinaryIO) -> Iterator[np.ndarray]:
    """Pages with deep colours, read by cv2: (H, W, C) uint16 or float32. cv2 turns TIFF by its tag, PNG not."""
    import cv2

    file.seek(0)
    data = np.frombuffer(file.read(), np.uint8)
    if data[:4].tobytes() == b"\x89PNG":
        pages = [cv2.imdecode(data, cv2.IMREAD_UNCHANGED)]
    else:
        pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1]
    for page in pages or [None]:
        if page is None:
            raise ValueError("it is damaged, or of a type that is not known")
        page = np.asarray(page, np.uint16 if page.dtype == np.uint16 else np.float32)
        if page.ndim == 3:
            page = cv2.cvtColor(page, cv2.COLOR_BGRA2RGBA if page.shape[-1] == 4 else cv2.COLOR_BGR2RGB)
        yield page if page.ndim == 3 else page[..., None]


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) turned as EXIF orientation 1 to 8 says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _check_tiff(file: BinaryIO, path: Path) -> None:
    """Check the pages of a TIFF that only cv2 can read: sizes under the limits, and all bytes of the data there."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with quiet():
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        tags, seen, total = ImageFileDirectory_v2(file.read(8)), set(), 0
        while tags.next and tags.next not in seen:
            seen.add(tags.next)
            file.seek(tags.next)
            tags.load(file)
            _check_size((tags[_WIDTH], tags[_HEIGHT]), path)
            total += tags[_WIDTH] * tags[_HEIGHT]
            places, counts = next(((tags[a], tags[b]) for a, b in _TIFF_DATA if a in tags), ((), ()))
            ends = [start + count for start, count in zip(places, counts, strict=True)]
            if not ends or max(ends) > size:
                raise ValueError("it is cut short")
    PICTURE_PIXELS.check(total, f"{path} is too large: {len(seen)} pages")  # cv2 decodes all pages at once


def _check_size(size: tuple[int, int], path: Path) -> None:
    """Raise LimitError for a (width, height) with too many pixels."""
    PICTURE_PIXELS.check(size[0] * size[1], f"{path} is too large: {size[0]}x{size[1]}")


def _read_array(path: Path) -> np.ndarray:
    """A .npy file: (H, W) or (H, W, 1 to 4), of any real type. It is mapped first: a false header takes no memory."""
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive:  # numpy would open it
        raise ValueError("it is a .npz archive or another zip file: unpack it, and give one .npy file of it")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    ARRAY_VALUES.check(array.size, f"{path} is too large: an array of shape {array.shape}")
    is_picture = array.ndim in (2, 3) and array.size > 0 and (array.ndim == 2 or array.shape[2] <= 4)
    if not is_picture or array.dtype.kind not in "buif":
        raise ValueError(
            f"it holds {array.dtype} of shape {array.shape}, expected numbers (height, width) with 1 to 4 channels"
        )
    array = np.array(array)
    return array[..., None] if array.ndim == 2 else array
