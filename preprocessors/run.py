"""The one interface: pictures in, hints out, the same for every preprocessor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ParameterError, PictureError
from .image_ops import as_batch, like, rgb_frame, to_bytes, to_numpy, unit_range, write_hint
from .registry import Entry
from .resize import Size, detect_size, pad_reflect, resize_hint, resize_map, resize_picture

if TYPE_CHECKING:
    from .image_ops import Array

Progress = Callable[[int, int], None]


def process(
    entry: Entry,
    image: Array,
    *,
    resolution: int = 0,
    resize: str = "input",
    multiple: int = 1,
    output: str = "input_size",
    mask: Array | None = None,
    normalize: str = "frame",
    seed: int = 0,
    target: tuple[int, int] | None = None,
    fit: str = "crop",
    progress: Progress | None = None,
    **parameters: Any,
) -> Array:
    """Pictures (B,H,W,C), values 0..1 (or uint8, uint16) -> hints (B,H,W,3) float32 0..1.

    A tensor comes back as a tensor on the CPU, an array as an array. Values outside 0..1 are clamped.

    resolution, resize, multiple: the size at which the picture is looked at; 0 and "input" are its own.
        "shortest" makes the shortest side `resolution`, "pixel_perfect" takes what the picture to be made
        needs (`target` = (height, width), `fit` = "crop" or "fill"). Both sides are padded by reflection
        to `multiple`, and cropped again.
    output: "input_size" brings the hint back to the picture's size, "detect_size" leaves it.
    mask: (B,H,W) or (H,W); the hint is black where it is below 0.5 (inpainting reads it as what to repaint).
    normalize: where a range is measured, over each "frame", over the "batch" (no flicker in a video), or
        "fixed" by the parameters.
    seed: everything random follows from it; each frame uses the same, so a batch equals its singles.
    progress: called with (frames done, frames in all); what it raises ends the run.
    """
    if output not in ("input_size", "detect_size"):
        raise ParameterError(f"output={output!r}: choose 'input_size' or 'detect_size'")
    if normalize not in ("batch", "frame", "fixed"):
        raise ParameterError(f"normalize={normalize!r}: choose 'batch', 'frame' or 'fixed'")
    values = entry.values(parameters)
    frames = as_batch(image)
    count, height, width = frames.shape[:3]
    if entry.side_by_side:
        width = _half(width)
    size = detect_size(height, width, resolution=resolution, resize=resize, multiple=multiple, target=target, fit=fit)
    masks = _masks(mask, count, height, width)
    function = partial(entry.call, **values, **({"seed": seed} if entry.seeded else {}))
    prepare = partial(_prepare, entry, size)
    full_size = output == "input_size"
    out = np.empty((count, *((height, width) if full_size else (size.height, size.width)), 3), np.float32)
    finish = partial(_finish, entry, size, out)
    if entry.scope == "batch":
        pictures = [prepare(frame) for frame in frames]
        results = function(pictures, normalize=normalize) if pictures else ()
        for index, result in enumerate(results):
            finish(index, result, masks)
            _report(progress, index + 1, count)
        return like(out, image)
    for index in range(count):
        extra = {"mask": _mask_at(masks, index, size)} if entry.masked else {}
        finish(index, function(prepare(frames[index]), **extra), masks)
        _report(progress, index + 1, count)
    return like(out, image)


def _prepare(entry: Entry, size: Size, frame: np.ndarray) -> np.ndarray:
    if entry.side_by_side:
        half = frame.shape[1] // 2
        parts = (frame[:, :half], frame[:, half : 2 * half])
        return np.concatenate([_prepare_one(entry, size, part) for part in parts], axis=1)
    return _prepare_one(entry, size, frame)


def _prepare_one(entry: Entry, size: Size, frame: np.ndarray) -> np.ndarray:
    """The form that the entry takes, at the size at which it looks."""
    if entry.takes == "values":
        return pad_reflect(resize_map(frame.astype(np.float32), size.height, size.width), size)
    picture = rgb_frame(frame)
    if entry.takes == "labels":
        return pad_reflect(resize_hint(to_bytes(picture), size.height, size.width, "nearest"), size)
    picture = unit_range(picture) if entry.takes == "unit" else to_bytes(picture)
    return pad_reflect(resize_picture(picture, size.height, size.width), size)


def _half(width: int) -> int:
    if width < 2:
        raise PictureError(f"a stereo pair side by side came {width} pixel wide; expected two pictures in one")
    return width // 2


def _finish(
    entry: Entry, size: Size, out: np.ndarray, index: int, result: np.ndarray, masks: np.ndarray | None
) -> None:
    hint = result[: size.height, : size.width]
    height, width = out.shape[1:3]
    write_hint(resize_hint(hint, height, width, entry.resample), out[index])
    if masks is not None and not entry.masked:
        keep = resize_hint(masks[index], height, width, "nearest")
        out[index][keep < 0.5] = 0.0


def _masks(mask: Array | None, count: int, height: int, width: int) -> np.ndarray | None:
    """Any mask -> (B,H,W) float32; one mask serves every frame."""
    if mask is None:
        return None
    array = to_numpy(mask)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != (height, width) or array.shape[0] not in (1, count):
        raise PictureError(
            f"a mask of shape {tuple(np.shape(mask))} came with {count} pictures of {height}x{width}; "
            f"expected ({count},{height},{width}) or ({height},{width}): resize the mask to the picture"
        )
    return np.broadcast_to(unit_range(array), (count, height, width))


def _mask_at(masks: np.ndarray | None, index: int, size: Size) -> np.ndarray | None:
    if masks is None:
        return None
    return pad_reflect(resize_hint(np.ascontiguousarray(masks[index]), size.height, size.width, "nearest"), size)


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
