"""Resize hints and masks to the size that a net reads.

==============  ===============================================================================
fit             how a hint is brought to the picture's size
==============  ===============================================================================
crop            cut to the picture's aspect ratio around the centre, then nearest pixel: as
                ComfyUI does
stretch         nearest pixel, without keeping the aspect ratio
inner-fit       scaled smoothly until it covers the picture, then cut around the centre
                (sd-webui's "crop and resize")
pad             scaled smoothly until it fits inside, the rest filled with the median colour of
                its border ("resize and fill")
pixel-perfect   not resized: a hint of another size is an error
==============  ===============================================================================

Nearest pixel keeps the colours of lines, and special values such as the -1 of an inpainting hint. Enlarged
hints become blocky. Smooth means the average of the pixels that are merged, or bilinear where it enlarges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError, ValueRangeError

Fit = Callable[[Tensor, int, int], Tensor]


def crop(hint: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width) as in ComfyUI: centre crop to the aspect ratio, nearest-exact."""
    return stretch(crop_to_aspect(hint, height, width), height, width)


def crop_to_aspect(hint: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) cropped at the centre to the aspect ratio of height and width, as in ComfyUI; a view."""
    old_height, old_width = hint.shape[-2:]
    old_aspect, aspect = old_width / old_height, width / height
    x = y = 0
    if old_aspect > aspect:
        x = round((old_width - old_width * (aspect / old_aspect)) / 2)
    elif old_aspect < aspect:
        y = round((old_height - old_height * (old_aspect / aspect)) / 2)
    # Keep at least one row and one column, for extreme aspect ratios, where ComfyUI fails.
    x, y = min(x, (old_width - 1) // 2), min(y, (old_height - 1) // 2)
    return hint[:, :, y : old_height - y, x : old_width - x]


def stretch(hint: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width), nearest-exact."""
    return F.interpolate(hint, size=(height, width), mode="nearest-exact")


def inner_fit(hint: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width): scale by max(height / H, width / W), then cut around the centre."""
    scaled = _resize(hint, max(height / hint.shape[-2], width / hint.shape[-1]))
    top, left = ((scaled.shape[i] - side) // 2 for i, side in ((-2, height), (-1, width)))
    return scaled[..., max(0, top) : max(0, top) + height, max(0, left) : max(0, left) + width]


def pad(hint: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width): scale by min(height / H, width / W), centre, fill the rest.

    The fill is the median colour of the hint's border.
    """
    scaled = _resize(hint, min(height / hint.shape[-2], width / hint.shape[-1]))[..., :height, :width]
    border = torch.cat([hint[:, :, 0], hint[:, :, -1], hint[:, :, :, 0], hint[:, :, :, -1]], dim=-1)
    canvas = border.median(dim=-1).values[:, :, None, None].expand(-1, -1, height, width).clone()
    top, left = (height - scaled.shape[-2]) // 2, (width - scaled.shape[-1]) // 2
    canvas[..., top : top + scaled.shape[-2], left : left + scaled.shape[-1]] = scaled
    return canvas


def pixel_perfect(hint: Tensor, height: int, width: int) -> Tensor:
    """Raise ShapeError: `fit_hint` calls this only for a hint of another size."""
    raise ShapeError(
        f"the hint is {hint.shape[-1]}x{hint.shape[-2]} pixels, the picture {width}x{height}, and its fit is "
        f"pixel-perfect: make the hint at {width}x{height} (Pixel Perfect gives the resolution), or choose another fit"
    )


def _resize(hint: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in hint.shape[-2:]]
    mode = "area" if scale < 1.0 else "bilinear"
    return F.interpolate(hint, size=size, mode=mode)


FITS: Mapping[str, Fit] = MappingProxyType(
    {"crop": crop, "stretch": stretch, "inner-fit": inner_fit, "pad": pad, "pixel-perfect": pixel_perfect}
)


def fit_hint(hint: Tensor, height: int, width: int, fit: str = "crop") -> Tensor:
    """(B, C, H, W) -> (B, C, height, width); a hint of that size is returned unchanged.

    fit: see the top of this file. Raises ValueRangeError for an unknown fit, and ShapeError for a hint of another size
    with the fit pixel-perfect.
    """
    if fit not in FITS:
        raise ValueRangeError(f"hint fit {fit!r} is unknown: choose one of {', '.join(FITS)}")
    return hint if tuple(hint.shape[-2:]) == (height, width) else FITS[fit](hint, height, width)


def check_hint_channels(hint: Tensor, channels: int) -> Tensor:
    """Convert a gray hint to `channels` channels, or drop an alpha channel. Raises ShapeError for other counts."""
    found = hint.shape[1]
    if found == channels:
        return hint
    if found == 1:
        return hint.expand(-1, channels, -1, -1)
    if channels == 1 and found in (3, 4):  # a net for gray hints; a T2I-Adapter takes the mean as well
        return hint[:, :3].mean(dim=1, keepdim=True)
    if found == channels + 1:
        return hint[:, :channels]
    if (found, channels) == (3, 4):  # a net that also reads where a hint is: everywhere
        return torch.cat([hint, torch.ones_like(hint[:, :1])], dim=1)
    raise ShapeError(
        f"the hint has {found} channels, this ControlNet reads {channels}: give a hint with {channels} channels"
    )


def repeat_to(x: Tensor, batch: int, what: str) -> Tensor:
    """(b, ...) -> (batch, ...) by repeating; b = 1 is returned as it is, to broadcast.

    what: the name of the tensor in the message. Raises ShapeError if b does not divide `batch`.
    """
    if x.shape[0] in (1, batch):
        return x
    if batch % x.shape[0]:
        raise ShapeError(
            f"{x.shape[0]} {what}s came for a batch of {batch}: give 1, {batch}, or a number that divides {batch}"
        )
    return x.repeat(batch // x.shape[0], *(1,) * (x.ndim - 1))


def mask_at(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask (B, H, W), by area, to (B, 1, *size) in [0, 1], to multiply a residual with."""
    # By area, so that a thin white line does not fall between the cells of a small feature map.
    return torch.clamp(F.interpolate(mask[:, None].float(), size=size, mode="area"), 0.0, 1.0)
