"""Read the workflow in a PNG: ComfyUI writes the texts `prompt` (API form) and `workflow` (the editor's form)."""

from __future__ import annotations

import io
import struct
import warnings

from ..controlnet_core.errors import WorkflowError
from ..controlnet_core.limits import PICTURE_PIXELS

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_PARTS = 10_000
"""Parts that are read without Pillow: a picture of 8192 x 8192 pixels has about 3,000."""


def is_png(data: bytes) -> bool:
    """Whether the bytes begin as a PNG does."""
    return data.startswith(SIGNATURE)


def read_text(data: bytes, name: str = "the picture") -> dict[str, str]:
    """Return the texts of a PNG by keyword. Pixels are decoded only if there is no workflow before them.

    Raises WorkflowError if the file is damaged, or if its texts are larger than Pillow's limits: 64 MB for all texts of
    a file together, 1 MB for one that is compressed. A wrong checksum of a plain text is no damage: tools that edit the
    text often leave the old one, and ComfyUI's editor, which does not look at it, opens such a picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            # Pillow warns of large pictures. The limit for them is below.
            warnings.simplefilter("ignore")
            if not {"prompt", "workflow"} & image.info.keys():
                PICTURE_PIXELS.check(image.width * image.height, "the picture")
                # Some programs write texts behind the pixels, so these must be read.
                image.load()
                # Pillow accepts a file whose end is missing.
                if b"IEND" not in data:
                    raise ValueError("it has no end")
            return {str(key): _decoded(text) for key, text in image.info.items() if isinstance(text, str)}
    except Exception as error:
        texts = _plain_texts(data)
        if texts:
            return texts
        # Pillow's decoders raise almost anything for a damaged file.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its header is incomplete"  # instead of the name of an object in memory
        raise WorkflowError(f"{name} is cut short or damaged ({reason}): copy or download it again") from error


def _decoded(text: str) -> str:
    """A text as ComfyUI's editor reads it: as UTF-8, which tools write where Latin-1 belongs."""
    # Pillow has a type of its own for the texts that are declared as UTF-8.
    if type(text) is not str:
        return str(text)
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _plain_texts(data: bytes) -> dict[str, str]:
    """Return `prompt` and `workflow` of the parts of kind tEXt, whatever their checksums; empty without any."""
    texts, place = {}, len(SIGNATURE)
    for _ in range(_MAX_PARTS):
        if place + 8 > len(data):
            break
        size, kind = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + 8 + size] if kind == b"tEXt" else b""
        keyword, zero, text = content.partition(b"\0")
        # A part that is cut off is shorter than it says.
        if zero and len(content) == size and keyword in (b"prompt", b"workflow"):
            texts[keyword.decode()] = _decoded(text.decode("latin-1"))
        # Length, kind and checksum take 12 bytes.
        place += 12 + size
    return texts
