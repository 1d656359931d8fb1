"""Bringing hints and masks to the size the net needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError


def fit_hint(hint: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width) as the host does: centre crop to the aspect, nearest-exact.

    Lines stay one colour; at much larger sizes they become blocky, so make hints at the picture's size.
    """
    old_height, old_width = hint.shape[-2:]
    if (old_height, old_width) == (height, width):
        return hint
    old_aspect, aspect = old_width / old_height, width / height
    x = y = 0
    if old_aspect > aspect:
        x = round((old_width - old_width * (aspect / old_aspect)) / 2)
    elif old_aspect < aspect:
        y = round((old_height - old_height * (old_aspect / aspect)) / 2)
    cropped = hint[:, :, y : old_height - y, x : old_width - x]
    return F.interpolate(cropped, size=(height, width), mode="nearest-exact")


def check_hint_channels(hint: Tensor, channels: int) -> Tensor:
    """Make a gray hint RGB and drop an alpha channel; raise ShapeError for what has no clear meaning."""
    found = hint.shape[1]
    if found == channels:
        return hint
    if found == 1:
        return hint.expand(-1, channels, -1, -1)
    if found == channels + 1:
        return hint[:, :channels]
    raise ShapeError(f"the hint has {found} channels, this ControlNet reads {channels}: convert the picture to RGB")


def repeat_to(x: Tensor, batch: int, what: str) -> Tensor:
    """(b, ...) -> (batch, ...) by repeating; b = 1 is left to broadcast. Raises ShapeError if b does not divide."""
    if x.shape[0] in (1, batch):
        return x
    if batch % x.shape[0]:
        raise ShapeError(
            f"{x.shape[0]} {what}s came for a batch of {batch}: give 1, {batch}, or a number that divides {batch}"
        )
    return x.repeat(batch // x.shape[0], *(1,) * (x.ndim - 1))


def mask_at(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) -> (B, 1, *size), by area, for multiplying a residual."""
    return torch.clamp(F.interpolate(mask[:, None].float(), size=size, mode="area"), 0.0, 1.0)
