"""Reading and writing of picture files, with the workflow that made them inside."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import posixpath
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..controlnet_core.errors import CoreError, DamagedFileError, MissingFileError, ShapeError, ValueRangeError
from .folders import PICTURE_ENDINGS, brief, find_file, inside, publish

NO_MASK = (64, 64)
"""Size of the mask of a picture without transparency, as in the host."""
GRAY_RANGES = {"I": 65535.0, "F": 1.0}
"""What is white in gray pictures of more than 8 bits, by the first letter of Pillow's name for them."""
CHANNELS = {"alpha": "A", "red": "R", "green": "G", "blue": "B"}
COMPRESSION = 4
DEFAULT_PREFIX = "ComfyUI"
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
"""What an error of the system says when there is no room, on the disk or by a limit."""


class Folders(Protocol):
    """The part of a host that files are looked for in."""

    input_dir: Path
    output_dir: Path
    temp_dir: Path


# ------------------------------------------------------------------------------------------- reading


def annotated_file(name: str, host: Folders) -> Path:
    """The file of "a.png", "sub/a.png", "a.png [output]" or "a.png [temp]".

    Raises PathError for a name that leaves its folder, MissingFileError when there is none, ValueRangeError for what
    is no name at all.
    """
    if not isinstance(name, str):
        raise ValueRangeError(f"takes the name of a picture, got {brief(name)}")
    match = re.fullmatch(r"(.*?)\s*\[(input|output|temp)\]", name)
    plain, place = (match[1], match[2]) if match else (name, "input")
    folder = {"input": host.input_dir, "output": host.output_dir, "temp": host.temp_dir}[place]
    path = find_file([folder], plain, "picture", PICTURE_ENDINGS)
    if not path.is_file():
        raise MissingFileError(f"{name!r} is a folder: name a picture in it", path)
    return path


def read_picture(path: Path) -> tuple[Tensor, Tensor]:
    """IMAGE (frames, H, W, 3) and MASK (frames, H, W), 1 where the picture is transparent.

    16-bit pictures are read at their full range, those of floats as they are. Raises DamagedFileError for a file
    that is no picture, and for numbers outside these ranges.
    """
    from PIL import Image, ImageSequence

    pictures, masks = [], []
    with _readable(path), Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            rgb, transparent = _frame(frame)
            if pictures and rgb.shape != pictures[0].shape:
                continue
            pictures.append(rgb)
            masks.append(transparent)
            if image.format == "MPO":
                break
    return torch.stack(pictures), torch.stack(masks)


def read_mask(path: Path, channel: str) -> Tensor:
    """MASK (1, H, W) from a channel of a picture; "alpha" is 1 where the picture is transparent."""
    from PIL import Image

    with _readable(path), Image.open(path) as image:
        rgb, transparent = _frame(image)
        height, width = rgb.shape[:2]
        if channel == "alpha":
            solid = tuple(transparent.shape) == NO_MASK != (height, width)
            return (torch.zeros(height, width) if solid else transparent)[None]
        return rgb[..., "RGB".index(CHANNELS[channel])][None]


def _frame(frame: Any) -> tuple[Tensor, Tensor]:
    """One frame upright: (H, W, 3) in [0, 1], and (H, W) transparency."""
    from PIL import ImageOps

    frame = ImageOps.exif_transpose(frame)
    if frame.mode[0] in GRAY_RANGES:  # Pillow's own conversion to RGB clips instead of scaling
        gray = torch.from_numpy(np.asarray(frame).astype(np.float32) / GRAY_RANGES[frame.mode[0]])
        if not bool(((gray >= 0.0) & (gray <= 1.0)).all()):
            raise ValueError(f"its numbers are not between 0 and {GRAY_RANGES[frame.mode[0]]:g}")
        return gray[..., None].expand(-1, -1, 3).contiguous(), torch.zeros(NO_MASK)
    if frame.mode == "P" and "transparency" in frame.info:
        frame = frame.convert("RGBA")
    transparent = torch.zeros(NO_MASK)
    if frame.mode != "LAB" and "A" in frame.getbands():
        transparent = 1.0 - _unit(frame.getchannel("A"))
    return _unit(frame.convert("RGB")), transparent


def _unit(image: Any) -> Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255.0)


@contextlib.contextmanager
def _readable(path: Path) -> Any:
    """Says in one line what Pillow finds wrong with a file."""
    from PIL import Image

    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedFileError(
            f"{path} cannot be read as a picture ({str(error).splitlines()[0] if str(error) else 'damaged'}): "
            "save it again as PNG or JPEG"
        ) from error


# ------------------------------------------------------------------------------------------- writing


