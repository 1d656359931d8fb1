"""Reads image files, and writes PNG files that contain the workflow that made them."""

from __future__ import annotations

import io
import itertools
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..controlnet_core.errors import (
    DISK_FULL,
    DamagedFileError,
    MissingFileError,
    ShapeError,
    ValueRangeError,
    WriteError,
)
from ..controlnet_core.limits import PICTURE_PIXELS
from ..controlnet_core.picture_files import PICTURE_ENDINGS, Picture, read_frames
from ..controlnet_core.picture_files import read_picture as read_first_frame
from .file_prefix import expand_prefix
from .folders import brief, find_file, inside, publish, remove_leftovers, temporary_file

_BAND_PIXELS = 1 << 20
NO_MASK = (64, 64)
"""Size of the mask of an image without transparency, as in ComfyUI."""
CHANNELS = ("red", "green", "blue")
COMPRESSION = 4
"""zlib level of PNG files, as in ComfyUI: larger files than level 9, but many times faster."""
DEFAULT_PREFIX = "ComfyUI"


# ------------------------------------------------------------------------------------------- reading


def annotated_file(name: str, host: Any) -> Path:
    """The file of "a.png", "sub/a.png", "a.png [output]" or "a.png [temp]".

    Raises PathError for a name that leaves its folder, MissingFileError where there is no such file, ValueRangeError
    for a value that is no text.
    """
    if not isinstance(name, str):
        raise ValueRangeError(f"expected the name of an image file, got {brief(name)}")
    # Without a regular expression: one that allows spaces before the bracket takes quadratic time for many spaces.
    place = next((place for place in ("input", "output", "temp") if name.endswith(f"[{place}]")), None)
    plain = name if place is None else name.removesuffix(f"[{place}]").rstrip()
    folder = {"input": host.input_dir, "output": host.output_dir, "temp": host.temp_dir}[place or "input"]
    # A run over many pictures may read them from further folders, each with a name of its own.
    further: Mapping[str, Path] = getattr(host, "input_folders", {})
    label, _, below = plain.partition("/")
    if place is None and label in further:
        folder, plain = further[label], below
    path = find_file([folder], plain, "picture", PICTURE_ENDINGS)
    if not path.is_file():
        raise MissingFileError(f"{name!r} is a folder: name an image in it", path)
    return path


