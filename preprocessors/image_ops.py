"""Conversions of pictures: any accepted form becomes (B,H,W,C), hints leave in the form of the input.

Floats become bytes by clamping first and rounding then. Truncating without a clamp would wrap around: 1.004 would
become 0, -0.01 would become 254, and NaN would depend on the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ParameterError, PictureError

if TYPE_CHECKING:
    from typing import TypeVar

    import torch

    # A function with this type returns an array for an array, and a tensor for a tensor.
    Array = TypeVar("Array", np.ndarray, torch.Tensor)

BYTE_TO_UNIT = (np.arange(256, dtype=np.float32) / np.float32(255.0)).astype(np.float32)
_BAND_PIXELS = 1 << 20
_INTEGER_RANGE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(bool): 1.0}


def is_tensor(array: Any) -> bool:
    """True for a torch tensor, without importing torch."""
    return type(array).__module__.partition(".")[0] == "torch" or hasattr(array, "detach")


def to_numpy(array: Any) -> np.ndarray:
    """A numpy view of `array` if possible; a copy of a tensor on a device or in half precision."""
    if not is_tensor(array):
        return np.asarray(array)
    tensor = array.detach()
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4:
        # numpy has no bfloat16, and cv2 reads no float16.
        tensor = tensor.float()
    return tensor.cpu().numpy()


def like(result: np.ndarray, reference: Array) -> Array:
    """`result` as a CPU tensor if `reference` is a tensor, otherwise unchanged."""
    made: Any = result
    if is_tensor(reference):
        import torch

        # torch refuses arrays with negative strides, such as a turned picture.
        made = torch.from_numpy(np.ascontiguousarray(result))
    return made


def as_batch(image: Array) -> np.ndarray:
    """(H,W) gray, (H,W,C) or (B,H,W,C) -> (B,H,W,C) with C from 1 to 4, of the same type.

    Raises PictureError for anything else. Three axes whose last one is no channel count are refused, since they may be
    a batch of gray pictures or one picture with its channels first.
    """
    array = to_numpy(image)
    if array.ndim == 2:
        array = array[None, :, :, None]
    elif array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or not 1 <= array.shape[-1] <= 4:
        raise PictureError(
            f"the picture has shape {tuple(np.shape(image))}, expected (B,H,W,C) with 1 to 4 channels, (H,W,C) or "
            "(H,W): put the channels last; a batch of gray pictures needs a last axis of length 1"
        )
    if 0 in array.shape[1:3]:
        raise PictureError(f"a picture of {array.shape[1]}x{array.shape[2]} pixels has nothing in it")
    if array.dtype.kind not in "f" and array.dtype not in _INTEGER_RANGE:
        raise PictureError(
            f"the picture has type {array.dtype}, expected floats in 0..1, uint8, uint16 or bool: scale the values to "
            "0..1 first"
        )
    return array


def unit_range(frame: np.ndarray) -> np.ndarray:
    """Any number type -> float32 in 0..1. NaN becomes 0, infinities become the nearest end."""
    scale = _INTEGER_RANGE.get(frame.dtype)
    if frame.dtype == np.uint8:
        return BYTE_TO_UNIT[frame]
    if scale is not None:
        return frame.astype(np.float32) / np.float32(scale)
    # NaN fails both.
    if not frame.size or (frame.dtype == np.float32 and frame.min() >= 0 and frame.max() <= 1):
        return frame
    # fmax and fmin instead of clip, which would keep NaN.
    with np.errstate(over="ignore"):
        clamped = np.fmax(frame.astype(np.float32), np.float32(0.0))
    return np.fmin(clamped, np.float32(1.0), out=clamped)


def to_bytes(frame: np.ndarray) -> np.ndarray:
    """(H,W,C) of any accepted type -> uint8 0..255, clamped, then rounded to the nearest."""
    import cv2

    if frame.dtype == np.uint8:
        return np.ascontiguousarray(frame)
    unit = unit_range(frame)
    return cv2.convertScaleAbs(unit.reshape(unit.shape[0], -1), alpha=255.0).reshape(unit.shape)


def rgb_frame(frame: np.ndarray) -> np.ndarray:
    """(H,W,C) -> (H,W,3): gray is repeated, and alpha is laid over white, as the official annotators do."""
    channels = frame.shape[-1]
    if channels == 3:
        return frame
    if channels == 1:
        return np.repeat(frame, 3, axis=-1)
    unit = unit_range(frame)
    alpha = unit[..., -1:]
    colour = unit[..., :-1] * alpha + (np.float32(1.0) - alpha)
    return np.repeat(colour, 3, axis=-1) if channels == 2 else colour


def rgb_bytes(frame: np.ndarray) -> np.ndarray:
    """`to_bytes(rgb_frame(frame))`, without floats of the whole picture."""
    is_plain = frame.dtype == np.uint8 and frame.shape[-1] in (1, 3)
    return (
        to_bytes(rgb_frame(frame)) if is_plain else _in_bands(lambda part: to_bytes(rgb_frame(part)), frame, np.uint8)
    )


def rgb_unit(frame: np.ndarray) -> np.ndarray:
    """`unit_range(rgb_frame(frame))`, without further floats of the whole picture."""
    is_plain = frame.dtype == np.float32 and frame.shape[-1] == 3
    made = lambda part: unit_range(rgb_frame(part))  # noqa: E731
    return made(frame) if is_plain else _in_bands(made, frame, np.float32)


def hint_bytes(hint: np.ndarray) -> np.ndarray:
    """(H,W,C) in 0..1 -> uint8 as a PNG stores it, rounded to the nearest.

    Raises ParameterError for values below 0, by which the inpaint nets know masked pixels.
    """
    if hint.min() < 0:
        raise ParameterError(
            "the hint marks pixels by values below 0, which a PNG cannot hold: use the node, or --set masked_value=0"
        )
    return _in_bands(lambda part: np.rint(part * 255).astype(np.uint8), hint, np.uint8)


def _in_bands(function: Callable[[np.ndarray], np.ndarray], frame: np.ndarray, dtype: type) -> np.ndarray:
    """function((h,W,C)) -> (h,W,3) of bands of rows, for functions of single pixels."""
    rows = max(1, _BAND_PIXELS // frame.shape[1])
    out = np.empty((*frame.shape[:2], 3), dtype)
    for top in range(0, len(frame), rows):
        out[top : top + rows] = function(frame[top : top + rows])
    return out


def write_hint(result: np.ndarray, out: np.ndarray) -> None:
    """Write (H,W), (H,W,1) or (H,W,3), uint8 or float 0..1, into `out` (H,W,3), float32 or uint8, contiguous."""
    import cv2

    if out.dtype == np.uint8:
        result = result[..., None] if result.ndim == 2 else result
        out[...] = result if result.dtype == np.uint8 else hint_bytes(result)
        return

    # cv2 writes straight into `out`: numpy would make a temporary array of the whole hint.
    if result.ndim == 3 and result.shape[-1] == 1:
        result = result[..., 0]
    if result.dtype == np.uint8:
        if result.ndim == 3:
            cv2.LUT(result, BYTE_TO_UNIT, dst=out)
            return
        result = cv2.LUT(result, BYTE_TO_UNIT)
    if result.ndim == 2:
        cv2.cvtColor(np.ascontiguousarray(result, dtype=np.float32), cv2.COLOR_GRAY2RGB, dst=out)
    else:
        out[...] = result


def above(values: np.ndarray, limit: float) -> np.ndarray:
    """(H,W) of any number type -> (H,W) uint8: 255 where the value is above `limit`, 0 elsewhere."""
    import cv2

    if values.dtype == np.uint8:
        return cv2.threshold(values, limit, 255, cv2.THRESH_BINARY)[1]
    return (values > limit).view(np.uint8) * np.uint8(255)


def gray(picture: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W) uint8 luma, cv2's weights 0.299, 0.587, 0.114; brightness nets read it."""
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)


def lab(picture: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 RGB -> (H,W,3) float32 CIE Lab: L 0..100, a and b about -127..127."""
    import cv2

    return cv2.cvtColor(picture.astype(np.float32) / np.float32(255.0), cv2.COLOR_RGB2LAB)


def darkest(picture: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 -> (H,W) uint8, the smallest channel. numpy's minimum along an axis of 3 is ten times slower."""
    import cv2

    red, green, blue = cv2.split(np.ascontiguousarray(picture))
    return cv2.min(cv2.min(red, green), blue)