def save_pictures(
    folder: Path, prefix: str, images: Tensor, prompt: Any = None, extra: Mapping[str, Any] | None = None
) -> list[dict[str, str]]:
    """Write IMAGE (B, H, W, C) as prefix_00001_.png and so on, beside those that are there.

    prompt and extra go into text chunks as JSON. Nothing is overwritten, and a file appears only when it
    is complete. Raises PathError for a prefix that leaves the folder, CoreError when it cannot be written.
    """
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (1, 3, 4):
        raise ShapeError(f"the pictures have shape {tuple(images.shape)}, expected (batch, height, width, 3)")
    height, width = images.shape[1:3]
    name = posixpath.normpath(expand(prefix, width, height, prompt).replace("\\", "/"))
    target = inside(folder, DEFAULT_PREFIX if name == "." else name)
    subfolder = target.parent.relative_to(folder).as_posix()
    texts = {} if prompt is None else {"prompt": json.dumps(prompt)}
    texts.update({name: json.dumps(value) for name, value in (extra or {}).items()})
    saved = []
    for index, picture in enumerate(images):
        stem = target.name.replace("%batch_num%", str(index))
        path = _write(target.parent, stem, encode_png(picture, texts))
        saved.append({"filename": path.name, "subfolder": "" if subfolder == "." else subfolder})
    return saved


def to_image(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) in [0, 1] -> IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.ascontiguousarray(pixels, np.float32))[None]


def shown(host: Folders, images: Tensor) -> dict[str, list[dict[str, str]]]:
    """What a node returns as "ui" to show pictures on itself in the editor; they go into the temporary folder."""
    return {"images": [{**entry, "type": "temp"} for entry in save_pictures(host.temp_dir, "shown", images)]}


def encode_png(picture: Tensor, texts: Mapping[str, str]) -> bytes:
    """(H, W, C) in [0, 1] as PNG, values cut to 8 bit as the host cuts them."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    pixels = np.clip(255.0 * picture.float().cpu().numpy(), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(buffer, "PNG", pnginfo=info, compress_level=COMPRESSION)
    return buffer.getvalue()


def _write(folder: Path, stem: str, data: bytes) -> Path:
    """Write under the next free number, which a finished file takes at once: two runs never share one."""
    temporary = folder / f".{os.getpid()}.tmp"  # short, since the name itself may have the greatest length
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        return publish(temporary, _numbered(folder, stem))
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> CoreError:
    remedy = "make room" if error.errno in FULL else "choose another name"
    return CoreError(
        f"the picture cannot be written into {folder} ({error.strerror or error}): {remedy}, or "
        "another folder with --output; nothing half-written is left"
    )


def _numbered(folder: Path, stem: str) -> Iterator[Path]:
    """stem_N_.png with every N above those that are there."""
    pattern = re.compile(re.escape(stem) + r"_(\d{1,18})_?.*\.png", re.IGNORECASE)
    taken = [int(match[1]) for file in folder.iterdir() if (match := pattern.fullmatch(file.name))]
    return (folder / f"{stem}_{number:05}_.png" for number in itertools.count(max(taken, default=0) + 1))


_DATE = re.compile("d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|yyyy|yy")
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


def expand(prefix: str, width: int, height: int, prompt: Any = None) -> str:
    """The prefix with %width%, %height%, %year% .., %date:yyyy-MM-dd% and %Node.input% filled in."""
    now = time.localtime()
    plain = {
        "width": str(width),
        "height": str(height),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }

    def value(match: re.Match[str]) -> str:
        token = match[1]
        if token in plain:
            return plain[token]
        if token.startswith("date"):
            return _date(token.partition(":")[2] or "yyyyMMddhhmmss", now)
        found = _node_value(token, prompt)
        return match[0] if found is None else _UNSAFE.sub("_", found)

    return re.sub(r"%([^%]+)%", value, prefix)


def _date(form: str, now: time.struct_time) -> str:
    numbers = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text.startswith("y"):
            return str(now.tm_year)[-len(text) :]
        return f"{numbers[text[0]]:0{len(text)}}"

    return _UNSAFE.sub("_", _DATE.sub(part, form))


def _node_value(token: str, prompt: Any) -> str | None:
    """The value of "Title.input" or "Class.input" in an API-form prompt, if there is one."""
    title, dot, name = token.rpartition(".")
    if not dot or not isinstance(prompt, Mapping):
        return None
    for node in prompt.values():
        names = (node.get("class_type"), (node.get("_meta") or {}).get("title"))
        value = (node.get("inputs") or {}).get(name)
        if title in names and isinstance(value, (str, int, float)):
            return str(value)
    return None