def read_picture(path: Path, on_note: Callable[[str], None] = lambda note: None) -> tuple[Tensor, Tensor]:
    """IMAGE (frames, H, W, 3) in [0, 1] and MASK (frames, H, W), 1 where the image is transparent.

    Reads all frames of an animation, and all pages of a TIFF, that have the size of the first. on_note(text) is
    called where there are several frames or an alpha channel. Raises DamagedFileError for a file that is damaged, too
    large or no image, or that holds floats outside [0, 1].
    """
    # As in ComfyUI, colours are not multiplied by alpha: inpainting needs the colours under the mask.
    frames = list(read_frames(path, PICTURE_PIXELS))
    height, width = frames[0].pixels.shape[:2]
    # A batch needs one size; thumbnails in a file have another one.
    taken = [frame for frame in frames if frame.pixels.shape[:2] == (height, width)]
    images = np.empty((len(taken), height, width, 3), np.float32)
    rows = max(1, _BAND_PIXELS // width)
    for image, frame in zip(images, taken, strict=True):
        _check_range(frame, path)
        for top in range(0, height, rows):  # of all rows at once the largest picture would take 2 GB more
            image[top : top + rows] = Picture(frame.pixels[top : top + rows]).colours()
    transparent = any(frame.has_alpha for frame in taken)
    masks = np.zeros((len(taken), *((height, width) if transparent else NO_MASK)), np.float32)
    for mask, frame in zip(masks, taken, strict=True):
        if frame.has_alpha:
            mask[...] = 1.0 - frame.alpha()
    if len(frames) > 1:
        left_out = len(frames) - len(taken)
        others = f"; left out {left_out} of another size" if left_out else ""
        on_note(f"{path.name}: took {len(taken)} of {len(frames)} frames, {width}x{height}{others}")
    if transparent:
        on_note(f"{path.name}: the alpha channel became the mask, the colours under it are as stored")
    return torch.from_numpy(images), torch.from_numpy(masks)


def read_mask(path: Path, channel: str) -> Tensor:
    """MASK (1, H, W) from a channel of an image; "alpha" is 1 where the image is transparent."""
    frame = read_first_frame(path)
    if channel in CHANNELS:
        _check_range(frame, path)
        colours = frame.pixels[..., :-1] if frame.has_alpha else frame.pixels
        values = Picture(colours[..., min(CHANNELS.index(channel), colours.shape[-1] - 1), None]).unit()[..., 0]
    else:
        values = np.float32(1.0) - frame.alpha()
    return torch.from_numpy(np.ascontiguousarray(values))[None]


def _check_range(frame: Picture, path: Path) -> None:
    """Raise DamagedFileError for floats outside 0..1, such as depths of a renderer."""
    if frame.pixels.dtype.kind != "f":
        return
    colours = frame.pixels[..., :-1] if frame.has_alpha else frame.pixels
    if not bool(((colours >= 0.0) & (colours <= 1.0)).all()):
        raise DamagedFileError(
            f"{path} cannot be read as a picture: its numbers are not between 0 and 1 ({colours.min():g} to "
            f"{colours.max():g}), as in a depth map of a renderer. Make a hint of it with `controlnet preprocess "
            "depth_map`, or load it with a node that keeps floats and link Depth Convert (CNCore_DepthConvert) or "
            "Normals from Depth (CNCore_NormalFromDepth)"
        )


# ------------------------------------------------------------------------------------------- writing


def save_pictures(
    folder: Path, prefix: str, images: Tensor, prompt: Any = None, extra: Mapping[str, Any] | None = None
) -> list[dict[str, str]]:
    """Write IMAGE (B, H, W, C) as prefix_00001_.png and so on, with the next free numbers.

    prompt, extra: stored in the file as JSON. No file is overwritten, and a file appears only when it is complete.
    Returns "filename" and "subfolder" of each. Raises PathError for a prefix that leaves the folder, WriteError where a
    file cannot be written.
    """
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (1, 3, 4):
        raise ShapeError(f"the images have shape {tuple(images.shape)}, expected (batch, height, width, 3)")
    height, width = images.shape[1:3]
    # Prefixes of workflows from Windows contain backslashes.
    name = posixpath.normpath(expand_prefix(prefix, width, height, prompt).replace("\\", "/"))
    target = inside(folder, DEFAULT_PREFIX if name == "." else name, follow_links=False)
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


def show_images(host: Any, images: Tensor, prefix: str = "shown", **texts: Any) -> dict[str, list[dict[str, str]]]:
    """The "ui" result that shows images on a node. They are written into the temporary folder.

    texts: as in `save_pictures`.
    """
    return {"images": [{**e, "type": "temp"} for e in save_pictures(host.temp_dir, prefix, images, **texts)]}


def encode_png(picture: Tensor, texts: Mapping[str, str]) -> bytes:
    """(H, W, C) in [0, 1] as the bytes of a PNG file. texts: stored beside the pixels."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    # Truncated to 8 bit, not rounded, as in ComfyUI: the same workflow gives the same file in both.
    pixels = np.clip(255.0 * picture.float().cpu().numpy(), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(buffer, "PNG", pnginfo=info, compress_level=COMPRESSION)
    return buffer.getvalue()


def _write(folder: Path, stem: str, data: bytes) -> Path:
    """Write a file under the next free number. Two runs at the same time never get the same number."""
    temporary = temporary_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        temporary.write_bytes(data)
        return publish(temporary, _numbered(folder, stem))
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> WriteError:
    # Most other errors are about the name: too long, or not allowed by the file system.
    remedy = "free some space" if error.errno in DISK_FULL else "choose another name"
    return WriteError(
        f"the image cannot be written into {folder} ({error.strerror or error}): {remedy}, or "
        "another folder with --output. No incomplete file is left"
    )


def _numbered(folder: Path, stem: str) -> Iterator[Path]:
    """stem_N_.png for every N above the numbers in use."""
    pattern = re.compile(re.escape(stem) + r"_(\d{1,18})_?.*\.png", re.IGNORECASE)
    taken = [int(match[1]) for file in folder.iterdir() if (match := pattern.fullmatch(file.name))]
    return (folder / f"{stem}_{number:05}_.png" for number in itertools.count(max(taken, default=0) + 1))
